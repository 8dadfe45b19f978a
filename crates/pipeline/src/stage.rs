//! The stages that need the engine, each from files to files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{
    Activations, Adapter, DataSource, Dtype, Manifest, ModelConfig, ModelSource,
    require_companions, sha256_file,
};
use dataset::{Encoded, Encoder, Example, Row, Sampler};
use evidence::{Evidence, GradientNorms, Hidden, LossProbe};
use finetune::{
    Continuation, Evaluated, FinetuneError, GradientSink, Gradients, MapSettings, Model,
    RecordSink, SkipProbe, StepMetrics, TrainReport, Trainer, collect, evaluate, fit_linear_maps,
    save_adapter, save_checkpoint,
};
use repair::{FittedRun, MapsHeader, MapsWriter};
use selection::{Criterion, Keep, Plan, Share};

use crate::data::{digest_data, read_data};
use crate::estimate::fit;
use crate::log::{Log, LogTargets};
use crate::stability::StabilityMeter;
use crate::{
    CollectSettings, ComputeSettings, EvaluationSettings, Event, FinetuneMethod, HeldOut,
    LinearMapSettings, PipelineError, Result, Stability, Stage, TrainingSettings,
};

/// What a stage computes with.
#[derive(Debug, Clone, Copy)]
pub struct StageInputs<'a> {
    /// The model's folder.
    pub model: &'a Path,
    /// The data, a file or a folder of them.
    pub data: &'a Path,
    /// Fields of its rows to skip.
    pub ignored: &'a [String],
    /// What of the rows is held out of training, and by which seed.
    pub held_out: Option<(HeldOut, u64)>,
}

impl StageInputs<'_> {
    fn all_rows(&self) -> Result<Vec<Row>> {
        read_data(self.data, self.ignored)
    }

    /// The rows to train on, and those held out.
    fn rows(&self) -> Result<(Vec<Row>, Vec<Row>)> {
        let rows = self.all_rows()?;
        match self.held_out {
            Some((share, seed)) => share.split(rows, seed),
            None => Ok((rows, Vec::new())),
        }
    }
}

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
    /// What never is.
    pub keep: Keep,
}

/// What [`collect_record`] found.
#[derive(Debug)]
pub struct Collected {
    /// How many layers the model has.
    pub num_layers: usize,
    /// Norms of every step's gradients.
    pub gradients: GradientNorms,
    /// The record's manifest, if one was written.
    pub manifest: Option<Manifest>,
    /// The layers' block influence.
    pub activations: Activations,
    /// How alike hidden states are.
    pub hidden: Hidden,
    /// How far scores of the gradients can be trusted, if layers are chosen by them.
    pub stability: Option<Stability>,
    /// Every step.
    pub steps: Vec<StepMetrics>,
}

/// Takes the first steps of a LoRA fine-tune for their gradients (method.md §1).
///
/// # Errors
///
/// If the model, the data or the settings cannot be used, training fails, or the disk refuses.
pub fn collect_record(
    inputs: StageInputs<'_>,
    settings: &CollectSettings,
    compute: &ComputeSettings,
    seed: u64,
    targets: CollectTargets<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<Collected> {
    let StageInputs { model, data, .. } = inputs;
    let (rows, _) = inputs.rows()?;
    let config = ModelConfig::read(model)?;
    let request =
        targets.criterion.request(config.num_layers, targets.prune, targets.keep, seed)?;
    let (encoder, num_rows) = (read_encoder(model)?, rows.len());
    let examples = encoder.examples(&rows, settings.training.max_tokens)?;
    let mut train_settings = settings.training.parse(FinetuneMethod::Lora, seed)?;
    fit(&config, &mut train_settings, compute, &examples.examples)?;
    let auto = settings.auto;
    let settings = finetune::CollectSettings {
        steps: settings.steps,
        train: train_settings,
        state: targets.state.map(Path::to_owned),
    };
    let loaded = load(model, compute)?;
    observe(Event::Computing(compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let num_examples = examples.examples.len();
    let record = match targets.record {
        Some(target) => Some(RecordSink::create(target, Dtype::F32)?),
        None => None,
    };
    let meter = StabilityMeter::new(targets.criterion, request);
    let mut sink = Collector { record, meter, auto };
    let found = collect(loaded, &settings, examples, &mut sink, &mut |metrics| {
        observe(Event::Step(*metrics));
    })?;
    let manifest = match sink.record {
        Some(record) => {
            let sources = (
                model_source(model, targets.model_name)?,
                DataSource {
                    path: data.display().to_string(),
                    sha256: digest_data(data)?,
                    rows: num_rows,
                },
            );
            Some(record.finish(config.num_layers, &settings.train, sources, &found)?)
        }
        None => None,
    };
    let finetune::Collected { activations, hidden, steps } = found;
    let (gradients, stability) = sink.meter.finish();
    if let Some(stability) = stability.filter(Stability::is_weak) {
        tracing::warn!(
            tau = stability.between_halves,
            "the order of layers differs between halves of the data; more rows or steps would \
             make the choice surer"
        );
    }
    let seen: usize = steps.len() * settings.train.batch_rows * settings.train.accumulate;
    if seen > num_examples {
        tracing::warn!(
            examples = num_examples,
            seen,
            "the data are so few that rows were seen again; the halves share them, and their \
             agreement says little"
        );
    }
    let num_layers = config.num_layers;
    Ok(Collected { num_layers, gradients, manifest, activations, hidden, stability, steps })
}

/// Norms in memory, and a record if one is wanted.
struct Collector {
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
        if let Some(record) = &mut self.record {
            record.step(report, gradients)?;
        }
        self.meter.add(gradients).map_err(|error| FinetuneError::Sink(error.into()))
    }

    fn enough(&self) -> bool {
        self.auto && self.meter.settled()
    }
}

impl Collected {
    /// What selectors read of it.
    pub fn evidence<'a>(self) -> Evidence<'a> {
        Evidence {
            num_layers: self.num_layers,
            gradients: Some(self.gradients),
            activations: Some(self.activations),
            hidden: Some(self.hidden),
            ..Evidence::default()
        }
    }
}

/// What [`fit_maps`] fits, and where to.
#[derive(Debug, Clone, Copy)]
pub struct MapsTarget<'a> {
    /// Whose runs of pruned layers are replaced.
    pub plan: &'a Plan,
    /// What the maps call the model.
    pub model_name: &'a str,
    /// Tokens of a row at most.
    pub max_tokens: usize,
    /// The adapters that the model has by then; none if it is to have none.
    pub adapters: Option<StateOf<'a>>,
    /// Folder for the maps.
    pub target: &'a Path,
}

/// What a training left.
#[derive(Debug, Clone, Copy)]
pub struct StateOf<'a> {
    /// Where it left it.
    pub folder: &'a Path,
    /// Its settings.
    pub training: &'a TrainingSettings,
}

