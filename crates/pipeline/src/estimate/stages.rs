//! What one stage will need.

use checkpoint::ModelConfig;
use finetune::{
    BatchShape, ComputeType, DistilSettings, MemoryEstimate, Rounding, SIDE_BY_SIDE, TrainSettings,
    Workload, largest_batch,
};

use super::{Sample, StageEstimate};
use crate::Stage;
use crate::stage::{BATCH_TOKENS, RETRAINING_STEPS};

/// The rate at which a token's pass reads weights from a computer's memory, about.
const READ_BYTES_PER_SECOND: f64 = 1e10;
/// What a layer's small operations take for a token that is generated: attention to its row's cache, norms, the start of each
/// product.
const SMALL_OPERATIONS_SECONDS: f64 = 4e-4;
/// Runs of pruned layers that are assumed.
pub(super) const RUNS: usize = 2;
/// What AdamW keeps for a weight, in f32: itself and two means.
const STATE_BYTES: u64 = 12;
/// While a state is saved the one before is still there.
const STATES: u64 = 2;
/// States between layers that are held meanwhile.
const HELD_STATES_BYTES: u64 = 512 << 20;

/// A model, and what of it trains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) train: &'a TrainSettings,
}

/// A training of one model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Training<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) sample: &'a Sample,
    pub(super) steps: usize,
    /// Who teaches, if anybody does.
    pub(super) teaching: Option<&'a Teaching>,
}

/// A teacher, and what is asked of it.
#[derive(Debug, Clone)]
pub(super) struct Teaching {
    pub(super) config: ModelConfig,
    /// Bytes of its adapters in memory.
    pub(super) adapter_bytes: u64,
    pub(super) distil: DistilSettings,
    /// Whether the student reads its frozen weights in this one's place.
    pub(super) shares: bool,
}

/// Forward passes over a few rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes {
    pub(super) rows: usize,
    pub(super) count: f64,
}

/// What is fitted before pruning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fitting {
    /// On how many tokens at most.
    pub(super) tokens: usize,
    /// For how many choices of layers.
    pub(super) choices: usize,
    /// Whether layers are trained, which takes most of the time.
    pub(super) retrains: bool,
}

/// What stages are foretold with.
pub(super) struct Estimator {
    pub(super) compute: ComputeType,
    /// Which frozen weights are rounded to fewer bits.
    pub(super) rounding: Rounding,
    /// Floating-point operations a second.
    pub(super) rate: f64,
    /// Memory beyond which layers are computed again.
    pub(super) limit: Option<u64>,
}

