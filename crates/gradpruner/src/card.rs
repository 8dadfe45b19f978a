//! Model cards: a `README.md` beside the weights a run leaves, as PEFT and mergekit write them.

use std::path::Path;

use checkpoint::{Staging, locate};
use pipeline::{FinetuneMethod, RunOutcome, RunSettings, digest_data, table_text};
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
            let tuned = match (name, settings.finetune) {
                ("pruned", FinetuneMethod::None) => "Not fine-tuned.".to_owned(),
                ("pruned", _) => "Not fine-tuned yet: see the folders beside this one.".to_owned(),
                _ => format!(
                    "Fine-tuned by {} on `{}` (SHA-256 `{digest}`), seed {}.",
                    settings.finetune,
                    name_of(&settings.train.display().to_string()),
                    settings.seed
                ),
            };
            let text = card(settings, found, &tuned, (library, load));
            Staging::write(&folder.join("README.md"), text.as_bytes())?;
        }
    }
    Ok(())
}

fn card(
    settings: &RunSettings,
    found: &RunOutcome,
    tuned: &str,
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
        "---\n{base_line}{license}library_name: {library}\ntags:\n- gradpruner\n- pruned\n---\n\n\
         # {model}, {kept} of {all} layers\n\n\
         Made by gradpruner {version} from `{base}`: layers {pruned:?} removed, chosen by `{criterion}`; {repair}. {tuned}\n\n\
         ```text\n{table}\n```\n\n\
         ```python\n{load}\n```\n",
        base = settings.model,
        base_line = base_line(settings),
        license = license(settings),
        all = plan.num_layers,
        version = env!("CARGO_PKG_VERSION"),
        pruned = plan.pruned,
        criterion = settings.criterion.name(),
        repair = repair_text(plan),
        table = table_text(&rows),
    )
}

/// The line that names the base model, if it is one of the hub: a path means nothing elsewhere.
fn base_line(settings: &RunSettings) -> String {
    match Path::new(&settings.model).exists() {
        true => String::new(),
        false => format!("base_model: {}\n", settings.model),
    }
}

/// The line of the base model's card that names its licence, if it has one.
fn license(settings: &RunSettings) -> String {
    let card = locate(&settings.model).ok().map(|folder| folder.join("README.md"));
    let text = card.and_then(|path| fs_err::read_to_string(path).ok()).unwrap_or_default();
    let mut head =
        text.lines().skip_while(|line| *line != "---").skip(1).take_while(|line| *line != "---");
    head.find(|line| line.starts_with("license:"))
        .map_or_else(String::new, |line| format!("{line}\n"))
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
