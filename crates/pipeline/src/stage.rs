//! The stages that need the engine, each from files to files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{
    Activations, Adapter, DataSource, Dtype, Manifest, ModelConfig, ModelSource, sha256_file,
};
use dataset::{Encoder, Row, read_rows};
use finetune::{
    Continuation, EvalReport, GradientSink, Gradients, Model, RecordSink, StepMetrics, TrainReport,
    Trainer, collect, evaluate, save_adapter, save_checkpoint,
};
use prune::{Criterion, Scores, Share};

use crate::estimate::fit;
use crate::gram::norms;
use crate::log::{Log, LogTargets};
use crate::stability::StabilityMeter;
use crate::{
    CollectSettings, ComputeSettings, EvaluationSettings, Event, FinetuneMethod, GramScores,
    Result, Stability, Stage, TrainingSettings,
};

/// What [`collect_record`] leaves.
#[derive(Debug, Clone, Copy)]
pub struct CollectTargets<'a> {
    /// Folder for the record, if one is wanted.
    pub record: Option<&'a Path>,
    /// Folder for the training's state, if it is to go on from there.
    pub state: Option<&'a Path>,
    /// What the record calls the model.
    pub model_name: &'a str,
    /// What will be pruned, for the stability of the choice.
    pub criterion: Criterion,
    /// How much of it.
    pub prune: Share,
}

/// What [`collect_record`] found.
#[derive(Debug)]
pub struct Collected {
    /// Scores, summed in memory.
    pub sums: GramScores,
    /// The record's manifest, if one was written.
    pub manifest: Option<Manifest>,
    /// The layers' block influence.
    pub activations: Activations,
    /// How far the scores can be trusted.
    pub stability: Stability,
    /// Every step.
    pub steps: Vec<StepMetrics>,
}

