//! What a run tells whoever watches it.

use std::fmt;

use dataset::RowCounts;
use finetune::StepMetrics;
use repair::FittedRun;
use serde::{Deserialize, Serialize};

use crate::{Cell, CellResult, Computing, Estimate};

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Stage {
    Convert,
    Collect,
    Score,
    Plan,
    Fit,
    Prune,
    Finetune,
    DenseFinetune,
    Evaluate,
    EvaluateDense,
    EvaluatePruned,
    EvaluateTuned,
    EvaluateDenseTuned,
    Report,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Convert => "convert",
            Self::Collect => "collect gradients",
            Self::Score => "score layers",
            Self::Plan => "plan",
            Self::Fit => "fit linear maps",
            Self::Prune => "prune and repair",
            Self::Finetune => "fine-tune",
            Self::DenseFinetune => "fine-tune dense",
            Self::Evaluate => "evaluate",
            Self::EvaluateDense => "evaluate dense",
            Self::EvaluatePruned => "evaluate pruned",
            Self::EvaluateTuned => "evaluate pruned, tuned",
            Self::EvaluateDenseTuned => "evaluate dense, tuned",
            Self::Report => "report",
        })
    }
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
    /// A stage is complete; the text sums it up.
    Done(Stage, String),
    /// The rows to train on are tokens now.
    Encoded(RowCounts),
    /// A linear map was fitted.
    Fitted(FittedRun),
    /// A training step was taken.
    Step(StepMetrics),
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
    /// A cell is done.
    CellDone(Box<CellResult>),
    /// So many of so many rows are evaluated.
    Rows {
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
}
