//! What a run will need, told before it begins, and whether the machine has it.

mod fit;
mod sample;
mod stages;

use std::path::Path;

use checkpoint::{Dtype, ModelConfig};
use finetune::{
    BatchShape, ComputeType, MemoryEstimate, ProductRates, SENSITIVITY_ROWS, TrainSettings,
    Workload, available_memory_bytes, product_rate,
};
use selection::{RepairNeed, Share};
use serde::{Deserialize, Serialize};

use crate::{FinetuneMethod, LoraLayers, PipelineError, Result, RunSettings, Stage, Until};

pub(crate) use fit::{fit, require_disk};
pub use sample::Sample;
use stages::Estimator;

/// The share of the rate of bare matrix products that whole steps reach; docs/results.md has the
/// measurements.
const OF_PRODUCT_RATE: f64 = 0.5;
/// The larger side of the weight that the rate is measured with.
const LARGEST_WEIGHT: usize = 4096;
/// What a row of the sensitivities takes of what one of a collected step does: the weights' gradients come on top.
const SENSITIVITY_SHARE: f64 = 1.5;

/// One stage's needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageEstimate {
    /// The stage.
    pub stage: Stage,
    /// Optimizer steps, or 0.
    pub steps: usize,
    /// Tokens that go through the model.
    pub tokens: f64,
    /// The largest forward pass.
    pub batch: BatchShape,
    /// Whether the backward pass computes layers again, by `--remat` or for want of memory.
    pub remat: bool,
    /// Memory at its peak, on a CPU.
    pub memory: MemoryEstimate,
    /// Bytes it leaves on the disk.
    pub disk_bytes: u64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds, at the rate measured here.
    pub seconds: f64,
}

/// A whole run's needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Every stage that takes time or room.
    pub stages: Vec<StageEstimate>,
    /// Memory of the stage that needs most, on a CPU.
    pub memory_bytes: u64,
    /// Bytes left on the disk.
    pub disk_bytes: u64,
    /// Seconds of all stages.
    pub seconds: f64,
    /// Memory there is, if the system says.
    pub available_memory_bytes: Option<u64>,
    /// The type of the products.
    pub dtype: String,
    /// Another type of products, if it would take less than half the time.
    pub faster: Option<FasterType>,
}

/// A type of products that would take less time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FasterType {
    /// Its name.
    pub dtype: String,
    /// Seconds of all stages.
    pub seconds: f64,
}

