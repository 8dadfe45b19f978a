//! What a run will need, told before it begins, and whether the machine has it.

use std::path::Path;

use checkpoint::{Dtype, ModelConfig, free_disk_bytes};
use dataset::{Content, Encoder, Example, Row};
use finetune::{
    BatchShape, ComputeType, MemoryEstimate, Method, ProductRates, SENSITIVITY_ROWS, TrainSettings,
    Workload, available_memory_bytes, largest_batch, product_rate,
};
use selection::{RepairNeed, Share};
use serde::{Deserialize, Serialize};

use crate::{
    ComputeSettings, FinetuneMethod, LoraLayers, PipelineError, Result, RunSettings, Stage, Until,
};

/// The share of the rate of bare matrix products that whole steps reach; docs/results.md has the
/// measurements.
const OF_PRODUCT_RATE: f64 = 0.5;
/// The larger side of the weight that the rate is measured with.
const LARGEST_WEIGHT: usize = 4096;
/// What a row of the sensitivities takes of what one of a collected step does: the weights' gradients come on top.
const SENSITIVITY_SHARE: f64 = 1.5;
/// States between layers that are held meanwhile.
const HELD_STATES_BYTES: u64 = 512 << 20;
/// Runs of pruned layers that are assumed.
const MAPS: u64 = 2;
/// Rows that are looked at to foretell all.
const SAMPLE_ROWS: usize = 2000;
/// The shortest rows that are advised.
const FEWEST_TOKENS: usize = 128;

/// Rows as tokens, standing for all rows of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    examples: Vec<Example>,
    /// How many examples all rows give.
    count: usize,
}

impl Sample {
    /// The first rows of a file to train on.
    ///
    /// # Errors
    ///
    /// If a row cannot be encoded.
    pub fn training(rows: &[Row], encoder: &Encoder, max_tokens: usize) -> Result<Self> {
        Self::of(rows, |row: &Row| Ok(encoder.examples_of(row, max_tokens)?))
    }

    /// The first rows of a file to evaluate on; of multiple-choice rows all choices count.
    ///
    /// # Errors
    ///
    /// If a row cannot be encoded.
    pub fn evaluation(rows: &[Row], encoder: &Encoder, max_tokens: usize) -> Result<Self> {
        let encode = |row: &Row| {
            let Content::Choice { .. } = row.content else {
                return Ok(encoder.examples_of(row, max_tokens)?);
            };
            let question = encoder.question(row, max_tokens)?;
            let choices: usize = question.choices.iter().map(Vec::len).sum();
            let reply = question.reply.len();
            let all = question.prompt.len() + choices + reply;
            let labelled = (0..all).map(|place| place < choices + reply).collect();
            Ok(vec![Example::whole(vec![0; all], labelled)])
        };
        Self::of(rows, encode)
    }

    fn of(rows: &[Row], encode: impl Fn(&Row) -> Result<Vec<Example>>) -> Result<Self> {
        let mut examples = Vec::new();
        for row in rows.iter().take(SAMPLE_ROWS) {
            examples.extend(encode(row)?);
        }
        let seen = rows.len().clamp(1, SAMPLE_ROWS);
        let count = (examples.len() as f64 / seen as f64 * rows.len() as f64).round() as usize;
        Ok(Self { examples, count })
    }

    /// So many rows of so many tokens each, all of them to learn from.
    pub fn assumed(rows: usize, tokens: usize) -> Self {
        let row = Example::whole(vec![0; tokens], vec![true; tokens]);
        Self { examples: vec![row; rows.min(SAMPLE_ROWS)], count: rows }
    }

    fn tokens(&self) -> f64 {
        self.scale() * self.examples.iter().map(|row| row.tokens.len()).sum::<usize>() as f64
    }

    /// How many examples of the file each of these stands for.
    fn scale(&self) -> f64 {
        self.count as f64 / self.examples.len().max(1) as f64
    }

    fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|row| row.tokens.len()).collect()
    }

    fn labelled(&self) -> usize {
        let of_row = |row: &Example| row.labelled.iter().filter(|&&labelled| labelled).count();
        self.examples.iter().map(of_row).sum()
    }
}

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

struct Estimator {
    compute: ComputeType,
    /// Floating-point operations a second.
    rate: f64,
    /// Memory beyond which layers are computed again.
    limit: Option<u64>,
}

impl Estimator {
    fn training(
        &self,
        stage: Stage,
        config: &ModelConfig,
        train: &TrainSettings,
        sample: &Sample,
        steps: usize,
    ) -> StageEstimate {
        let batch = largest_batch(&sample.examples, train);
        let needs = Workload { config, train, compute: self.compute }.memory(batch);
        let short = self.limit.is_some_and(|limit| limit < needs.unmapped());
        let train = &TrainSettings { remat: train.remat || short, ..train.clone() };
        let work = Workload { config, train, compute: self.compute };
        let rows = (steps * train.batch_rows * train.accumulate) as f64;
        let share = rows / sample.examples.len().max(1) as f64;
        let flops = share * work.flops(&sample.lengths(), sample.labelled());
        StageEstimate {
            steps,
            tokens: share * sample.tokens() / sample.scale(),
            batch,
            remat: train.remat,
            memory: work.memory(batch),
            flops,
            seconds: flops / self.rate,
            ..self.writing(stage)
        }
    }

