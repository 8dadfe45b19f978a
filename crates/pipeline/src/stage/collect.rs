//! The first steps of a LoRA fine-tune, for their gradients.

use std::path::Path;
use std::sync::Arc;

use ::finetune::{
    FinetuneError, GradientSink, Gradients, Listeners, RecordSink, StepMetrics,
    collect as collect_steps,
};
use checkpoint::{Activations, Dtype, Manifest, ModelConfig, StepReport};
use evidence::{Evidence, GradientNorms, Hidden, Sensitivity};

use super::StageContext;
use crate::estimate::fit;
use crate::log::{Log, LogTargets};
use crate::stability::StabilityMeter;
use crate::{Choice, CollectSettings, Event, FinetuneMethod, Result, Stability, Stage};

/// What [`collect_record`] leaves.
#[derive(Debug, Clone, Copy)]
pub struct CollectTargets<'a> {
    /// Folder for the record, if one is wanted.
    pub record: Option<&'a Path>,
    /// Folder for the training's state, if it is to go on from there.
    pub state: Option<&'a Path>,
    /// What the record calls the model.
    pub model_name: &'a str,
    /// Where the steps are logged.
    pub log: LogTargets<'a>,
    /// What layers will be chosen by, if it is to be said how far the choice has settled.
    pub choice: Option<Choice>,
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
    /// How the loss answers to each layer.
    pub sensitivity: Sensitivity,
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
    context: StageContext<'_>,
    settings: &CollectSettings,
    targets: CollectTargets<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<Collected> {
    let StageContext { model, compute, seed, .. } = context;
    let config = ModelConfig::read(model)?;
    let meter = match targets.choice {
        Some(choice) => StabilityMeter::new(choice.criterion, choice.request(config.num_layers)?),
        None => StabilityMeter::of_nothing(config.num_layers),
    };
    let examples = context.training_examples(settings.training.max_tokens)?;
    let mut train_settings = settings.training.parse(FinetuneMethod::Lora, seed)?;
    fit(&config, &mut train_settings, compute, &examples.examples)?;
    let auto = settings.auto;
    let settings = ::finetune::CollectSettings {
        steps: settings.steps,
        train: train_settings,
        state: targets.state.map(Path::to_owned),
    };
    let loaded = context.load()?;
    observe(Event::Computing(compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let (num_rows, num_examples) = (examples.counts.rows, examples.counts.examples);
    let record = match targets.record {
        Some(target) => Some(RecordSink::create(target, Dtype::F32)?),
        None => None,
    };
    let mut sink = Collector { record, meter, auto };
    let mut log = Log::new(targets.log, Stage::Collect);
    let listeners = Listeners {
        sink: &mut sink,
        observe: &mut |metrics| {
            log.add(metrics);
            observe(Event::Step(*metrics));
        },
    };
    let found = collect_steps(loaded, &settings, examples, listeners)?;
    log.finish()?;
    let manifest = match sink.record {
        Some(record) => {
            let sources = context.sources(targets.model_name, num_rows)?;
            Some(record.finish(config.num_layers, &settings.train, sources, &found)?)
        }
        None => None,
    };
    let ::finetune::Collected { activations, hidden, sensitivity, steps } = found;
    let (gradients, stability) = sink.meter.finish();
    if stability.as_ref().is_some_and(Stability::is_weak) {
        tracing::warn!(
            "the order of layers differs between halves of the data; more rows or steps would \
             make the choice surer"
        );
    }
    if stability.as_ref().is_some_and(|stability| stability.between_halves.is_none()) {
        tracing::warn!(
            "cannot tell how well the two halves of the data agree on the order of layers; collect more steps"
        );
    }
    let seen: usize = steps.len() * settings.train.batch_rows * settings.train.accumulate;
    if seen > num_examples {
        tracing::warn!(
            "the collected steps took {seen} rows of {num_examples}, so both halves of the data share rows, and their agreement means \
             little"
        );
    }
    let num_layers = config.num_layers;
    Ok(Collected {
        num_layers,
        gradients,
        manifest,
        activations,
        hidden,
        sensitivity,
        stability,
        steps,
    })
}

/// Norms in memory, and a record if one is wanted.
struct Collector {
    record: Option<RecordSink>,
    meter: StabilityMeter,
    /// Stop when the meter says so.
    auto: bool,
}

impl GradientSink for Collector {
    fn step(&mut self, report: StepReport, gradients: &Arc<Gradients>) -> ::finetune::Result<()> {
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
            sensitivity: Some(self.sensitivity),
            ..Evidence::default()
        }
    }
}
