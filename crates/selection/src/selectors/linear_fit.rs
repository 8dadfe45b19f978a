//! `linear-fit`: runs of layers that linear maps stand in for.

use std::ops::RangeInclusive;

use evidence::{Evidence, Need, RunErrors, RunSettings};

use crate::{Request, Result, Scores, Selection, SelectionError, Selector};

/// As the repair by linear maps has it unless something else is asked for.
const RIDGE: f64 = 1e-3;
/// Tokens that maps are fitted on.
const TOKENS: usize = 2000;

/// The runs of layers, each behind a layer that stays, that linear maps replace best together, on rows held out of
/// training: with `T_R` the map that the repair by linear maps would fold into the layer before the run `R` in the
/// dense model (`ReplaceMe`, arXiv 2505.02819),
///
/// ```text
/// min over disjoint runs, none beside another, of Σ_R ‖(y + m·T_R) − x‖² / ‖x‖² + (max(‖x₁‖ − ‖y₁ + m₁‖, 0) / ‖x₁‖)²
/// ```
///
/// with `x` the run's output, and `x₁` that for the first tokens of rows, to which a layer may give a state that no map
/// can. The sum is least by dynamic programming over layers: with layer `l` staying,
///
/// ```text
/// best(l, k) = min( best(l − 1, k), min_n best(l − n − 1, k − n) + error(l − n … l − 1) )
/// ```
///
/// over all layers before `l`, of which `k` go. Layer 0 has no layer before it and stays.
pub(crate) struct LinearFit;

impl Selector for LinearFit {
    fn name(&self) -> &'static str {
        "linear-fit"
    }

    fn about(&self) -> &'static str {
        "the runs of layers that linear maps together replace best"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Loss]
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn passes(&self, _: usize) -> f64 {
        // One, and the maps of all runs, which take about two more.
        3.0
    }

    fn tokens(&self) -> Option<usize> {
        Some(TOKENS)
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let settings = RunSettings {
            candidates: request.candidates.clone(),
            longest: request.count,
            ridge: RIDGE,
            tokens: TOKENS,
        };
        let errors = seen.losses(self.name())?.run_errors(&settings)?;
        let Some(mut runs) = best_runs(&errors, request.num_layers, request.count) else {
            return Err(SelectionError::Keep(format!(
                "leaves no {} layers with a layer before them, which `linear-fit` wants; prune fewer, or keep fewer",
                request.count
            )));
        };
        // The best replaced first; of equal runs the later.
        runs.sort_by(|x, y| {
            x.error.total_cmp(&y.error).then(y.layers.start().cmp(x.layers.start()))
        });
        let removed = runs.into_iter().flat_map(|run| run.layers.rev()).collect();
        Ok(Selection { removed, scores: None })
    }
}

/// Layers that go together, and what a map leaves of what they do.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    layers: RangeInclusive<usize>,
    error: f64,
}

