//! Fine-tuning, from a model's folder to an adapter or a checkpoint.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ::finetune::{
    Continuation, Group, LoraAndLayers, Method, RunScale, Teacher, TrainReport, TrainSettings,
    Trainer, save_adapter, save_checkpoint,
};
use checkpoint::{CheckpointError, ModelConfig, require_companions};

use selection::beside_cuts;

use super::validate::train_validated;
use super::{StageContext, load_adapted};
use crate::estimate::fit;
use crate::lock::SavesLock;
use crate::log::{Log, LogTargets};
use crate::{Event, FinetuneMethod, PipelineError, Result, Stage, TrainingSettings};

/// How [`finetune_model`] trains.
#[derive(Debug, Clone, Copy)]
pub struct FinetuneSettings<'a> {
    /// What trains.
    pub method: FinetuneMethod,
    /// How.
    pub training: &'a TrainingSettings,
    /// Who teaches, if the training distils.
    pub teacher: Option<&'a TeacherOf>,
    /// What the model was cut from, if that is known.
    pub cut: Option<CutOf<'a>>,
}

/// What a model was cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutOf<'a> {
    /// Each layer's number in the model before.
    pub origin: &'a [usize],
    /// How many layers that had.
    pub num_layers: usize,
}

impl FinetuneSettings<'_> {
    /// The engine's settings, the layers beside cuts known.
    fn parse(&self, seed: u64) -> Result<TrainSettings> {
        let mut settings = self.training.parse(self.method, seed)?;
        if self.method == FinetuneMethod::LoraAndCuts {
            let Some(CutOf { origin, num_layers }) = self.cut else {
                let what = "`lora+cuts` needs to know what was cut, which only a run does; take lora or full";
                return Err(PipelineError::Settings(what.into()));
            };
            let full = beside_cuts(origin, num_layers);
            settings.method = match settings.method {
                // The dense model has no cuts.
                Method::Lora(lora) if !full.is_empty() => {
                    Method::LoraAndLayers(LoraAndLayers { lora, full })
                }
                method => method,
            };
        }
        Ok(settings)
    }
}

/// A teacher's files, and what the student is to it.
#[derive(Debug, Clone, PartialEq)]
pub struct TeacherOf {
    /// The model's folder.
    pub model: PathBuf,
    /// The adapter on it, if it has one.
    pub adapter: Option<PathBuf>,
    /// Each student layer's number in it, if the student was cut from it.
    pub origin: Option<Vec<usize>>,
    /// By how much the student's stream is smaller behind each cut, if that was repaired by scales, else none.
    pub scales: Vec<RunScale>,
}

/// What [`finetune_model`] leaves.
#[derive(Debug, Clone)]
pub struct FinetuneTarget<'a> {
    /// Folder for the adapter (LoRA) or the checkpoint (full).
    pub target: PathBuf,
    /// Folder for a checkpoint with the adapter merged in, if one is wanted.
    pub merged: Option<PathBuf>,
    /// Folder to keep the state of an unfinished training in.
    pub saves: PathBuf,
    /// What the training goes on from, if it does not begin.
    pub from: Option<Continuation>,
    /// Most bytes of tensors in one file.
    pub shard_bytes: u64,
    /// Where the steps are logged.
    pub log: LogTargets<'a>,
    /// The stage they are logged under.
    pub stage: Stage,
    /// The processes that train together; the first one writes.
    pub group: Option<Rc<Group>>,
}

/// Fine-tunes a model folder on data.
///
/// # Errors
///
/// If the model, the data or the settings cannot be used, training fails, or the disk refuses.
pub fn finetune_model(
    context: StageContext<'_>,
    settings: FinetuneSettings<'_>,
    target: &FinetuneTarget<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<TrainReport> {
    let method = settings.method;
    if let Some(taken) = [Some(&target.target), target.merged.as_ref()]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
    {
        return Err(CheckpointError::Exists { path: taken.clone() }.into());
    }
    let model = context.model;
    if target.merged.is_some() || method.trains_weights() {
        require_companions(model)?;
    }
    let mut trainer = trainer(context, settings, target.from.as_ref(), observe)?;
    let writes = target.group.as_ref().is_none_or(|group| group.rank() == 0);
    let _held = writes.then(|| SavesLock::take(&target.saves)).transpose()?;
    if let Some(group) = &target.group {
        trainer = trainer.with_group(Rc::clone(group))?;
    }
    let targets = if writes { target.log } else { LogTargets::default() };
    let mut log = Log::new(targets, target.stage);
    let training = settings.training;
    let report = match training.validation {
        Some(validation) => {
            let training_of = (&mut trainer, target.saves.as_path());
            train_validated(context, training, validation, training_of, &mut log, observe)?
        }
        None => trainer.run(None, Some(&target.saves), &mut |metrics| {
            log.add(metrics);
            observe(Event::Step(*metrics));
        })?,
    };
    log.finish()?;
    if !writes {
        return Ok(report);
    }
    let tuned = trainer.into_model();
    if let Some(merged) = &target.merged {
        save_checkpoint(&tuned, merged, target.shard_bytes)?;
    }
    if method.trains_weights() {
        save_checkpoint(&tuned, &target.target, target.shard_bytes)?;
    } else {
        // The adapter may be moved, or loaded from elsewhere.
        let base = std::path::absolute(model)?;
        save_adapter(&tuned, &base.display().to_string(), &target.target)?;
    }
    Trainer::forget_saves(&target.saves)?;
    Ok(report)
}

/// Writes a checkpoint with an adapter merged in.
pub(crate) fn merge_adapter(
    context: StageContext<'_>,
    adapter: &Path,
    merged: &Path,
    shard_bytes: u64,
) -> Result<()> {
    let tuned = load_adapted(context.model, Some(adapter), context.compute)?;
    Ok(save_checkpoint(&tuned, merged, shard_bytes)?)
}

/// A training as it begins, or as it goes on from what a longer model's left.
pub(super) fn trainer(
    context: StageContext<'_>,
    settings: FinetuneSettings<'_>,
    from: Option<&Continuation>,
    observe: &mut dyn FnMut(Event),
) -> Result<Trainer> {
    let StageContext { model, compute, seed, .. } = context;
    let FinetuneSettings { training, teacher, .. } = settings;
    let examples = context.training_examples(training.max_tokens)?;
    let mut train_settings = settings.parse(seed)?;
    fit(&ModelConfig::read(model)?, &mut train_settings, compute, &examples.examples)?;
    let loaded = context.load()?;
    observe(Event::Computing(compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let mut trainer = Trainer::new(loaded, train_settings, examples)?;
    if let Some(distil) = training.distil {
        let Some(TeacherOf { model, adapter, origin, scales }) = teacher else {
            let what = "--distil needs a model to learn from: --teacher MODEL; only `run` and `compare` have the dense model";
            return Err(PipelineError::Settings(what.into()));
        };
        let loaded = load_adapted(model, adapter.as_deref(), compute)?;
        let teacher = match origin {
            Some(origin) => Teacher::dense(loaded, origin.clone()).with_scales(scales.clone()),
            None => Teacher::other(loaded),
        };
        trainer = trainer.with_teacher(teacher, distil)?;
    }
    match from {
        Some(from) => trainer.go_on(from)?,
        None => trainer = trainer.tied()?,
    }
    Ok(trainer)
}
