//! What one stage will need.

use checkpoint::ModelConfig;
use finetune::{BatchShape, ComputeType, MemoryEstimate, TrainSettings, Workload, largest_batch};

use super::{Sample, StageEstimate};
use crate::{RunSettings, Stage};

/// States between layers that are held meanwhile.
const HELD_STATES_BYTES: u64 = 512 << 20;
/// Runs of pruned layers that are assumed.
const MAPS: u64 = 2;

/// What stages are foretold with.
pub(super) struct Estimator {
    pub(super) compute: ComputeType,
    /// Floating-point operations a second.
    pub(super) rate: f64,
    /// Memory beyond which layers are computed again.
    pub(super) limit: Option<u64>,
}

impl Estimator {
    pub(super) fn training(
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

    pub(super) fn evaluating(
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
    pub(super) fn choosing(
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
    pub(super) fn fitting(
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
    pub(super) fn writing(&self, stage: Stage) -> StageEstimate {
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
