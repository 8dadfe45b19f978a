//! Whether the layers' order has settled while gradients come in.

use std::collections::BTreeSet;

use evidence::{Evidence, GradientNorms, Need};
use finetune::Gradients;
use metrics::kendall_tau;
use selection::{Criterion, Request};
use serde::{Deserialize, Serialize};

use crate::Result;

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
        self.between_halves.is_some_and(|tau| tau < WEAK_AGREEMENT)
    }
}

/// Follows the layers' scores step by step, and keeps what they are made of.
#[derive(Debug)]
pub(crate) struct StabilityMeter {
    /// `None` if norms are kept and nothing is followed.
    criterion: Option<Criterion>,
    request: Request,
    seen: Evidence<'static>,
    lowest: BTreeSet<usize>,
    settled_since: usize,
}

impl StabilityMeter {
    pub(crate) fn new(criterion: Criterion, request: Request) -> Self {
        let gradients = Some(GradientNorms::default());
        let num_layers = request.num_layers;
        let seen = Evidence { num_layers, gradients, ..Evidence::default() };
        let criterion = Some(criterion);
        Self { criterion, request, seen, lowest: BTreeSet::new(), settled_since: 1 }
    }

    /// Keeps the norms of a model's gradients and follows no choice.
    pub(crate) fn of_nothing(num_layers: usize) -> Self {
        let request = Request { num_layers, count: 0, candidates: Vec::new(), seed: 0 };
        Self { criterion: None, ..Self::new(Criterion::IGIA, request) }
    }

    pub(crate) fn add(&mut self, step: &Gradients) -> Result<()> {
        if let Some(gradients) = &mut self.seen.gradients {
            gradients.add(step)?;
        }
        let Some(criterion) = self.followed() else { return Ok(()) };
        let lowest = criterion.select(&mut self.seen, &self.request)?.removed;
        let lowest = lowest.into_iter().collect();
        if lowest != self.lowest {
            (self.lowest, self.settled_since) = (lowest, self.steps());
        }
        Ok(())
    }

    /// The criterion, if what it chooses depends on how many steps there are, and on them alone: one that wants losses
    /// too would run the model at every step.
    fn followed(&self) -> Option<Criterion> {
        self.criterion.filter(|criterion| criterion.all_needs() == [Need::Gradients])
    }

    fn steps(&self) -> usize {
        self.seen.gradients.as_ref().map_or(0, GradientNorms::num_steps)
    }

    /// Whether more steps would hardly change what is pruned.
    pub(crate) fn settled(&self) -> bool {
        let steps = self.steps();
        FEWEST_STEPS <= steps
            && (self.followed().is_none() || UNCHANGED_STEPS <= steps - self.settled_since)
    }

    /// The norms of all steps, and how far scores of them can be trusted, if the criterion is made of them.
    pub(crate) fn finish(self) -> (GradientNorms, Option<Stability>) {
        let stability = self.followed().map(|criterion| self.report(criterion));
        (self.seen.gradients.unwrap_or_default(), stability)
    }

    fn report(&self, criterion: Criterion) -> Stability {
        let (steps, middle) = (self.steps(), self.steps() / 2);
        let scores = |wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
            let gradients = self.seen.gradients.as_ref().map(|all| all.steps(wanted));
            let num_layers = self.request.num_layers;
            let mut seen = Evidence { num_layers, gradients, ..Evidence::default() };
            let found = criterion.scores(&mut seen).ok();
            found.map_or_else(Vec::new, |found| {
                found.layers.iter().map(|layer| layer.score).collect()
            })
        };
        Stability {
            steps,
            between_halves: kendall_tau(
                &scores(&|step| step % 2 == 0),
                &scores(&|step| step % 2 == 1),
            ),
            since_middle: kendall_tau(&scores(&|step| step < middle), &scores(&|_| true)),
            settled_since: self.settled_since,
        }
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::{Module, StepGradients};
    use ndarray::array;
    use selection::{Keep, Share};

    use super::*;

    /// Feeds gradients of four layers with these `‖G‖²`, the two lowest being the ones to prune.
    fn meter(steps: impl IntoIterator<Item = [f64; 4]>) -> StabilityMeter {
        let request = Request::new(4, Share::Layers(2), Keep::NONE, 0).unwrap();
        let mut meter = StabilityMeter::new(Criterion::IGIA, request);
        for step in steps {
            let gradients: Gradients = step
                .into_iter()
                .enumerate()
                .map(|(layer, square)| {
                    let a = array![[square.sqrt() as f32]];
                    ((layer, Module::QProj.into()), StepGradients { a, b: array![[1.0]] })
                })
                .collect();
            meter.add(&gradients).unwrap();
        }
        meter
    }

    #[test]
    fn settles_when_the_lowest_stay() {
        let steady = [1.0, 2.0, 3.0, 4.0];
        assert!(!meter([steady; 19]).settled(), "too few steps");
        assert!(meter([steady; 20]).settled());
        // Layer 0 is no longer among the lowest from step 15 on.
        let turn = || (0..24).map(|step| if step == 14 { [99.0, 2.0, 3.0, 4.0] } else { steady });
        let found = meter(turn());
        assert!(!found.settled());
        assert_eq!(found.report(Criterion::IGIA).settled_since, 15);
        assert!(meter(turn().chain([steady])).settled());
    }

    #[test]
    fn halves_that_disagree_are_weak() {
        let (up, down) = ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]);
        let steady = meter([up; 6]).report(Criterion::IGIA);
        assert_eq!((steady.between_halves, steady.is_weak()), (Some(1.0), false));
        let torn = meter([up, down, up, down, up, down]).report(Criterion::IGIA);
        assert_eq!((torn.between_halves, torn.is_weak()), (Some(-1.0), true));
    }

    #[test]
    fn what_is_not_made_of_gradients_has_settled_after_the_fewest_steps() {
        let steps = |count| {
            let mut meter = meter([[1.0, 2.0, 3.0, 4.0]; 0]);
            meter.criterion = Some("bi".parse().unwrap());
            for _ in 0..count {
                let a = array![[1.0]];
                let pair = StepGradients { a, b: array![[1.0]] };
                meter.add(&vec![((0, Module::QProj.into()), pair)]).unwrap();
            }
            meter
        };
        assert!(!steps(19).settled() && steps(20).settled());
        assert_eq!(steps(20).finish().1, None);
    }
}
