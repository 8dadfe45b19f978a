//! Second thoughts about a selection: layers exchanged while less is lost.

use std::fmt;
use std::str::FromStr;

use evidence::LossProbe;
use serde::{Deserialize, Serialize};

use crate::{Request, Result, Selection};

/// Retained layers that are tried in the place of a pruned one.
const TRIED: usize = 4;
/// Exchanges at most.
const MOST: usize = 8;

/// What is done to a selection before it is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refine {
    /// Nothing.
    #[default]
    None,
    /// [`swap`].
    Swap,
}

impl fmt::Display for Refine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Swap => "swap",
        })
    }
}

impl FromStr for Refine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "swap" => Ok(Self::Swap),
            _ => Err(format!("`{text}` is neither none nor swap")),
        }
    }
}

/// Exchanges a pruned and a retained layer while `D` falls: of the pruned ones those outside the longest run, of the
/// retained ones that may go the four that matter least, by the selection's scores or else by `D({l})`. Each time the
/// exchange that helps most is made, eight at most.
///
/// # Errors
///
/// If a loss cannot be computed.
pub fn swap(
    selection: Selection,
    request: &Request,
    losses: &mut dyn LossProbe,
) -> Result<Selection> {
    let Selection { mut removed, scores } = selection;
    let ranking = match &scores {
        Some(scores) => scores.ranking(),
        None => ranking_alone(request, losses)?,
    };
    let order = request.ordered(ranking);
    let mut least = losses.loss(&sorted(&removed))?;
    for _ in 0..MOST {
        let kept: Vec<usize> =
            order.iter().copied().filter(|layer| !removed.contains(layer)).take(TRIED).collect();
        losses.begin_with(&sorted(&removed));
        let mut best = None;
        for (place, _) in outside_longest_run(&removed) {
            for &layer in &kept {
                let mut other = removed.clone();
                other[place] = layer;
                let lost = losses.loss(&sorted(&other))?;
                if lost < least {
                    (least, best) = (lost, Some(other));
                }
            }
        }
        match best {
            Some(better) => removed = better,
            None => break,
        }
    }
    // The least important first, those that were exchanged among them.
    removed.sort_by_key(|layer| order.iter().position(|other| other == layer));
    Ok(Selection { removed, scores })
}

/// The layers that may go by what is lost without each alone; of equal ones the later first.
fn ranking_alone(request: &Request, losses: &mut dyn LossProbe) -> Result<Vec<usize>> {
    losses.begin_with(&[]);
    let mut alone = Vec::new();
    for &layer in &request.candidates {
        alone.push((layer, losses.loss(&[layer])?));
    }
    alone.sort_by(|x, y| x.1.total_cmp(&y.1).then(y.0.cmp(&x.0)));
    Ok(alone.into_iter().map(|(layer, _)| layer).collect())
}

fn sorted(layers: &[usize]) -> Vec<usize> {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    layers
}

/// The places and layers of those that do not stand in the longest run; of equal runs the last is the longest.
fn outside_longest_run(removed: &[usize]) -> Vec<(usize, usize)> {
    let layers = sorted(removed);
    let mut longest = 0..0;
    let mut first = 0;
    for (at, &layer) in layers.iter().enumerate() {
        if at > 0 && layers[at - 1] + 1 != layer {
            first = at;
        }
        if at + 1 - first >= longest.len() {
            longest = first..at + 1;
        }
    }
    let run = &layers[longest];
    removed.iter().copied().enumerate().filter(|(_, layer)| !run.contains(layer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::Formula;
    use crate::{Criterion, Keep, Scores, Share};

    #[test]
    fn runs() {
        let outside = |removed: &[usize]| -> Vec<usize> {
            outside_longest_run(removed).into_iter().map(|(_, layer)| layer).collect()
        };
        assert_eq!(outside(&[7, 1, 6, 3]), [1, 3]);
        assert_eq!(outside(&[2, 4]), [2]);
        assert_eq!(outside(&[5, 4, 3]), [0; 0]);
    }

    /// An early layer that the scores call unimportant and the losses do not.
    #[test]
    fn a_layer_that_should_have_stayed_comes_back() {
        let costs = |set: &[usize]| -> f64 {
            set.iter().map(|&layer| if layer == 1 { 100.0 } else { (10 - layer) as f64 }).sum()
        };
        let request = Request::new(10, Share::Layers(4), Keep::NONE, 0).unwrap();
        let values = [9.0, 0.1, 8.0, 7.0, 6.0, 5.0, 4.0, 0.4, 0.3, 0.2];
        let scores = Scores::of_layers(Criterion::IGIA, &values);
        for scores in [Some(scores), None] {
            let selection = Selection { removed: vec![1, 9, 8, 7], scores };
            let found = swap(selection, &request, &mut Formula::new(costs)).unwrap();
            assert_eq!(found.removed, [9, 8, 7, 6]);
        }
    }
}
