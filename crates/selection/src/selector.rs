//! What a rule for choosing layers is.

use evidence::{Evidence, Need};
use serde::{Deserialize, Serialize};

use crate::{Keep, Result, Scores, Share};

/// A rule for choosing layers: evidence to the layers that go.
///
/// A rule that scores layers gives [`Selector::scores`], and the lowest-scored go; one that looks at sets of
/// layers gives [`Selector::select`].
pub trait Selector: Sync {
    /// Its name in files and on the command line.
    fn name(&self) -> &'static str;

    /// What makes a layer go, in a line.
    fn about(&self) -> &'static str;

    /// What it reads.
    fn needs(&self) -> &'static [Need];

    /// Whether the guard ([`Keep::Guard`]) binds it.
    fn is_guarded(&self) -> bool {
        true
    }

    /// Whether it gives layers scores.
    fn gives_scores(&self) -> bool {
        true
    }

    /// About how many forward passes over all rows that losses are computed on it takes until `count` layers are
    /// chosen, if it asks for losses; a backward pass counts two.
    fn passes(&self, _count: usize) -> f64 {
        25.0
    }

    /// Tokens that each of these passes stops at, if it does not take all rows.
    fn tokens(&self) -> Option<usize> {
        None
    }

    /// Every layer's score, higher for the more important; `None` if the rule gives layers none.
    ///
    /// # Errors
    ///
    /// If evidence is missing or cannot be used.
    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>>;

    /// The layers to go.
    ///
    /// # Errors
    ///
    /// As [`Selector::scores`].
    fn select(&self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let scores = self.scores(seen)?;
        let ranking = scores.as_ref().map(Scores::ranking).unwrap_or_default();
        Ok(Selection { removed: request.first_of(ranking), scores })
    }
}

/// How many layers are to go, and which may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How many layers the model has.
    pub num_layers: usize,
    /// How many go.
    pub count: usize,
    /// Those that may, ascending; at least `count`.
    pub candidates: Vec<usize>,
    /// For rules that draw lots.
    pub seed: u64,
}

impl Request {
    /// A share of a model's layers, none of them among those that are kept.
    ///
    /// # Errors
    ///
    /// [`SelectionError`](crate::SelectionError) if the share is no layer or all, or too few layers may go.
    pub fn new(num_layers: usize, prune: Share, keep: Keep, seed: u64) -> Result<Self> {
        let count = prune.layers_of(num_layers)?;
        let candidates = keep.leaving(num_layers, count)?.collect();
        Ok(Self { num_layers, count, candidates, seed })
    }

    /// Those of an order that may go.
    pub fn ordered(&self, order: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let may_go = |layer: &usize| self.candidates.binary_search(layer).is_ok();
        order.into_iter().filter(may_go).collect()
    }

    /// The first of an order that may go, as many as are to go.
    pub fn first_of(&self, order: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut found = self.ordered(order);
        found.truncate(self.count);
        found
    }
}

/// The layers that a rule chose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// The layers to go, the least important first.
    pub removed: Vec<usize>,
    /// Every layer's score, if the rule gives them.
    pub scores: Option<Scores>,
}
