//! Model cards: a `README.md` beside the weights a run leaves, as PEFT and mergekit write them.

use std::path::Path;

use checkpoint::Staging;
use pipeline::{RunOutcome, RunSettings, digest_data, table_text};
use selection::{Plan, Repair};

/// Writes a card into each folder of a run that holds weights.
pub(crate) fn write(settings: &RunSettings, found: &RunOutcome) -> anyhow::Result<()> {
    let digest = digest_data(&settings.train)?;
    for (name, library, load) in [
        ("pruned", "transformers", "AutoModelForCausalLM.from_pretrained(\"THIS FOLDER\")"),
        ("merged", "transformers", "AutoModelForCausalLM.from_pretrained(\"THIS FOLDER\")"),
        ("tuned", "transformers", "AutoModelForCausalLM.from_pretrained(\"THIS FOLDER\")"),
        (
            "adapter",
            "peft",
            "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"../pruned\"), \"THIS FOLDER\")",
        ),
    ] {
        let folder = found.run.join(name);
        if folder.is_dir() {
            let text = card(settings, found, &digest, (library, load));
            Staging::write(&folder.join("README.md"), text.as_bytes())?;
        }
    }
    Ok(())
}

fn card(
    settings: &RunSettings,
    found: &RunOutcome,
    digest: &str,
    (library, load): (&str, &str),
) -> String {
    let RunOutcome { plan, comparison, .. } = found;
    let kept = plan.num_layers - plan.pruned.len();
    // Speeds are the machine's, not the model's.
    let mut rows = comparison.clone();
    for row in &mut rows {
        row.tokens_per_second = None;
    }
    let model = name_of(&settings.model);
    format!(
        "---\nbase_model: {base}\nlibrary_name: {library}\ntags:\n- gradpruner\n- pruned\n---\n\n\
         # {model}, {kept} of {all} layers\n\n\
         Made by gradpruner {version} from `{base}`: layers {pruned:?} removed, chosen by `{criterion}`; {repair}. \
         Fine-tuned by {finetune} on `{data}` (SHA-256 `{digest}`), seed {seed}.\n\n\
         ```text\n{table}\n```\n\n\
         ```python\n{load}\n```\n",
        base = settings.model,
        all = plan.num_layers,
        version = env!("CARGO_PKG_VERSION"),
        pruned = plan.pruned,
        criterion = settings.criterion.name(),
        repair = repair_text(plan),
        finetune = settings.finetune,
        data = name_of(&settings.train.display().to_string()),
        seed = settings.seed,
        table = table_text(&rows),
    )
}

fn repair_text(plan: &Plan) -> String {
    match plan.repair() {
        Repair::Drop => "the others are as they were before fine-tuning".into(),
        Repair::LinearMap => {
            "a linear map in the place of each run of them is folded into the layer before it"
                .into()
        }
        Repair::SameSign => {
            format!("layers {:?} merged into the layers before them", plan.donors())
        }
    }
}

/// The last part of a path or of a hub name.
fn name_of(path: &str) -> String {
    let last = Path::new(path).file_name();
    last.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
