//! One cell: what it is, and what becomes of it.

use ::finetune::{EvalReport, RowLoss};
use repair::Size;
use selection::{Repair, Share};
use serde::{Deserialize, Serialize};

use crate::cell::Race;
use crate::{Choosing, FinetuneMethod, Trial, Verdict};

/// How a model is pruned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// How much.
    pub prune: Share,
    /// By what.
    pub criterion: Choosing,
    /// What is done to the layers that stay.
    pub repair: Repair,
    /// Whether all of it is as in the paper ([`crate::RunSettings::in_the_papers_form`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paper: bool,
}

impl Way {
    /// What layers go by, in a word or two.
    pub fn chosen_by(&self) -> String {
        if self.paper { "the paper's form".into() } else { self.criterion.to_string() }
    }
}

/// One cell of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// How the model is pruned; `None` for the dense one and for baselines.
    pub way: Option<Way>,
    /// Another model in its place, as it came: a folder or a hub name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// How it is fine-tuned.
    pub finetune: FinetuneMethod,
    /// Decides the rows' order and the initial adapters.
    pub seed: u64,
}

impl Cell {
    /// Whether it is the model itself, not pruned.
    pub fn is_dense(&self) -> bool {
        self.way.is_none() && self.baseline.is_none()
    }
}

/// One model on one set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedOn {
    /// The set.
    pub data: String,
    /// Before fine-tuning.
    pub before: EvalReport,
    /// After it.
    pub after: EvalReport,
    /// Of each row with choices, whether it was answered rightly after fine-tuning.
    pub right: Vec<bool>,
    /// Of each row, the loss after fine-tuning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<RowLoss>,
}

/// A learning rate, and how the model that was trained by it stands on the rows held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedRate {
    /// The peak of the learning rate.
    pub learning_rate: f64,
    /// How it stands.
    pub trial: Trial,
}

/// What a cell came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell.
    pub cell: Cell,
    /// The layers that went.
    pub pruned: Vec<usize>,
    /// Every layer's score, if they were chosen by scores.
    #[serde(default)]
    pub scores: Option<Vec<f64>>,
    /// How the choices of several criteria came out, if they raced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub race: Option<Race>,
    /// What the repair does to what is lost, if there is one.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// The learning rates that were tried, if several were, the one that was taken first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<TriedRate>,
    /// How large the model is.
    pub size: Size,
    /// On each set.
    pub evaluations: Vec<EvaluatedOn>,
    /// Seconds that its stages took when they were made, those it shares with other cells among them.
    pub seconds: f64,
    /// Those of them that are spent beyond the training: to choose layers, to prune and repair, and, in a race, on those
    /// that did not win.
    pub seconds_choosing: f64,
}
