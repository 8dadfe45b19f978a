//! `greedy`: one layer after another.

use evidence::{Evidence, LossProbe, Need};

use crate::{Request, Result, Scores, Selection, Selector};

/// Candidates that are tried again in each round after the first.
const TRIED_AGAIN: usize = 6;

/// Again and again the layer whose removal loses least (SLEB, arXiv 2402.09025), on rows held out of training:
///
/// ```text
/// S ← S ∪ { argmin_l D(S ∪ {l}) }
/// ```
///
/// Lazily: all candidates in the first round, then only the six that added least to the loss when they were last tried.
/// Of equal ones the later goes.
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
        // What each candidate that is left added to the loss when it was last tried.
        let mut left: Vec<(usize, f64)> =
            request.candidates.iter().map(|&layer| (layer, f64::NEG_INFINITY)).collect();
        while removed.len() < request.count {
            left.sort_by(|x, y| x.1.total_cmp(&y.1).then(y.0.cmp(&x.0)));
            let tried = if removed.is_empty() { left.len() } else { TRIED_AGAIN.min(left.len()) };
            // Backwards, since a pass begins where it leaves the path of the last one.
            left[..tried].sort_by_key(|&(layer, _)| std::cmp::Reverse(layer));
            for (layer, added) in &mut left[..tried] {
                *added = without(losses, &removed, *layer)? - lost;
            }
            let best = (0..tried)
                .min_by(|&x, &y| left[x].1.total_cmp(&left[y].1).then(left[y].0.cmp(&left[x].0)));
            let Some(best) = best else { break };
            let (layer, added) = left.swap_remove(best);
            removed.push(layer);
            lost += added;
        }
        Ok(Selection { removed, scores: None })
    }
}

fn without(losses: &mut dyn LossProbe, removed: &[usize], layer: usize) -> Result<f64> {
    let mut set: Vec<usize> = removed.iter().copied().chain([layer]).collect();
    set.sort_unstable();
    Ok(losses.loss(&set)?)
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
        // 25 candidates once, then six in each of eleven rounds.
        let tried = check(|set| set.iter().map(|layer| 1.0 / *layer as f64).sum(), 30, 12);
        assert_eq!(tried, 25 + 11 * 6);
    }
}
