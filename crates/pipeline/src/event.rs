//! What a run tells whoever watches it.

use dataset::RowCounts;
use finetune::{EvalReport, StepMetrics, TrainReport};
use repair::{Cut, FittedRun, Size};
use selection::{Criterion, Plan, Selection};
use serde::{Deserialize, Serialize};

use crate::{
    Amount, Cell, CellDone, ComparisonNeeds, Computing, Estimate, Fitted, Race, Stability, Trial,
    TriedAmount, Verdict,
};

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Stage {
    Convert,
    Collect,
    Score,
    Amount,
    Race,
    Plan,
    Fit,
    Judge,
    Prune,
    Finetune,
    DenseFinetune,
    Evaluate,
    EvaluateDense,
    EvaluatePruned,
    EvaluateTuned,
    EvaluateDenseTuned,
}

/// What a stage came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// Gradients are collected.
    Collected {
        /// How many steps were taken.
        steps: usize,
        /// How far scores of them can be trusted, if layers are chosen by them.
        stability: Option<Stability>,
    },
    /// The layers to go are chosen.
    Chosen {
        /// By what.
        criterion: Criterion,
        /// Which, and every layer's score if they were chosen by scores.
        selection: Selection,
    },
    /// It is found how many layers go.
    Amount(Amount),
    /// Choices have raced.
    Raced(Race),
    /// It is decided what becomes of them.
    Planned(Plan),
    /// The repair is judged by what is lost.
    Judged(Box<Verdict>),
    /// What the repair needs is fitted.
    Fitted(Fitted),
    /// The pruned checkpoint is written.
    Pruned {
        /// The dense model.
        before: Size,
        /// The pruned one.
        after: Size,
    },
    /// A model is fine-tuned.
    Trained(TrainReport),
    /// A model is evaluated.
    Evaluated(Box<EvalReport>),
}

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Where and in what type it computes.
    Computing(Computing),
    /// What a run is going to need.
    Needs(Estimate),
    /// A stage begins.
    Started(Stage),
    /// A stage was complete already.
    Found(Stage),
    /// A stage is complete, and came to this.
    Done(Stage, Done),
    /// The rows to train on are tokens now.
    Encoded(RowCounts),
    /// The cell cannot be made, for this reason, and is passed over.
    CellImpossible(String),
    /// A linear map was fitted.
    Fitted(FittedRun),
    /// A candidate is pruned and repaired, or, in a race, trained for a few steps.
    Trying {
        /// Whose choice it is.
        criteria: Vec<Criterion>,
        /// The layers that go.
        pruned: Vec<usize>,
    },
    /// It came to this.
    Tried {
        /// Whose choice it is.
        criteria: Vec<Criterion>,
        /// How good it is by now.
        trial: Trial,
    },
    /// An amount of layers was tried, to find the largest that loses little enough.
    TriedAmount(TriedAmount),
    /// A quarter of the training in, the model may be no better than always giving the most frequent answer.
    Collapsed {
        /// How good it is by now.
        trial: Trial,
        /// The layers that went.
        pruned: Vec<usize>,
    },
    /// The layer before a run was retrained.
    Reconstructed(FittedRun),
    /// The scale of a cut was measured.
    Scaled(Cut),
    /// A training step was taken.
    Step(StepMetrics),
    /// A training has looked at the rows held out.
    Validated {
        /// What it found.
        trial: Trial,
        /// Whether no look before found a smaller loss.
        is_best: bool,
    },
    /// So many of so many tensors are written.
    Tensors {
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// A cell of a comparison begins.
    Cell {
        /// Its number, counted from 1.
        number: usize,
        /// Of how many.
        total: usize,
        /// Which.
        cell: Cell,
    },
    /// What a comparison is going to need.
    ComparisonNeeds(ComparisonNeeds),
    /// A cell is done.
    CellDone(Box<CellDone>),
    /// So many of so many rows are evaluated.
    Rows {
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
}
