//! Whether the layers' order has settled while gradients come in.

use std::collections::{BTreeMap, BTreeSet};

use metrics::kendall_tau;
use prune::Criterion;
use serde::{Deserialize, Serialize};

use crate::gram::StepNorms;

/// Steps for which the chosen layers must not change.
const UNCHANGED_STEPS: usize = 10;
/// The fewest steps: the first have tiny gradients, since `B` starts at zero and the rate low.
const FEWEST_STEPS: usize = 20;
/// An agreement below this is worth a warning.
const WEAK_AGREEMENT: f64 = 0.7;

/// How far the layer scores of one collection can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stability {
    /// How many steps were taken.
    pub steps: usize,
    /// Kendall's τ between the scores of odd and of even steps, which see different rows.
    pub between_halves: Option<f64>,
    /// Kendall's τ between the scores of the first half of the steps and of all.
    pub since_middle: Option<f64>,
    /// The step since which the lowest-scored layers have been the same ones.
    pub settled_since: usize,
}

impl Stability {
    /// Whether the order of layers depends much on which rows were seen.
    pub fn is_weak(&self) -> bool {
        self.between_halves.is_none_or(|tau| tau < WEAK_AGREEMENT)
    }
}

impl std::fmt::Display for Stability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tau = |tau: Option<f64>| tau.map_or("unknown".into(), |tau| format!("{tau:.2}"));
        write!(
            f,
            "layer order: τ {} between halves of the data, {} since the middle; the lowest layers \
             are the same since step {} of {}",
            tau(self.between_halves),
            tau(self.since_middle),
            self.settled_since,
            self.steps
        )
    }
}

/// Follows the layers' scores step by step.
#[derive(Debug)]
pub(crate) struct StabilityMeter {
    criterion: Criterion,
    /// How many layers are to be pruned.
    count: usize,
    /// What each step adds to each layer's score.
    steps: Vec<BTreeMap<usize, f64>>,
    /// Sums of them.
    scores: BTreeMap<usize, f64>,
    lowest: BTreeSet<usize>,
    settled_since: usize,
}

impl StabilityMeter {
    pub(crate) fn new(criterion: Criterion, count: usize) -> Self {
        Self {
            criterion,
            count,
            steps: Vec::new(),
            scores: BTreeMap::new(),
            lowest: BTreeSet::new(),
            settled_since: 1,
        }
    }

    pub(crate) fn add(&mut self, norms: &StepNorms) {
        let mut step: BTreeMap<usize, f64> = BTreeMap::new();
        for &((layer, _), squared) in norms {
            let part = if self.criterion == Criterion::IgiaFro { squared.sqrt() } else { squared };
            *step.entry(layer).or_default() += part;
        }
        self.add_scores(step);
    }

    fn add_scores(&mut self, step: BTreeMap<usize, f64>) {
        for (layer, score) in &step {
            *self.scores.entry(*layer).or_default() += score;
        }
        self.steps.push(step);
        let mut ranking: Vec<(usize, f64)> =
            self.scores.iter().map(|(&layer, &score)| (layer, score)).collect();
        // Ties break towards the later layer being pruned (method.md §4).
        ranking.sort_by(|x, y| x.1.total_cmp(&y.1).then(y.0.cmp(&x.0)));
        let lowest = ranking.iter().take(self.count).map(|&(layer, _)| layer).collect();
        if lowest != self.lowest {
            (self.lowest, self.settled_since) = (lowest, self.steps.len());
        }
    }

    /// Whether more steps would hardly change what is pruned.
    pub(crate) fn settled(&self) -> bool {
        let steps = self.steps.len();
        // With block influence the first step says it all.
        self.criterion == Criterion::Bi
            || FEWEST_STEPS <= steps && UNCHANGED_STEPS <= steps - self.settled_since
    }

    pub(crate) fn report(&self) -> Stability {
        let sum = |wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
            let chosen = self.steps.iter().enumerate().filter(|(number, _)| wanted(*number));
            let steps: Vec<_> = chosen.map(|(_, step)| step).collect();
            self.scores
                .keys()
                .map(|layer| steps.iter().filter_map(|step| step.get(layer)).sum())
                .collect()
        };
        let middle = self.steps.len() / 2;
        Stability {
            steps: self.steps.len(),
            between_halves: kendall_tau(&sum(&|step| step % 2 == 0), &sum(&|step| step % 2 == 1)),
            since_middle: kendall_tau(&sum(&|step| step < middle), &sum(&|_| true)),
            settled_since: self.settled_since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds scores of four layers, the two lowest being the ones to prune.
    fn meter(steps: impl IntoIterator<Item = [f64; 4]>) -> StabilityMeter {
        let mut meter = StabilityMeter::new(Criterion::Igia, 2);
        for step in steps {
            meter.add_scores(step.into_iter().enumerate().collect());
        }
        meter
    }

    #[test]
    fn settles_when_the_lowest_stay() {
        let steady = [1.0, 2.0, 3.0, 4.0];
        assert!(!meter([steady; 19]).settled(), "too few steps");
        assert!(meter([steady; 20]).settled());
        // Layer 3 turns lowest at step 15, with a sum of −44 by then.
        let turn = || (0..24).map(|step| if step == 14 { [1.0, 2.0, 3.0, -99.0] } else { steady });
        let found = meter(turn());
        assert!(!found.settled());
        assert_eq!(found.report().settled_since, 15);
        assert!(meter(turn().chain([steady])).settled());
    }

    #[test]
    fn halves_that_disagree_are_weak() {
        let (up, down) = ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]);
        let steady = meter([up; 6]).report();
        assert_eq!((steady.between_halves, steady.is_weak()), (Some(1.0), false));
        let torn = meter([up, down, up, down, up, down]).report();
        assert_eq!((torn.between_halves, torn.is_weak()), (Some(-1.0), true));
    }
}
