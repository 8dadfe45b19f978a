//! Model cards: a `README.md` beside the weights a run leaves, as PEFT and mergekit write them.

use std::path::Path;

use checkpoint::{Staging, locate};
use pipeline::{Candidate, RunOutcome, RunSettings, digest_data};
use selection::Repair;

use crate::models::{ModelRow, model_table};
use crate::stages::criteria_text;
use crate::units::layers_named;

/// A folder of a run that holds weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The pruned checkpoint.
    Pruned,
    /// The pruned checkpoint with all or some weights fine-tuned.
    Tuned,
    /// The pruned checkpoint with the adapter merged in.
    Merged,
    /// The adapter, which belongs on the pruned checkpoint.
    Adapter,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Pruned, Self::Tuned, Self::Merged, Self::Adapter];

    fn folder(self) -> &'static str {
        match self {
            Self::Pruned => "pruned",
            Self::Tuned => "tuned",
            Self::Merged => "merged",
            Self::Adapter => "adapter",
        }
    }

    fn library(self) -> &'static str {
        match self {
            Self::Adapter => "peft",
            Self::Pruned | Self::Tuned | Self::Merged => "transformers",
        }
    }

    /// How it is loaded, in Python.
    fn loading(self) -> String {
        let folder = self.folder();
        match self {
            Self::Adapter => "from peft import PeftModel\n\
                 from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 pruned = AutoModelForCausalLM.from_pretrained(\"pruned\")\n\
                 model = PeftModel.from_pretrained(pruned, \"adapter\")\n\
                 tokenizer = AutoTokenizer.from_pretrained(\"pruned\")"
                .into(),
            Self::Pruned | Self::Tuned | Self::Merged => format!(
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\"{folder}\")\n\
                 tokenizer = AutoTokenizer.from_pretrained(\"{folder}\")"
            ),
        }
    }
}

/// Writes a card into each folder of a run that holds weights.
pub(crate) fn write(found: &RunOutcome, rows: &[ModelRow]) -> anyhow::Result<()> {
    let digest = digest_data(&found.settings.train)?;
    for kind in Kind::ALL {
        let folder = found.run.join(kind.folder());
        if folder.is_dir() {
            let text = card(kind, found, rows, &digest);
            Staging::write(&folder.join("README.md"), text.as_bytes())?;
        }
    }
    Ok(())
}

fn card(kind: Kind, found: &RunOutcome, rows: &[ModelRow], digest: &str) -> String {
    let RunOutcome { plan, settings, .. } = found;
    // Speeds are the machine's, not the model's.
    let mut rows = rows.to_vec();
    for row in &mut rows {
        row.tokens_per_second = None;
    }
    let evaluated = settings.eval.as_deref().map_or_else(String::new, |data| {
        format!("\n\nOn `{}`.", name_of(&data.display().to_string()))
    });
    format!(
        "---\n{base_line}{license}library_name: {library}\ntags:\n- gradpruner\n- pruned\n---\n\n\
         # {model}, {kept} of {all} layers{what}\n\n\
         Made by gradpruner {version} from `{base}` without {pruned} (counted from 0), which were chosen by \
         {criterion}; {repair}.\n\n{data}\n\n\
         {table}{evaluated}\n\n\
         ```python\n{loading}\n```\n",
        base = match Path::new(&settings.model).exists() {
            true => name_of(&settings.model),
            false => settings.model.clone(),
        },
        base_line = base_line(settings),
        license = license(settings),
        library = kind.library(),
        model = name_of(&settings.model),
        kept = plan.num_layers - plan.pruned.len(),
        all = plan.num_layers,
        what = if kind == Kind::Adapter { ": LoRA adapter" } else { "" },
        version = env!("CARGO_PKG_VERSION"),
        pruned = layers_named(&plan.pruned),
        criterion = chosen_by(found),
        repair = repair_text(found),
        data = data_text(kind, settings, digest),
        table = model_table(&rows).markdown(),
        loading = kind.loading(),
    )
}

/// What the layers were chosen by.
fn chosen_by(found: &RunOutcome) -> String {
    if found.plan_is_edited {
        return "hand".into();
    }
    let Some(race) = &found.race else { return format!("`{}`", found.settings.criterion) };
    let named = |candidate: &Candidate| criteria_text(&candidate.criteria).replace(", ", "`, `");
    let all: Vec<String> = race.candidates.iter().map(named).collect();
    match all.as_slice() {
        [winner, others @ ..] if !others.is_empty() => {
            format!(
                "`{winner}`, which did best on rows held out (beside `{}`)",
                others.join("`, `")
            )
        }
        _ => format!("`{}`", all.concat()),
    }
}

/// What the rows were used for.
fn data_text(kind: Kind, settings: &RunSettings, digest: &str) -> String {
    let train = name_of(&settings.train.display().to_string());
    let data = format!("`{train}` (SHA-256 `{digest}`), seed {}", settings.seed);
    let how = settings.finetune;
    match kind {
        Kind::Pruned => format!(
            "The layers were chosen on {data}. Not fine-tuned: the folders beside this one, if any, are."
        ),
        Kind::Tuned => format!("Chosen and fine-tuned ({how}) on {data}."),
        Kind::Merged => {
            format!(
                "Chosen and fine-tuned ({how}) on {data}; the adapter is merged into the weights."
            )
        }
        Kind::Adapter => format!(
            "Chosen and fine-tuned ({how}) on {data}. The adapter belongs on the pruned checkpoint in the folder \
             `pruned` beside this one, not on the base model."
        ),
    }
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

fn repair_text(found: &RunOutcome) -> String {
    let plan = &found.plan;
    match plan.repair() {
        Repair::Drop => "the remaining weights were left as they were before fine-tuning".into(),
        Repair::LinearMap => {
            "a linear map in place of each run of removed layers is folded into the layer before it"
                .into()
        }
        Repair::Reconstruct => {
            "the layer before each run of them was trained to give what the run gave".into()
        }
        Repair::Scale => {
            "what the layers behind a cut add is scaled down as the stream is without them".into()
        }
        Repair::SameSign | Repair::Weighted | Repair::Laco => {
            let donors: Vec<usize> = plan.donors().into_iter().collect();
            let (verb, names) =
                (if donors.len() == 1 { "is" } else { "are" }, layers_named(&donors));
            match (plan.repair(), plan.step()) {
                (Repair::Laco, _) => {
                    format!("what {names} differ by from the layer before was added to it")
                }
                (Repair::Weighted, step) => format!(
                    "{names} {verb} merged into the layer before by their share of importance, with a step of {}",
                    step.unwrap_or(1.0)
                ),
                _ => format!("{names} {verb} merged into the layer before, where signs agree"),
            }
        }
    }
}

/// The last part of a path or of a hub name.
fn name_of(path: &str) -> String {
    let last = Path::new(path).file_name();
    last.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
