//! A selector by its name.

use std::fmt;
use std::str::FromStr;

use evidence::{Evidence, Need};
use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::selectors::igia::Igia;
use crate::{Keep, Request, Result, SELECTORS, Scores, Selection, SelectionError, Selector, Share};

/// What makes a layer go: one of [`SELECTORS`], written by its name.
#[derive(Clone, Copy, SerializeDisplay, DeserializeFromStr)]
pub struct Criterion(&'static dyn Selector);

impl Criterion {
    /// The paper's.
    pub const IGIA: Self = Self(&Igia);

    /// The criterion that a selector is.
    pub fn of(selector: &'static dyn Selector) -> Self {
        Self(selector)
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        SELECTORS.iter().map(|&selector| Self(selector))
    }

    /// Its name in files and on the command line.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// What makes a layer go, in a line.
    pub fn about(self) -> &'static str {
        self.0.about()
    }

    /// Whether it reads this kind of evidence.
    pub fn needs(self, need: Need) -> bool {
        self.0.needs().contains(&need)
    }

    /// All that it reads.
    pub fn all_needs(self) -> &'static [Need] {
        self.0.needs()
    }

    /// Whether it gives layers scores.
    pub fn gives_scores(self) -> bool {
        self.0.gives_scores()
    }

    /// About how many passes over the rows that losses are computed on it takes, as [`Selector::passes`] says.
    pub fn passes(self, count: usize) -> f64 {
        self.0.passes(count)
    }

    /// Tokens that each of these passes stops at, if it does not take all rows.
    pub fn tokens(self) -> Option<usize> {
        self.0.tokens()
    }

    /// Every layer's score.
    ///
    /// # Errors
    ///
    /// [`SelectionError::NoScores`] if it gives none, or if evidence is missing or cannot be used.
    pub fn scores(self, seen: &mut Evidence<'_>) -> Result<Scores> {
        self.0.scores(seen)?.ok_or(SelectionError::NoScores(self.name()))
    }

    /// The request to choose a share of a model's layers by it.
    ///
    /// # Errors
    ///
    /// As [`Request::new`].
    pub fn request(
        self,
        num_layers: usize,
        prune: Share,
        keep: Keep,
        seed: u64,
    ) -> Result<Request> {
        let keep = match keep {
            Keep::Guard if !self.0.is_guarded() => Keep::NONE,
            keep => keep,
        };
        Request::new(num_layers, prune, keep, seed)
    }

    /// The layers to go.
    ///
    /// # Errors
    ///
    /// If evidence is missing or cannot be used.
    pub fn select(self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        self.0.select(seen, request)
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Criterion {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Criterion {}

impl FromStr for Criterion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|criterion| criterion.name() == text).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(Self::name).collect();
            format!("`{text}` is not a criterion; use one of {}", known.join(", "))
        })
    }
}
