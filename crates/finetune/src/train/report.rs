//! What steps and whole trainings did, and who takes their gradients.

use std::sync::Arc;

use checkpoint::{ModuleName, StepGradients, StepReport};
use serde::{Deserialize, Serialize};

use crate::{DistilTerms, Result};

/// Every adapter's gradients at one step, in layer order.
pub type Gradients = Vec<((usize, ModuleName), StepGradients)>;

/// Takes each step's adapter gradients, after clipping and before the optimizer's step.
pub trait GradientSink {
    /// One step's gradients.
    ///
    /// # Errors
    ///
    /// If they cannot be kept or used.
    fn step(&mut self, report: StepReport, gradients: &Arc<Gradients>) -> Result<()>;

    /// Whether it has seen enough; [`collect`](crate::collect) stops then.
    fn enough(&self) -> bool {
        false
    }
}

/// What one step did; a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: usize,
    /// Steps the run takes in all.
    pub total_steps: usize,
    /// What [`StepReport`] says.
    #[serde(flatten)]
    pub report: StepReport,
    /// Seconds the step took.
    pub seconds: f64,
    /// Seconds of these that went into handing its gradients on.
    #[serde(default)]
    pub hook_seconds: f64,
    /// What a teacher added to the loss, if there was one; the report's loss is that of the labels alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distil: Option<DistilTerms>,
}

impl StepMetrics {
    /// Tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.report.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// What a whole training did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct TrainReport {
    pub steps: usize,
    pub rows: usize,
    pub skipped_rows: usize,
    pub trained_parameters: u64,
    pub tokens: usize,
    pub seconds: f64,
    /// Of the last step that was taken; `None` if another process had taken them all.
    pub last_loss: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    /// Whose weights the model has, where the best were kept instead of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptStep>,
}

/// The step whose weights are kept, and the figures on the rows held out by which it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KeptStep {
    /// The step, counted from 1.
    pub step: usize,
    /// Mean loss of the assistant's tokens.
    pub loss: f64,
    /// Accuracy, of rows with choices.
    pub acc: Option<f64>,
    /// Whether the training ended before its last step.
    pub stopped_early: bool,
}

impl TrainReport {
    /// This part of a training and the next as one.
    #[must_use]
    pub fn followed_by(self, next: Self) -> Self {
        Self {
            tokens: self.tokens + next.tokens,
            seconds: self.seconds + next.seconds,
            last_loss: next.last_loss.or(self.last_loss),
            peak_memory_bytes: self.peak_memory_bytes.max(next.peak_memory_bytes),
            ..next
        }
    }
}
