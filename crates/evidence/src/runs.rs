//! How well linear maps stand in for runs of layers.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Which runs maps are fitted for, and how ([`LossProbe::run_errors`](crate::LossProbe::run_errors)).
#[derive(Debug, Clone, PartialEq)]
pub struct RunSettings {
    /// The layers that may go, ascending. A run is of these alone, and has a layer before it.
    pub candidates: Vec<usize>,
    /// Layers of a run at most.
    pub longest: usize,
    /// Weight of `‖T − I‖²`, relative to the mean of the squared inputs.
    pub ridge: f64,
    /// Tokens to fit on at most; first tokens of rows are none.
    pub tokens: usize,
}

/// What a linear map in the place of a run of layers leaves of its output, `‖x̂ − x‖² / ‖x‖²`, and what first tokens lack
/// without the run, by run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunErrors(BTreeMap<(usize, usize), f64>);

impl RunErrors {
    /// Takes down a run's error.
    pub fn insert(&mut self, run: RangeInclusive<usize>, error: f64) {
        self.0.insert(run.into_inner(), error);
    }

    /// A run's error; `None` for a run that was not asked for.
    pub fn get(&self, run: RangeInclusive<usize>) -> Option<f64> {
        self.0.get(&run.into_inner()).copied()
    }

    /// Every run, by its first and then its last layer.
    pub fn iter(&self) -> impl Iterator<Item = (RangeInclusive<usize>, f64)> {
        self.0.iter().map(|(&(first, last), &error)| (first..=last, error))
    }
}

impl RunSettings {
    /// Every run, by its first and then its last layer: of candidates alone, no longer than is wanted, not from layer 0
    /// on.
    pub fn runs(&self) -> impl Iterator<Item = RangeInclusive<usize>> {
        let may_go = |layer: &usize| self.candidates.binary_search(layer).is_ok();
        self.candidates.iter().filter(|&&first| first > 0).flat_map(move |&first| {
            let lasts =
                (first..first.saturating_add(self.longest)).take_while(move |last| may_go(last));
            lasts.map(move |last| first..=last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_a_layer_before_them_and_no_gaps() {
        let settings =
            RunSettings { candidates: vec![0, 1, 2, 3, 5], longest: 2, ridge: 0.0, tokens: 1 };
        let runs: Vec<_> = settings.runs().map(RangeInclusive::into_inner).collect();
        assert_eq!(runs, [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (5, 5)]);
        let mut errors = RunErrors::default();
        errors.insert(1..=2, 0.5);
        assert_eq!((errors.get(1..=2), errors.get(1..=1)), (Some(0.5), None));
        assert_eq!(errors.iter().collect::<Vec<_>>(), [(1..=2, 0.5)]);
    }
}