    fn evaluating(
        &self,
        stage: Stage,
        settings: &RunSettings,
        (config, train): (&ModelConfig, &TrainSettings),
        sample: &Sample,
    ) -> StageEstimate {
        let work = Workload { config, train, compute: self.compute };
        let longest = sample.lengths().into_iter().max().unwrap_or(0);
        let tokens = settings.evaluation.batch_tokens.min(sample.tokens() as usize).max(longest);
        let batch = BatchShape { tokens, longest, labelled: tokens };
        let flops = sample.scale() * work.forward_flops(&sample.lengths(), sample.labelled());
        StageEstimate {
            tokens: sample.tokens(),
            batch,
            memory: work.evaluation_memory(batch),
            flops,
            seconds: flops / self.rate,
            ..self.writing(stage)
        }
    }

    /// Losses with layers skipped, on a few rows: so many passes.
    fn choosing(
        &self,
        config: &ModelConfig,
        train: &TrainSettings,
        sample: &Sample,
        passes: f64,
    ) -> StageEstimate {
        let work = Workload { config, train, compute: self.compute };
        let longest = sample.lengths().into_iter().max().unwrap_or(0);
        let batch =
            BatchShape { tokens: longest.max(crate::stage::BATCH_TOKENS), longest, labelled: 0 };
        let rows = sample.count.min(crate::stage::LOSS_ROWS) as f64;
        let share = rows / sample.examples.len().max(1) as f64;
        let flops = passes * share * work.forward_flops(&sample.lengths(), sample.labelled());
        let tokens = passes * share * sample.tokens() / sample.scale();
        let mut memory = work.evaluation_memory(batch);
        memory.kept += HELD_STATES_BYTES;
        StageEstimate {
            tokens,
            batch,
            memory,
            flops,
            seconds: flops / self.rate,
            ..self.writing(Stage::Score)
        }
    }

    /// Linear maps: a forward pass of some tokens through the dense model, and through the layers that stay
    /// between the first and the last that go.
    fn fitting(
        &self,
        config: &ModelConfig,
        train: &TrainSettings,
        sample: &Sample,
        tokens: usize,
    ) -> StageEstimate {
        let work = Workload { config, train, compute: self.compute };
        let tokens = sample.tokens().min(tokens as f64);
        let longest = sample.lengths().into_iter().max().unwrap_or(0);
        let batch =
            BatchShape { tokens: longest.max(crate::stage::BATCH_TOKENS), longest, labelled: 0 };
        let of_sample = work.forward_flops(&sample.lengths(), 0) / sample.tokens().max(1.0);
        let flops = 1.5 * sample.scale() * of_sample * tokens;
        let side = config.hidden_size as u64;
        // Four states a token, three sums in f64, and the map.
        let held = tokens as u64 * side * 4 * size_of::<f32>() as u64 + 4 * side * side * 8;
        let mut memory = work.evaluation_memory(batch);
        memory.kept += held;
        StageEstimate {
            tokens,
            batch,
            memory,
            disk_bytes: MAPS * side * side * size_of::<f32>() as u64,
            flops,
            seconds: flops / self.rate,
            ..self.writing(Stage::Fit)
        }
    }

    /// A stage that takes hardly any time.
    #[expect(clippy::unused_self, reason = "it stands beside the others")]
    fn writing(&self, stage: Stage) -> StageEstimate {
        StageEstimate {
            stage,
            steps: 0,
            tokens: 0.0,
            batch: BatchShape::default(),
            remat: false,
            memory: MemoryEstimate::default(),
            disk_bytes: 0,
            flops: 0.0,
            seconds: 0.0,
        }
    }
}

/// Makes a training fit the memory there is, on a CPU: computes layers again in the backward pass
/// if it must.
///
/// # Errors
///
/// [`PipelineError::Memory`] if it does not fit even so, with settings that would.
pub(crate) fn fit(
    config: &ModelConfig,
    train: &mut TrainSettings,
    compute: &ComputeSettings,
    examples: &[Example],
) -> Result<()> {
    let (device, kind) = (compute.device, compute.resolve()?);
    let Some(limit) = compute.memory.or_else(available_memory_bytes) else { return Ok(()) };
    if !device.is_cpu()? {
        return Ok(());
    }
    let needs = |train: &TrainSettings, examples: &[Example]| {
        let work = Workload { config, train, compute: kind };
        work.memory(largest_batch(examples, train))
    };
    let asked = needs(train, examples);
    if asked.unmapped() <= limit {
        if asked.total() > limit {
            tracing::warn!(
                weights = bytes_text(asked.mapped),
                "memory does not hold all weights beside the rest; they will be read again and \
                 again, which is slow"
            );
        }
        return Ok(());
    }
    if !train.remat {
        train.remat = true;
        if needs(train, examples).unmapped() <= limit {
            tracing::warn!(
                needed = bytes_text(asked.unmapped()),
                free = bytes_text(limit),
                "memory is short: layers are computed again in the backward pass (--remat)"
            );
            return Ok(());
        }
    }
    let what = format!(
        "it needs about {} beside the mapped weights, even with --remat, and {} are free; {}",
        bytes_text(needs(train, examples).unmapped()),
        bytes_text(limit),
        advice(train, examples, &|train, examples| needs(train, examples).unmapped() <= limit)
    );
    Err(PipelineError::Memory(what))
}