/// Fits a linear map in the place of each run of pruned layers (method.md §8).
///
/// A run that begins at layer 0 has no layer before it to take a map in, and is left without.
///
/// # Errors
///
/// If the model, the rows or the state cannot be used, states overflow, or the disk refuses.
pub fn fit_maps(
    inputs: StageInputs<'_>,
    settings: &LinearMapSettings,
    compute: &ComputeSettings,
    seed: u64,
    target: MapsTarget<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<MapsHeader> {
    let StageInputs { model, data, .. } = inputs;
    let MapsTarget { plan, model_name, max_tokens, adapters, target } = target;
    plan.require_layers(ModelConfig::read(model)?.num_layers)?;
    let (rows, _) = inputs.rows()?;
    let examples = read_encoder(model)?.examples(&rows, max_tokens)?;
    let calibration = first_examples(&examples, seed, settings.tokens);
    let loaded = load_dense(model, compute, adapters, (&examples, seed))?;
    observe(Event::Computing(compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let sources = (
        model_source(model, model_name)?,
        DataSource {
            path: data.display().to_string(),
            sha256: digest_data(data)?,
            rows: rows.len(),
        },
    );
    let runs = plan.runs();
    if let Some((None, run)) = runs.first() {
        tracing::warn!(
            layers = ?run,
            "no layer stands before these to take a linear map in; they are dropped without one"
        );
    }
    let settings_of_maps = MapSettings { runs, ridge: settings.ridge, batch_tokens: BATCH_TOKENS };
    let header = MapsHeader::new(plan, loaded.config().hidden_size, settings.ridge, sources);
    let mut writer = MapsWriter::create(target, plan, header)?;
    let tokens = fit_linear_maps(&loaded, &calibration, &settings_of_maps, &mut |map| {
        let run = FittedRun {
            receiver: map.receiver,
            first: *map.run.start(),
            last: *map.run.end(),
            error_before: map.error_before,
            error_after: map.error_after,
        };
        writer.write(run, &map.matrix)?;
        observe(Event::Fitted(run));
        Ok::<_, PipelineError>(())
    })?;
    Ok(writer.finish(tokens)?)
}

/// The dense model with the adapters it has by then.
fn load_dense(
    model: &Path,
    compute: &ComputeSettings,
    adapters: Option<StateOf<'_>>,
    (examples, seed): (&Encoded, u64),
) -> Result<Model> {
    let loaded = load(model, compute)?;
    let Some(StateOf { folder, training }) = adapters else { return Ok(loaded) };
    let num_layers = loaded.config().num_layers;
    let train = training.parse(FinetuneMethod::Lora, seed)?;
    let mut trainer = Trainer::new(loaded, train, examples.clone())?;
    let (folder, origin) = (folder.to_owned(), (0..num_layers).collect());
    trainer.go_on(&Continuation { folder, num_layers, origin })?;
    Ok(trainer.into_model())
}

/// What losses with layers skipped are computed of.
#[derive(Debug, Clone, Copy)]
pub struct LossesOf<'a> {
    /// The dense model and the rows; of these the ones held out, or, if none are, the first 128.
    pub inputs: StageInputs<'a>,
    /// Tokens of a row at most.
    pub max_tokens: usize,
    /// The adapters that the model has by then; none if it is to have none.
    pub adapters: Option<StateOf<'a>>,
}

/// Rows that losses are computed on, if none are held out for them.
pub(crate) const LOSS_ROWS: usize = HeldOut::MOST;

/// Hands losses with layers skipped to `choose` (method.md §3).
///
/// # Errors
///
/// If the model or the rows cannot be used, or `choose` fails.
pub fn with_losses<T>(
    of: LossesOf<'_>,
    compute: &ComputeSettings,
    seed: u64,
    observe: &mut dyn FnMut(Event),
    choose: impl FnOnce(&mut dyn LossProbe) -> Result<T>,
) -> Result<T> {
    let LossesOf { inputs, max_tokens, adapters } = of;
    let (train, held_out) = inputs.rows()?;
    let encoder = read_encoder(inputs.model)?;
    let trained_on = encoder.examples(&train, max_tokens)?;
    let (of_held_out, most) = match held_out.is_empty() {
        true => (None, LOSS_ROWS),
        false => (Some(encoder.examples(&held_out, max_tokens)?), usize::MAX),
    };
    let examples = &of_held_out.as_ref().unwrap_or(&trained_on).examples;
    let order = Sampler::new(examples.len(), examples.len(), seed).epoch(0);
    let rows: Vec<&Example> =
        order.into_iter().take(most).map(|number| &examples[number]).collect();
    let model = load_dense(inputs.model, compute, adapters, (&trained_on, seed))?;
    observe(Event::Computing(compute.computing()?));
    let mut probe = SkipProbe::new(&model, &rows, BATCH_TOKENS)?;
    choose(&mut probe)
}

/// Tokens of a forward pass in which nothing is kept for a backward one.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// The first examples in the order of training that have so many tokens together; all of them if they have fewer.
fn first_examples(examples: &Encoded, seed: u64, tokens: usize) -> Vec<&Example> {
    let all = &examples.examples;
    let mut seen = 0;
    let order = Sampler::new(all.len(), all.len(), seed).epoch(0);
    order
        .into_iter()
        .map(|number| &all[number])
        .take_while(|example| {
            let wanted = seen < tokens;
            seen += example.tokens.len();
            wanted
        })
        .collect()
}

fn model_source(model: &Path, name: &str) -> Result<ModelSource> {
    let config_sha256 = sha256_file(&model.join("config.json"))?;
    Ok(ModelSource { name: name.to_owned(), config_sha256 })
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

/// Fine-tunes a model folder on data.
///
/// # Errors
///
/// If the model, the data or the settings cannot be used, training fails, or the disk refuses.
pub fn finetune_model(
    inputs: StageInputs<'_>,
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
    let model = inputs.model;
    let writes_checkpoint = target.merged.is_some()
        || matches!(method, FinetuneMethod::Full | FinetuneMethod::HeadAndLast(_));
    if writes_checkpoint {
        require_companions(model)?;
    }
    let encoder = read_encoder(model)?;
    let examples = encoder.examples(&inputs.rows()?.0, settings.max_tokens)?;
    let mut train_settings = settings.parse(method, seed)?;
    fit(&ModelConfig::read(model)?, &mut train_settings, compute, &examples.examples)?;
    let loaded = load(model, compute)?;
    observe(Event::Computing(compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let mut trainer = Trainer::new(loaded, train_settings, examples)?;
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
            // The adapter may be moved, or loaded from elsewhere.
            let base = std::path::absolute(model)?;
            save_adapter(&tuned, &base.display().to_string(), &target.target)?;
        }
    }
    Trainer::forget_saves(&target.saves)?;
    Ok(report)
}

/// Evaluates a model folder, with an adapter on it if one is given, on data.
///
/// # Errors
///
/// If the model, the adapter or the data cannot be used.
pub fn evaluate_model(
    inputs: StageInputs<'_>,
    adapter: Option<&Path>,
    settings: &EvaluationSettings,
    compute: &ComputeSettings,
    observe: &mut dyn FnMut(Event),
) -> Result<Evaluated> {
    let model = inputs.model;
    let mut rows = inputs.all_rows()?;
    rows.truncate(settings.max_rows.unwrap_or(usize::MAX));
    let encoder = read_encoder(model)?;
    let loaded = load_adapted(model, adapter, compute)?;
    observe(Event::Computing(compute.computing()?));
    let total = rows.len();
    Ok(evaluate(&loaded, &encoder, &rows, &settings.parse(), &mut |done| {
        observe(Event::Rows { done, total });
    })?)
}

/// Reads a model folder's tokenizer and chat template.
///
/// # Errors
///
/// If either cannot be used, or the tokenizer has ids that the model's embedding does not have. An
/// embedding with more is padded, and fine.
pub fn read_encoder(model: &Path) -> Result<Encoder> {
    let embedding = ModelConfig::read(model)?.vocab_size;
    let encoder = Encoder::read(model)?;
    let tokens = encoder.largest_id() as usize + 1;
    if tokens > embedding {
        let path = model.join("tokenizer.json");
        return Err(PipelineError::Tokenizer { path, tokens, embedding });
    }
    Ok(encoder)
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