impl Estimator {
    pub(super) fn work<'a>(&self, subject: Subject<'a>) -> Workload<'a> {
        let Subject { config, train } = subject;
        Workload { config, train, compute: self.compute, rounding: self.rounding }
    }

    pub(super) fn training(&self, stage: Stage, training: Training<'_>) -> StageEstimate {
        let Training { subject, sample, steps, teaching } = training;
        let Subject { config, train } = subject;
        let batch = largest_batch(&sample.examples, train);
        let needs = self.work(subject).memory(batch);
        // As the training itself decides, which has no teacher yet then.
        let short = self.limit.is_some_and(|limit| limit < needs.unmapped());
        let train = &TrainSettings { remat: train.remat || short, ..train.clone() };
        let work = self.work(Subject { config, train });
        let rows = (steps * train.batch_rows * train.accumulate) as f64;
        let share = rows / sample.examples.len().max(1) as f64;
        let mut flops = share * work.flops(&sample.lengths(), sample.labelled());
        let mut memory = work.memory(batch);
        if let Some(teaching) = teaching {
            let teacher = Workload { config: &teaching.config, ..work };
            let labelled = if teaching.distil.weight > 0.0 { sample.labelled() } else { 0 };
            flops += share * teacher.forward_flops(&sample.lengths(), labelled);
            teaching.add_to(&mut memory, teacher.evaluation_memory(batch), batch);
        }
        StageEstimate {
            steps,
            tokens: share * sample.tokens() / sample.scale(),
            batch,
            remat: train.remat,
            memory,
            passing_disk_bytes: if steps == 0 { 0 } else { STATES * self.state(subject) },
            flops,
            seconds: flops / self.rate,
            ..self.writing(stage)
        }
    }

    /// Bytes of a training's saved state.
    pub(super) fn state(&self, subject: Subject<'_>) -> u64 {
        STATE_BYTES * self.work(subject).trained_parameters()
    }

    /// Seconds that greedy replies take, token by token, of several rows side by side.
    pub(super) fn generating(&self, subject: Subject<'_>, tokens: f64) -> f64 {
        let config = subject.config;
        let weights = config.parameters() * config.dtype.map_or(2, |dtype| dtype.size() as u64);
        let read = weights as f64 / READ_BYTES_PER_SECOND;
        let computed = 2.0 * config.parameters() as f64 / self.rate;
        let small = config.num_layers as f64 * SMALL_OPERATIONS_SECONDS;
        tokens * ((read / SIDE_BY_SIDE as f64).max(computed) + small)
    }

    pub(super) fn evaluating(
        &self,
        stage: Stage,
        subject: Subject<'_>,
        sample: &Sample,
        batch_tokens: usize,
    ) -> StageEstimate {
        let work = self.work(subject);
        let longest = sample.lengths().into_iter().max().unwrap_or(0);
        let tokens = batch_tokens.min(sample.tokens() as usize).max(longest);
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

    /// How a model stands on a few rows in the middle of its training.
    pub(super) fn looking(
        &self,
        subject: Subject<'_>,
        sample: &Sample,
        passes: Passes,
    ) -> StageEstimate {
        let share = passes.rows as f64 * passes.count / sample.examples.len().max(1) as f64;
        let work = self.work(subject);
        let flops = share * work.forward_flops(&sample.lengths(), sample.labelled());
        StageEstimate {
            tokens: share * sample.tokens() / sample.scale(),
            flops,
            seconds: flops / self.rate,
            ..self.writing(Stage::Finetune)
        }
    }

    /// Losses with layers skipped.
    pub(super) fn choosing(
        &self,
        subject: Subject<'_>,
        sample: &Sample,
        passes: Passes,
    ) -> StageEstimate {
        let batch = packs_of(sample);
        let mut memory = self.work(subject).evaluation_memory(batch);
        memory.kept += HELD_STATES_BYTES;
        StageEstimate {
            stage: Stage::Score,
            batch,
            memory,
            ..self.looking(subject, sample, passes)
        }
    }

    /// What a repair is fitted: a forward pass of some tokens through the dense model, and through the layers that stay
    /// between the first and the last that go; and, if layers are trained, their steps.
    pub(super) fn fitting(
        &self,
        subject: Subject<'_>,
        sample: &Sample,
        fitting: Fitting,
    ) -> StageEstimate {
        let Fitting { tokens, choices, retrains } = fitting;
        let work = self.work(subject);
        let tokens = sample.tokens().min(tokens as f64);
        let batch = packs_of(sample);
        let of_sample = work.forward_flops(&sample.lengths(), 0) / sample.tokens().max(1.0);
        let of_token = sample.scale() * of_sample;
        let mut flops = 1.5 * of_token * tokens;
        let side = subject.config.hidden_size as u64;
        // Four states a token, three sums in f64, and the map.
        let held = tokens as u64 * side * 4 * size_of::<f32>() as u64 + 4 * side * side * 8;
        let mut memory = work.evaluation_memory(batch);
        memory.kept += held;
        if retrains {
            let pack = tokens.min(batch.tokens as f64);
            // Forward, and back to the layer's input and to its weights.
            let of_layer = 3.0 * of_token / subject.config.num_layers as f64;
            flops += (RUNS * RETRAINING_STEPS) as f64 * pack * of_layer;
        }
        let flops = choices as f64 * flops;
        StageEstimate {
            tokens: choices as f64 * tokens,
            batch,
            memory,
            disk_bytes: RUNS as u64 * side * side * size_of::<f32>() as u64,
            flops,
            seconds: flops / self.rate,
            ..self.writing(Stage::Fit)
        }
    }

    /// A stage that takes hardly any time.
    #[expect(clippy::unused_self, reason = "it stands beside the others")]
    pub(super) fn writing(&self, stage: Stage) -> StageEstimate {
        StageEstimate {
            stage,
            steps: 0,
            tokens: 0.0,
            batch: BatchShape::default(),
            remat: false,
            memory: MemoryEstimate::default(),
            disk_bytes: 0,
            passing_disk_bytes: 0,
            flops: 0.0,
            seconds: 0.0,
        }
    }
}

impl Teaching {
    /// Adds to a student's memory what the teacher takes beside it, `alone` being that of its own passes: its weights and
    /// adapters, and what it says of a batch. Its activations are gone before the student's come.
    fn add_to(&self, memory: &mut MemoryEstimate, alone: MemoryEstimate, batch: BatchShape) {
        let beside =
            |student: u64, teacher: u64| if self.shares { teacher } else { student + teacher };
        memory.mapped = beside(memory.mapped, alone.mapped);
        memory.packed = beside(memory.packed, alone.packed);
        memory.converted = memory.converted.max(alone.converted);
        memory.trained += self.adapter_bytes;
        if self.distil.weight > 0.0 {
            // Tokens' numbers, and logarithms of their probabilities.
            let one = (size_of::<i64>() + size_of::<f32>()) as u64;
            memory.kept += batch.labelled as u64 * self.distil.top_k as u64 * one;
        }
        if self.distil.hidden > 0.0 {
            let state = self.config.hidden_size as u64 * size_of::<f32>() as u64;
            memory.kept += (RUNS * batch.tokens) as u64 * state;
        }
    }
}

/// Passes in which nothing is kept for a backward one.
fn packs_of(sample: &Sample) -> BatchShape {
    let longest = sample.lengths().into_iter().max().unwrap_or(0);
    BatchShape { tokens: longest.max(BATCH_TOKENS), longest, labelled: 0 }
}