/// Foretells a run from its settings, its model's configuration and its rows.
///
/// # Errors
///
/// If the settings cannot be used, or the device to measure the speed of.
pub fn estimate(
    settings: &RunSettings,
    config: &ModelConfig,
    train: &Sample,
    eval: Option<&Sample>,
) -> Result<Estimate> {
    let (device, compute) = (settings.compute.device, settings.compute.resolve()?);
    let on_cpu = device.is_cpu()?;
    // Of a large model, a part that says as much in a fraction of the time.
    let weight =
        (config.intermediate_size.min(LARGEST_WEIGHT), config.hidden_size.min(LARGEST_WEIGHT));
    let measured = |compute| Ok::<_, PipelineError>(product_rate(weight, device, compute)?);
    let rates =
        ProductRates { bf16: measured(ComputeType::BF16)?, f32: measured(ComputeType::F32)? };
    let rate = rates.of(compute) * OF_PRODUCT_RATE;
    let count = match settings.prune {
        Share::Layers(0) => 0, // What fine-tuning alone would take.
        share => share.layers_of(config.num_layers)?,
    };
    let retained: Vec<usize> = (0..config.num_layers - count).collect();
    let pruned = ModelConfig::from_json(config.with_layers(&retained), Path::new("config.json"))?;
    let stored = |config: &ModelConfig| {
        config.parameters() * config.dtype.unwrap_or(Dtype::BF16).size() as u64
    };
    let available = settings.compute.memory.or_else(available_memory_bytes);
    let of = Estimator { compute, rate, limit: available.filter(|_| on_cpu) };

    let collecting = settings.collecting();
    let collect = collecting.training.parse(FinetuneMethod::Lora, settings.seed)?;
    let most = steps_of(&collect, train.count);
    let most = if settings.goes_on() { most.div_ceil(2) } else { most };
    let collected = collecting.steps.min(most);
    let mut stages = vec![of.training(Stage::Collect, config, &collect, train, collected)];
    stages[0].disk_bytes =
        collected as u64 * Workload { config, train: &collect, compute }.trained_parameters() * 4;
    let seen = collected * collect.batch_rows * collect.accumulate;
    let more = SENSITIVITY_SHARE * seen.min(SENSITIVITY_ROWS) as f64 / seen.max(1) as f64;
    stages[0].flops *= 1.0 + more;
    stages[0].seconds *= 1.0 + more;
    let choices = settings.choices();
    let by_losses = choices.iter().filter(|choice| choice.needs_losses());
    let passes: f64 = by_losses.map(|choice| choice.criterion.passes(count)).sum();
    if passes > 0.0 && count > 0 {
        stages.push(of.choosing(config, &collect, train, passes));
    }
    if settings.repair.needs(RepairNeed::Fit) && count > 0 {
        stages.push(of.fitting(config, &collect, train, settings.linear_map.tokens));
    }
    stages.push(StageEstimate { disk_bytes: stored(&pruned), ..of.writing(Stage::Prune) });
    if settings.finetune != FinetuneMethod::None {
        let tune = foretold(settings, &pruned)?;
        let steps = steps_of(&tune, train.count).min(tune.max_steps.unwrap_or(usize::MAX));
        let left = steps.saturating_sub(if settings.goes_on() { collected } else { 0 });
        if settings.criterion.races() && count > 0 {
            let extra = steps_in_vain(settings.criterion.criteria().len(), left);
            stages.push(of.training(Stage::Race, &pruned, &tune, train, extra));
        }
        let mut of_model = |stage, config: &ModelConfig, merged: bool| {
            let tune = &foretold(settings, config)?;
            let mut found = of.training(stage, config, tune, train, left);
            let trained = Workload { config, train: tune, compute }.trained_parameters();
            found.disk_bytes = match settings.finetune.trains_weights() {
                true => stored(config),
                false => trained * 4 + if merged { stored(config) } else { 0 },
            };
            stages.push(found);
            Ok::<_, PipelineError>(())
        };
        of_model(Stage::Finetune, &pruned, settings.save_merged)?;
        if settings.with_dense {
            of_model(Stage::DenseFinetune, config, false)?;
        }
        if let Some(eval) = eval {
            stages.push(of.evaluating(Stage::EvaluateTuned, settings, (&pruned, &tune), eval));
            if settings.with_dense {
                let stage = Stage::EvaluateDenseTuned;
                stages.push(of.evaluating(stage, settings, (config, &tune), eval));
            }
        }
    }
    if let Some(eval) = eval {
        stages.push(of.evaluating(Stage::EvaluateDense, settings, (config, &collect), eval));
        stages.push(of.evaluating(Stage::EvaluatePruned, settings, (&pruned, &collect), eval));
    }
    let seconds = stages.iter().map(|stage| stage.seconds).sum::<f64>();
    let other = seconds * rates.of(compute) / rates.of(rates.faster());
    Ok(Estimate {
        dtype: compute.to_string(),
        faster: (other < seconds / 2.0)
            .then(|| FasterType { dtype: rates.faster().to_string(), seconds: other }),

        memory_bytes: stages.iter().map(|stage| stage.memory.total()).max().unwrap_or(0),
        disk_bytes: stages.iter().map(|stage| stage.disk_bytes).sum(),
        seconds,
        available_memory_bytes: available,
        stages,
    })
}

/// Steps that the losers of a race have trained, where all candidates chose other layers.
fn steps_in_vain(candidates: usize, steps: usize) -> usize {
    let round = Until::Round(1).step(0, steps);
    let (mut running, mut rounds, mut taken) = (candidates, 0, 0);
    while running > 1 {
        rounds += 1;
        taken += running * round;
        running = running.div_ceil(2);
    }
    taken - rounds * round
}

/// How a model will be trained. Which layers get adapters by their scores is not known before: those at the bottom are assumed,
/// which gradients have the longest way to.
fn foretold(settings: &RunSettings, config: &ModelConfig) -> Result<TrainSettings> {
    let mut training = settings.training.clone();
    if training.lora_layers == Some(LoraLayers::Auto) {
        let layers = (0..config.num_layers.div_ceil(2)).collect();
        training.lora_layers = Some(LoraLayers::These(layers));
    }
    training.parse(settings.finetune, settings.seed)
}

/// How many steps a schedule spans.
fn steps_of(train: &TrainSettings, rows: usize) -> usize {
    let batch = (train.batch_rows * train.accumulate).max(1);
    ((train.epochs * rows.div_ceil(batch) as f64).round() as usize).max(1)
}
