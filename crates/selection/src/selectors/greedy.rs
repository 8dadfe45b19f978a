//! `greedy`: one layer after another.

use std::cmp::Ordering;

use evidence::{Evidence, Need};

use crate::{Request, Result, Scores, Selection, Selector};

/// Candidates that are tried again at most in each round after the first.
const TRIED_AGAIN: usize = 6;
/// Those that are tried at least: `D` is not such that a layer only ever matters more once others are gone.
const TRIED_LEAST: usize = 2;

/// Again and again the layer whose removal loses least (SLEB, arXiv 2402.09025), on rows held out of training:
///
/// ```text
/// S ← S ∪ { argmin_l D(S ∪ {l}) }
/// ```
///
/// Lazily: all candidates in the first round. Then those that added least to the loss when they were last tried, in that
/// order, two to six of them, until one adds no more than the next did then (after Minoux's accelerated greedy algorithm,
/// 1978). Of equal ones the later goes.
pub(crate) struct Greedy;

impl Selector for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }

    fn about(&self) -> &'static str {
        "repeatedly, the layer whose removal loses least on held-out rows"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Loss]
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let losses = seen.losses(self.name())?;
        let mut removed: Vec<usize> = Vec::new();
        let mut lost = 0.0;
        let mut left: Vec<Candidate> =
            request.candidates.iter().copied().map(Candidate::new).collect();
        while removed.len() < request.count {
            left.sort_by(Candidate::before);
            let most = if removed.is_empty() { left.len() } else { TRIED_AGAIN.min(left.len()) };
            losses.begin_with(&sorted(&removed));
            let mut best: Option<usize> = None;
            for at in 0..most {
                if at >= TRIED_LEAST && best.is_some_and(|best| left[best].added <= left[at].added)
                {
                    break;
                }
                left[at].added =
                    losses.loss(&sorted(&[&removed[..], &[left[at].layer]].concat()))? - lost;
                best = [best, Some(at)]
                    .into_iter()
                    .flatten()
                    .min_by(|&x, &y| left[x].before(&left[y]));
            }
            let Some(best) = best else { break };
            let Candidate { layer, added } = left.remove(best);
            removed.push(layer);
            lost += added;
        }
        Ok(Selection { removed, scores: None })
    }
}

/// A layer that may go.
struct Candidate {
    layer: usize,
    /// What it added to the loss when it was last tried.
    added: f64,
}

impl Candidate {
    fn new(layer: usize) -> Self {
        Self { layer, added: f64::NEG_INFINITY }
    }

    /// The order in which layers go.
    fn before(&self, other: &Self) -> Ordering {
        self.added.total_cmp(&other.added).then(other.layer.cmp(&self.layer))
    }
}

fn sorted(layers: &[usize]) -> Vec<usize> {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::Formula;
    use crate::{Keep, Share};

    /// The same choice by trying every candidate in every round.
    fn naive(losses: &dyn Fn(&[usize]) -> f64, candidates: &[usize], count: usize) -> Vec<usize> {
        let mut removed = Vec::new();
        for _ in 0..count {
            let mut best = None;
            for &layer in candidates.iter().filter(|layer| !removed.contains(*layer)) {
                let mut set = [removed.as_slice(), &[layer]].concat();
                set.sort_unstable();
                let lost = losses(&set);
                if best.is_none_or(|(_, least)| lost <= least) {
                    best = Some((layer, lost));
                }
            }
            removed.push(best.unwrap().0);
        }
        removed
    }

    fn check(losses: fn(&[usize]) -> f64, layers: usize, count: usize) -> usize {
        let mut probe = Formula::new(losses);
        let mut seen =
            Evidence { num_layers: layers, losses: Some(&mut probe), ..Evidence::default() };
        let request = Request::new(layers, Share::Layers(count), Keep::Guard, 0).unwrap();
        let found = Greedy.select(&mut seen, &request).unwrap().removed;
        assert_eq!(found, naive(&losses, &request.candidates, count));
        probe.asked.len()
    }

    #[test]
    fn the_layer_that_loses_least_each_time() {
        // Layers that stand side by side are worse together.
        let apart = |set: &[usize]| {
            let own: usize = set.iter().map(|layer| layer * 11 % 7).sum();
            let beside = set.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            (own + beside) as f64
        };
        check(apart, 7, 4);
        check(|set| set.len() as f64, 7, 5);
        // 25 candidates once; then, where none matters more for those that are gone, two in each of eleven rounds.
        let tried = check(|set| set.iter().map(|layer| 1.0 / *layer as f64).sum(), 30, 12);
        assert_eq!(tried, 25 + 11 * 2);
        // Where each matters more once one near it is gone, more, and six at most.
        let near = |set: &[usize]| -> f64 {
            let pairs =
                set.iter().enumerate().flat_map(|(at, x)| set[..at].iter().map(move |y| x - y));
            let own: f64 = set.iter().map(|&layer| 100.0 - layer as f64).sum();
            own + 50.0 * pairs.filter(|&apart| apart <= 3).count() as f64
        };
        let tried = check(near, 30, 6);
        assert!((25 + 5 * 2 + 1..=25 + 5 * 6).contains(&tried), "{tried}");
    }
}
