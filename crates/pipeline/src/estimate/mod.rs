//! What a run will need, told before it begins, and whether the machine has it.

mod fit;
mod run;
mod sample;
mod stages;
#[cfg(test)]
pub(crate) mod tests;

use checkpoint::ModelConfig;
use finetune::{
    BatchShape, ComputeType, MemoryEstimate, ProductRates, WeightSize, available_memory_bytes,
    product_rate,
};
use serde::{Deserialize, Serialize};

use crate::{ComputeSettings, PipelineError, Result, RunSettings, Stage};

pub(crate) use fit::{fit, require_disk};
use run::Foretold;
pub(crate) use run::Known;
pub use sample::Sample;
use stages::Estimator;

/// The share of the rate of bare matrix products that whole steps reach; docs/results.md has the
/// measurements.
const OF_PRODUCT_RATE: f64 = 0.5;
/// The larger side of the weight that the rate is measured with.
const LARGEST_WEIGHT: usize = 4096;

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
    /// Bytes on the disk that go with its end: what a training would be resumed from.
    #[serde(default)]
    pub passing_disk_bytes: u64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds, at the rate measured here.
    pub seconds: f64,
}

impl StageEstimate {
    /// Counts another's work as its own; what it needs in memory is less, and what it leaves nothing.
    fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.flops += other.flops;
        self.seconds += other.seconds;
    }
}

/// A whole run's needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Every stage that takes time or room.
    pub stages: Vec<StageEstimate>,
    /// Memory of the stage that needs most, on a CPU.
    pub memory_bytes: u64,
    /// Bytes on the disk when it is fullest: all that stages leave, and the largest state of a training under way.
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
/// If the settings cannot be used, a teacher's configuration, or the device to measure the speed of.
pub fn estimate(
    settings: &RunSettings,
    config: &ModelConfig,
    train: &Sample,
    eval: Option<&Sample>,
) -> Result<Estimate> {
    let rates = measured_rates(&settings.compute, config)?;
    foretell(Known { settings, config, train, eval }, rates)
}

/// The rates of products with a model's largest weights, measured here.
pub(crate) fn measured_rates(
    compute: &ComputeSettings,
    config: &ModelConfig,
) -> Result<ProductRates> {
    let device = compute.device;
    // Of a large model, a part that says as much in a fraction of the time.
    let weight = WeightSize {
        out: config.intermediate_size.min(LARGEST_WEIGHT),
        inner: config.hidden_size.min(LARGEST_WEIGHT),
    };
    let measured = |compute| Ok::<_, PipelineError>(product_rate(weight, device, compute)?);
    Ok(ProductRates { bf16: measured(ComputeType::BF16)?, f32: measured(ComputeType::F32)? })
}

/// Bytes on the disk when it is fullest.
fn fullest(stages: &[StageEstimate]) -> u64 {
    let left = stages.iter().map(|stage| stage.disk_bytes).fold(0, u64::saturating_add);
    let passing = stages.iter().map(|stage| stage.passing_disk_bytes).max().unwrap_or(0);
    left.saturating_add(passing)
}

/// As [`estimate`], at rates that are known.
pub(crate) fn foretell(known: Known<'_>, rates: ProductRates) -> Result<Estimate> {
    let compute_settings = &known.settings.compute;
    let compute = compute_settings.resolve()?;
    let on_cpu = compute_settings.device.is_cpu()?;
    let rate = rates.of(compute) * OF_PRODUCT_RATE;
    let available = compute_settings.memory.or_else(available_memory_bytes);
    let of = Estimator {
        compute,
        rounding: known.settings.compute.rounding(),
        rate,
        limit: available.filter(|_| on_cpu),
    };
    let stages = Foretold::new(known, of)?.stages()?;
    let seconds = stages.iter().map(|stage| stage.seconds).sum::<f64>();
    let other = seconds * rates.of(compute) / rates.of(rates.faster());
    Ok(Estimate {
        dtype: compute.to_string(),
        faster: (other < seconds / 2.0)
            .then(|| FasterType { dtype: rates.faster().to_string(), seconds: other }),
        memory_bytes: stages.iter().map(|stage| stage.memory.total()).max().unwrap_or(0),
        disk_bytes: fullest(&stages),
        seconds,
        available_memory_bytes: available,
        stages,
    })
}