/// The mildest change that fits: fewer rows at a time, then shorter rows.
fn advice(
    train: &TrainSettings,
    examples: &[Example],
    fits: &dyn Fn(&TrainSettings, &[Example]) -> bool,
) -> String {
    let mut less = train.clone();
    while less.batch_rows > 1 {
        less.accumulate *= 2;
        less.batch_rows = less.batch_rows.div_ceil(2);
        if fits(&less, examples) {
            let TrainSettings { batch_rows, accumulate, .. } = less;
            return format!("take --batch {batch_rows} --accumulate {accumulate}");
        }
    }
    let mut most = examples.iter().map(|row| row.tokens.len()).max().unwrap_or(0) / 2;
    while most >= FEWEST_TOKENS {
        let cut = |row: &Example| {
            let labelled = row.labelled.iter().take(most).copied().collect();
            Example::whole(row.tokens.iter().take(most).copied().collect(), labelled)
        };
        let shorter: Vec<Example> = examples.iter().map(cut).collect();
        if fits(&less, &shorter) {
            let accumulate = less.accumulate;
            return format!("take --batch 1 --accumulate {accumulate} --max-length {most}");
        }
        most /= 2;
    }
    match train.method {
        Method::Lora(_) => "take a smaller model, or a machine with more memory".into(),
        _ => "fine-tune by LoRA, or take a machine with more memory".into(),
    }
}

/// Refuses what the disk has no room for.
pub(crate) fn require_disk(folder: &Path, needed: u64) -> Result<()> {
    match free_disk_bytes(folder) {
        Some(free) if free < needed => {
            let (needed, free) = (bytes_text(needed), bytes_text(free));
            let folder = folder.display();
            Err(PipelineError::Disk(format!("{folder}: {needed} are needed and {free} are free")))
        }
        _ => Ok(()),
    }
}

/// Bytes as errors and warnings give them, `1.3 GB`.
fn bytes_text(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use ::finetune::{ComputeChoice, Decay, DeviceChoice};

    use super::*;
    use crate::{LoraTargets, TrainingSettings};

    /// Settings, and rows whose activations outweigh the tiny model.
    fn training() -> (ModelConfig, TrainSettings, Vec<Example>) {
        let config = ModelConfig::read(&testkit::fixture("tiny_llama/model")).unwrap();
        let settings = TrainingSettings {
            epochs: 1.0,
            max_steps: None,
            batch_rows: 8,
            accumulate: 1,
            max_tokens: 1 << 20,
            learning_rate: 1e-4,
            warmup: 0.0,
            decay: Decay::Linear,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            lora_rank: 4,
            lora_alpha: 8.0,
            lora_targets: LoraTargets::all(),
            lora_layers: None,
            remat: false,
            save_every: None,
            update_share: None,
            distil: None,
            teacher: None,
        };
        let rows = Sample::assumed(32, 1 << 17).examples;
        (config, settings.parse(FinetuneMethod::Lora, 0).unwrap(), rows)
    }

    #[test]
    fn what_is_short_of_memory_computes_again_or_is_refused() {
        let (config, train, rows) = training();
        let needs = |train: &TrainSettings| {
            let work = Workload { config: &config, train, compute: ComputeType::BF16 };
            work.memory(largest_batch(&rows, train)).unmapped()
        };
        let (plain, again) =
            (needs(&train), needs(&TrainSettings { remat: true, ..train.clone() }));
        assert!(again < plain);
        let fitted = |memory: u64| {
            let compute = ComputeSettings {
                device: DeviceChoice::Cpu,
                dtype: ComputeChoice::Fixed(ComputeType::BF16),
                memory: Some(memory),
                offload: false,
            };
            let mut train = train.clone();
            fit(&config, &mut train, &compute, &rows).map(|()| train.remat)
        };
        assert!(!fitted(plain).unwrap());
        assert!(fitted(plain - 1).unwrap());
        assert!(fitted(again).unwrap());
        let refused = fitted(again - 1).unwrap_err().to_string();
        assert!(refused.contains("take --batch 4 --accumulate 2"), "{refused}");
        // The settings it names do fit.
        let less = TrainSettings { batch_rows: 4, accumulate: 2, remat: true, ..train.clone() };
        assert!(needs(&less) < again);
        let refused = fitted(needs(&TrainSettings { batch_rows: 1, ..less }) - 1).unwrap_err();
        assert!(refused.to_string().contains("--batch 1 --accumulate 8 --max-length"), "{refused}");
        let refused = fitted(1).unwrap_err().to_string();
        assert!(refused.contains("a smaller model"), "{refused}");
    }
}