/// Takes the first steps of a LoRA fine-tune for their gradients (method.md §1).
///
/// # Errors
///
/// If the model, the data or the settings cannot be used, training fails, or the disk refuses.
pub fn collect_record(
    (model, train): (&Path, &Path),
    settings: &CollectSettings,
    compute: &ComputeSettings,
    seed: u64,
    targets: CollectTargets<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<Collected> {
    let rows = read_rows(train, &[])?;
    let (encoder, num_rows) = (Encoder::read(model)?, rows.len());
    let examples = encoder.examples(&rows, settings.training.max_tokens)?;
    let mut train_settings = settings.training.parse(FinetuneMethod::Lora, seed)?;
    fit(&ModelConfig::read(model)?, &mut train_settings, compute, &examples.examples)?;
    let auto = settings.auto;
    let settings = finetune::CollectSettings {
        steps: settings.steps,
        train: train_settings,
        state: targets.state.map(Path::to_owned),
    };
    let loaded = load(model, compute)?;
    observe(Event::Encoded(examples.counts));
    let num_layers = loaded.config().num_layers;
    let record = match targets.record {
        Some(target) => Some(RecordSink::create(target, Dtype::F32)?),
        None => None,
    };
    let meter = StabilityMeter::new(targets.criterion, targets.prune.of(num_layers));
    let mut sink = Collector { sums: GramScores::default(), record, meter, auto };
    let found = collect(loaded, &settings, examples, &mut sink, &mut |metrics| {
        observe(Event::Step(*metrics));
    })?;
    let manifest = match sink.record {
        Some(record) => {
            let sources = (
                ModelSource {
                    name: targets.model_name.to_owned(),
                    config_sha256: sha256_file(&model.join("config.json"))?,
                },
                DataSource {
                    path: train.display().to_string(),
                    sha256: sha256_file(train)?,
                    rows: num_rows,
                },
            );
            Some(record.finish(num_layers, &settings.train, sources, &found.activations)?)
        }
        None => None,
    };
    let (activations, steps, stability) = (found.activations, found.steps, sink.meter.report());
    if stability.is_weak() && targets.criterion != Criterion::Bi {
        tracing::warn!(
            tau = stability.between_halves,
            "the order of layers differs between halves of the data; more rows or steps would \
             make the choice surer"
        );
    }
    let seen: usize = steps.len() * settings.train.batch_rows * settings.train.accumulate;
    if seen > num_rows {
        tracing::warn!(
            rows = num_rows,
            seen,
            "the data are so few that rows were seen again; the halves share them, and their \
             agreement says little"
        );
    }
    Ok(Collected { sums: sink.sums, manifest, activations, stability, steps })
}

/// Sums in memory, and a record if one is wanted.
struct Collector {
    sums: GramScores,
    record: Option<RecordSink>,
    meter: StabilityMeter,
    /// Stop when the meter says so.
    auto: bool,
}

impl GradientSink for Collector {
    fn step(
        &mut self,
        report: checkpoint::StepReport,
        gradients: &Arc<Gradients>,
    ) -> finetune::Result<()> {
        let norms = norms(gradients)?;
        if let Some(record) = &mut self.record {
            record.step(report, gradients)?;
        }
        self.meter.add(&norms);
        self.sums.add(&norms);
        Ok(())
    }

    fn enough(&self) -> bool {
        self.auto && self.meter.settled()
    }
}

impl Collected {
    /// The scores by a criterion, from memory.
    pub fn scores(&self, criterion: Criterion) -> Option<Scores> {
        match criterion {
            Criterion::Bi => {
                let layers = self.activations.block_influence.iter().enumerate();
                let layers = layers.map(|(layer, &score)| prune::LayerScore {
                    layer,
                    score,
                    modules: std::collections::BTreeMap::new(),
                });
                Some(Scores::new(criterion, layers.collect()))
            }
            _ => self.sums.scores(criterion),
        }
    }
}

/// What [`finetune_model`] leaves.
#[derive(Debug, Clone)]
pub struct FinetuneTarget {
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
}

/// Fine-tunes a model folder on a JSONL file.
///
/// # Errors
///
/// If the model, the data or the settings cannot be used, training fails, or the disk refuses.
pub fn finetune_model(
    (model, train): (&Path, &Path),
    (method, settings): (FinetuneMethod, &TrainingSettings),
    compute: &ComputeSettings,
    seed: u64,
    (target, log): (&FinetuneTarget, LogTargets<'_>),
    observe: &mut dyn FnMut(Event),
) -> Result<TrainReport> {
    if let Some(taken) = [Some(&target.target), target.merged.as_ref()]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
    {
        return Err(checkpoint::CheckpointError::Exists { path: taken.clone() }.into());
    }
    let encoder = Encoder::read(model)?;
    let examples = encoder.examples(&read_rows(train, &[])?, settings.max_tokens)?;
    let counts = examples.counts;
    let mut train_settings = settings.parse(method, seed)?;
    fit(&ModelConfig::read(model)?, &mut train_settings, compute, &examples.examples)?;
    let mut trainer = Trainer::new(load(model, compute)?, train_settings, examples)?;
    observe(Event::Encoded(counts));
    if let Some(from) = &target.from {
        trainer.go_on(from)?;
    }
    let mut log = Log::new(log, Stage::Finetune);
    let mut logged = Ok(());
    let report = trainer.run(None, Some(&target.saves), &mut |metrics| {
        if logged.is_ok() {
            logged = log.add(metrics);
        }
        observe(Event::Step(*metrics));
    })?;
    logged?;
    let tuned = trainer.into_model();
    if let Some(merged) = &target.merged {
        save_checkpoint(&tuned, merged, target.shard_bytes)?;
    }
    match method {
        FinetuneMethod::Full | FinetuneMethod::HeadAndLast(_) => {
            save_checkpoint(&tuned, &target.target, target.shard_bytes)?;
        }
        FinetuneMethod::Lora | FinetuneMethod::None => {
            save_adapter(&tuned, &model.display().to_string(), &target.target)?;
        }
    }
    Trainer::forget_saves(&target.saves)?;
    Ok(report)
}

/// Evaluates a model folder, with an adapter on it if one is given, on a JSONL file.
///
/// # Errors
///
/// If the model, the adapter or the data cannot be used.
pub fn evaluate_model(
    (model, adapter): (&Path, Option<&Path>),
    data: &Path,
    settings: &EvaluationSettings,
    compute: &ComputeSettings,
    observe: &mut dyn FnMut(Event),
) -> Result<EvalReport> {
    let mut rows: Vec<Row> = read_rows(data, &[])?;
    rows.truncate(settings.max_rows.unwrap_or(usize::MAX));
    let encoder = Encoder::read(model)?;
    let loaded = load_adapted(model, adapter, compute)?;
    let total = rows.len();
    Ok(evaluate(&loaded, &encoder, &rows, &settings.parse(), &mut |done| {
        observe(Event::Rows { done, total });
    })?)
}

fn load(model: &Path, settings: &ComputeSettings) -> Result<Model> {
    let (device, compute) = settings.parse()?;
    Ok(match settings.offload {
        // On the CPU the weights are read from the mapped file in either case.
        true if !device.is_cpu()? => Model::load_offloaded(model, device, compute)?,
        _ => Model::load(model, device, compute)?,
    })
}

/// Loads a model folder, and an adapter onto it if one is given.
///
/// # Errors
///
/// If either cannot be used.
pub fn load_adapted(
    model: &Path,
    adapter: Option<&Path>,
    compute: &ComputeSettings,
) -> Result<Model> {
    let mut loaded = load(model, compute)?;
    if let Some(path) = adapter {
        loaded.add_adapter(&Adapter::read(path)?, path)?;
    }
    Ok(loaded)
}
