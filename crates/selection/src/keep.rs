//! The guard: layers that are never pruned.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::{Result, SelectionError};

/// The share of the layers, from the first on, that the guard keeps.
const FIRST_SHARE: f64 = 0.12;

/// Which layers at the ends are never pruned.
///
/// Early layers have small gradients and small scores, and nothing works without them; nor without the last
/// layer, which the head was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum Keep {
    /// The first `⌈0.12·L⌉` of `L` layers and the last, under every selector but `random`.
    Guard,
    /// So many of the first and of the last.
    Ends {
        /// Of the first.
        first: usize,
        /// Of the last.
        last: usize,
    },
}

impl Keep {
    /// No layer is kept whatever its score; the paper's.
    pub const NONE: Self = Self::Ends { first: 0, last: 0 };

    /// How many of the first and of the last layers are kept.
    pub fn ends(self, num_layers: usize) -> (usize, usize) {
        match self {
            // Two layers or less are all ends.
            Self::Guard if num_layers <= 2 => (0, 0),
            Self::Guard => ((FIRST_SHARE * num_layers as f64).ceil() as usize, 1),
            Self::Ends { first, last } => (first, last),
        }
    }

    /// The layers that may be pruned.
    pub(crate) fn candidates(self, num_layers: usize) -> Range<usize> {
        let (first, last) = self.ends(num_layers);
        first.min(num_layers)..num_layers.saturating_sub(last).max(first.min(num_layers))
    }

    /// The layers that may be pruned, if they are enough.
    pub(crate) fn leaving(self, num_layers: usize, count: usize) -> Result<Range<usize>> {
        let candidates = self.candidates(num_layers);
        if count <= candidates.len() {
            return Ok(candidates);
        }
        let (first, last) = self.ends(num_layers);
        Err(SelectionError::Keep(format!(
            "first:{first},last:{last} leaves {} of {num_layers} layers to choose from, and {count} are to go; \
             prune fewer, or keep fewer (`--keep none` keeps no layer by its place)",
            candidates.len()
        )))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guard => f.write_str("guard"),
            &Self::NONE => f.write_str("none"),
            Self::Ends { first, last } => write!(f, "first:{first},last:{last}"),
        }
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "guard" => return Ok(Self::Guard),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        let fail = || format!("`{text}` is not guard, none, or a pair such as first:4,last:1");
        let (mut first, mut last) = (None, None);
        for part in text.split(',') {
            let (end, count) = part.split_once(':').ok_or_else(fail)?;
            let count = count.parse().map_err(|_| fail())?;
            let place = match end {
                "first" => &mut first,
                "last" => &mut last,
                _ => return Err(fail()),
            };
            if place.replace(count).is_some() {
                return Err(fail());
            }
        }
        Ok(Self::Ends { first: first.unwrap_or(0), last: last.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_keeps_both_ends() {
        let ends = [2, 3, 6, 24, 30, 32, 80].map(|layers| Keep::Guard.ends(layers));
        assert_eq!(ends, [(0, 0), (1, 1), (1, 1), (3, 1), (4, 1), (4, 1), (10, 1)]);
    }

    #[test]
    fn texts() {
        for text in ["guard", "none", "first:4,last:1"] {
            assert_eq!(text.parse::<Keep>().unwrap().to_string(), text);
        }
        assert_eq!("last:2".parse(), Ok(Keep::Ends { first: 0, last: 2 }));
        for wrong in ["", "4", "first:-1", "first:1,first:2", "middle:3", "first:1,"] {
            assert!(wrong.parse::<Keep>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn too_few_layers_to_choose_from() {
        assert_eq!(Keep::Guard.leaving(30, 25).unwrap(), 4..29);
        let error = Keep::Guard.leaving(30, 26).unwrap_err().to_string();
        assert!(error.starts_with("--keep first:4,last:1 leaves 25 of 30 layers"), "{error}");
        let all = Keep::Ends { first: usize::MAX, last: usize::MAX };
        assert!(all.leaving(30, 1).is_err() && all.leaving(30, 0).is_ok());
    }
}
