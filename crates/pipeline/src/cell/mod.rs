//! The stages of one cell: a model pruned one way, trained and evaluated. Each result lies in a store under its recipe,
//! which says what it depends on; what is there is not made again.
//!
//! A run is one cell under plain names, a comparison many cells over one store.

mod amount;
mod choose;
mod collect;
mod evaluate;
mod judge;
mod lora_layers;
mod prune;
mod race;
mod trial;
mod tune;

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ::finetune::require_same_tokens;
use checkpoint::{locate, sha256_bytes, sha256_file};
use dataset::Encoder;
use serde_json::{Value, json};

pub(crate) use amount::most_trials;
pub use amount::{Amount, TriedAmount};
pub(crate) use collect::CollectedSlots;
pub(crate) use evaluate::{Subject, TestSet};
pub use race::{Candidate, Race};
pub(crate) use race::{DecidedIn, Decision};

use crate::log::LogTargets;
use crate::stage::{EncodedRows, StageContext, StateOf};
use crate::store::{Slot, Store};
use crate::{
    Event, HeldOut, Result, RunSettings, Stage, TeacherSettings, TrainingSettings, Verdict,
};

/// Raised whenever the same rows choose other layers, or fit another repair.
pub(crate) const RULES: u32 = 4;

/// What the stages of a cell have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stages<'a> {
    /// The settings in force.
    pub(crate) settings: &'a RunSettings,
    /// Where results lie.
    pub(crate) store: &'a Store,
    /// Where those lie that outlive a race.
    pub(crate) home: &'a Store,
    /// The dense model's folder.
    pub(crate) model: &'a Path,
    /// How many layers it has.
    pub(crate) num_layers: usize,
    /// What stands for the model and the rows in recipes.
    pub(crate) digests: &'a Digests,
    /// What of the training rows is held out.
    pub(crate) held_out: Option<HeldOut>,
    /// Where steps are logged.
    pub(crate) log: LogTargets<'a>,
    /// Rows that were made tokens.
    pub(crate) encoded: &'a EncodedRows,
}

/// What stands for the inputs in recipes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) model: String,
    pub(crate) train: String,
    /// Of the teacher that is given, if one is.
    pub(crate) teacher: Option<String>,
}

/// A model to be tuned or evaluated.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) folder: PathBuf,
    /// What stands for it in recipes.
    pub(crate) digest: String,
    /// Each of its layers' number in the dense model.
    pub(crate) origin: Vec<usize>,
    /// Folder of the scales by which its stream is smaller behind cuts, if it was repaired by these.
    pub(crate) scales: Option<PathBuf>,
    /// What its repair does to what is lost, if it has one.
    pub(crate) verdict: Option<Verdict>,
    /// Seconds it took to fit, judge and prune.
    pub(crate) seconds: f64,
}

impl Stages<'_> {
    /// The dense model.
    pub(crate) fn dense(&self) -> Base {
        Base {
            folder: self.model.to_owned(),
            digest: self.digests.model.clone(),
            origin: (0..self.num_layers).collect(),
            scales: None,
            verdict: None,
            seconds: 0.0,
        }
    }

    /// A model and the rows it is trained on.
    fn context<'b>(&'b self, model: &'b Path) -> StageContext<'b> {
        StageContext { held_out: self.held_out, ..self.settings.context(model, self.encoded) }
    }

    /// What every recipe depends on.
    pub(crate) fn common(&self) -> Value {
        let RunSettings { seed, compute, ignore_fields, .. } = self.settings;
        let mut common = json!({
            "model": self.digests.model, "train": self.digests.train, "seed": seed, "dtype": compute.dtype,
            "ignore_fields": ignore_fields, "held_out": self.held_out,
        });
        if let Some(name) = compute.rounding().name() {
            common["frozen_weights"] = name.into();
        }
        common
    }

    /// The collected steps' settings, but for what changes no result.
    pub(crate) fn collecting(&self) -> Value {
        let mut collecting = self.settings.collecting();
        collecting.training = lasting(&collecting.training);
        json!(collecting)
    }

    /// The adapters that the dense model has after the collected steps, if the training goes on from these.
    fn adapters<'b>(&'b self, collected: &'b CollectedSlots) -> Option<StateOf<'b>> {
        let state = collected.state.as_ref()?;
        Some(StateOf { folder: &state.path, training: &self.settings.training })
    }
}

/// Whether a stage's result is there; says so.
fn found(stage: Stage, slot: &Slot, observe: &mut dyn FnMut(Event)) -> Result<bool> {
    let found = slot.is_there()?;
    observe(if found { Event::Found(stage) } else { Event::Started(stage) });
    Ok(found)
}

/// What of a training its result depends on.
pub(crate) fn lasting(training: &TrainingSettings) -> TrainingSettings {
    TrainingSettings { remat: false, save_every: None, ..training.clone() }
}

/// What stands for the teacher that a training's settings give, if they give one.
///
/// # Errors
///
/// If it cannot be read, or has not the tokens of `student`.
pub(crate) fn digest_teacher(
    training: &TrainingSettings,
    student: &Path,
) -> Result<Option<String>> {
    let Some(TeacherSettings { model, adapter }) = &training.teacher else { return Ok(None) };
    let folder = locate(model)?;
    require_same_tokens(&folder, student)?;
    let model = digest_model(&folder)?;
    let adapter = adapter.as_deref().map(digest_model).transpose()?;
    Ok(Some(format!("{model} {}", adapter.unwrap_or_default())))
}

/// A file of weights is known by its size and when it was written, since to digest it takes as long as to read it.
const DIGESTED_BYTES: u64 = 64 << 20;

/// The files that a model's, or an adapter's, results depend on, besides weights and templates.
const DIGESTED: [&str; 6] = [
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Whether what is computed with a model depends on a file of its folder.
fn is_digested(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = |ending: &str| name.ends_with(ending);
    DIGESTED.contains(&&*name) || ends(".safetensors") || ends(".index.json") || ends(".jinja")
}

/// What stands for a model's folder: the names of the files that results depend on, and what is in them.
pub(crate) fn digest_model(folder: &Path) -> Result<String> {
    let mut lines = Vec::new();
    let entries = fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths: Vec<PathBuf> = entries.collect::<Result<_>>()?;
    // Chat templates may lie in folders within.
    paths.extend(Encoder::files(folder)?);
    paths.sort();
    paths.dedup();
    for path in paths {
        let about = fs_err::metadata(&path)?;
        if !about.is_file() || !is_digested(&path) {
            continue;
        }
        let content = match about.len() {
            ..DIGESTED_BYTES => sha256_file(&path)?,
            size => {
                let written =
                    about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                format!("{size} {}", written.unwrap_or_default().as_nanos())
            }
        };
        lines.push(format!("{} {content}\n", path.strip_prefix(folder).unwrap_or(&path).display()));
    }
    lines.sort();
    Ok(sha256_bytes(lines.concat().as_bytes()))
}