/// The disjoint runs, none beside another, of `count` layers together whose errors add up to the least, if there are
/// such; of equal ones those with later layers.
fn best_runs(errors: &RunErrors, num_layers: usize, count: usize) -> Option<Vec<Run>> {
    // By a layer that stays (the head stands for the one behind the last) and the number of layers that go before it:
    // the least sum, and how many layers go right before it.
    let mut best: Vec<Vec<Option<(f64, usize)>>> = vec![vec![None; count + 1]; num_layers + 1];
    best[0][0] = Some((0.0, 0));
    let error = |stays: usize, length: usize| match length {
        0 => Some(0.0),
        _ => errors.get(stays - length..=stays - 1),
    };
    for stays in 1..=num_layers {
        for gone in 0..=count {
            for length in 0..=gone.min(stays - 1) {
                let before = best[stays - length - 1][gone - length];
                if let (Some((sum, _)), Some(own)) = (before, error(stays, length))
                    && best[stays][gone].is_none_or(|(least, _)| sum + own <= least)
                {
                    best[stays][gone] = Some((sum + own, length));
                }
            }
        }
    }
    let mut runs = Vec::new();
    let (mut stays, mut gone) = (num_layers, count);
    while stays > 0 {
        let (_, length) = best[stays][gone]?;
        if length > 0 {
            let layers = stays - length..=stays - 1;
            runs.push(Run { error: errors.get(layers.clone())?, layers });
        }
        (stays, gone) = (stays - length - 1, gone - length);
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::selectors::tests::Formula;
    use crate::{Keep, Share};

    /// The runs that a set of layers falls into.
    fn runs(set: &[usize]) -> Vec<RangeInclusive<usize>> {
        let mut found: Vec<RangeInclusive<usize>> = Vec::new();
        for &layer in set {
            match found.last_mut() {
                Some(run) if run.end() + 1 == layer => *run = *run.start()..=layer,
                _ => found.push(layer..=layer),
            }
        }
        found
    }

    /// Every set of so many candidates behind layer 0, and the least sum of errors.
    fn naive(errors: &RunErrors, candidates: &[usize], count: usize) -> Option<f64> {
        let sets = (0..1_u32 << candidates.len()).map(|bits| {
            let goes = |at: &usize| bits >> at & 1 == 1;
            (0..candidates.len()).filter(goes).map(|at| candidates[at]).collect::<Vec<_>>()
        });
        let sums = sets.filter(|set| set.len() == count).filter_map(|set| {
            runs(&set).into_iter().map(|run| errors.get(run)).sum::<Option<f64>>()
        });
        sums.min_by(f64::total_cmp)
    }

    proptest! {
        // Few distinct errors, so that there are ties; candidates with gaps, with and without the first and last layer.
        #[test]
        fn agrees_with_every_set(
            (num_layers, may_go, values, count) in (2..9_usize).prop_flat_map(|layers| (
                Just(layers),
                prop::collection::vec(prop::bool::weighted(0.8), layers),
                prop::collection::vec(0..12_u8, 64),
                1..layers,
            )),
        ) {
            let candidates: Vec<usize> = (0..num_layers).filter(|&layer| may_go[layer]).collect();
            let settings =
                RunSettings { candidates: candidates.clone(), longest: count, ridge: 0.0, tokens: 1 };
            let mut errors = RunErrors::default();
            for (run, value) in settings.runs().zip(values) {
                errors.insert(run, f64::from(value));
            }
            let found = best_runs(&errors, num_layers, count);
            let expected = naive(&errors, &candidates, count);
            prop_assert_eq!(found.is_some(), expected.is_some());
            if let (Some(found), Some(expected)) = (found, expected) {
                prop_assert_eq!(found.iter().map(|run| run.error).sum::<f64>(), expected);
                let mut set: Vec<usize> = found.into_iter().flat_map(|run| run.layers).collect();
                set.sort_unstable();
                prop_assert_eq!(set.len(), count);
                // As runs they are the same: none stands beside another.
                let again: f64 = runs(&set).into_iter().map(|run| errors.get(run).unwrap()).sum();
                prop_assert_eq!(again, expected);
            }
        }
    }

    /// A run that is replaced well as a whole beats single layers that are cheap apart.
    #[test]
    fn the_best_runs_go() {
        let mut probe = Formula::new(|set| match set {
            [3, 4] => 0.25,
            [1] => 0.5,
            _ => set.len() as f64,
        });
        let mut seen = Evidence { num_layers: 6, losses: Some(&mut probe), ..Evidence::default() };
        let mut choose = |count, keep| {
            let request = Request::new(6, Share::Layers(count), keep, 0).unwrap();
            LinearFit.select(&mut seen, &request).map(|found| found.removed)
        };
        assert_eq!(choose(3, Keep::Guard).unwrap(), [4, 3, 1]);
        assert_eq!(choose(1, Keep::Guard).unwrap(), [1]);
        assert_eq!(choose(5, Keep::NONE).unwrap(), [5, 4, 3, 2, 1]);
        // Layer 0 cannot go, and then there are too few.
        let error = choose(5, Keep::Ends { first: 0, last: 1 }).unwrap_err().to_string();
        assert!(error.starts_with("--keep leaves no 5 layers with a layer before them"), "{error}");
    }
}
