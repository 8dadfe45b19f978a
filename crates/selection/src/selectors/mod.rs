//! The rules, a file each.

mod angular;
mod bi;
mod cka;
mod exact;
mod gates;
mod gradmap;
mod greedy;
pub(crate) mod igia;
mod igia_bi;
mod igia_fro;
mod igia_mean;
mod last;
mod linear_fit;
mod magnitude;
mod max_rm_bi;
mod perplexity;
mod policy;
mod random;
mod taylor;

use crate::Selector;

/// Every selector, the default first.
pub const SELECTORS: &[&dyn Selector] = &[
    &igia::Igia,
    &igia_fro::IgiaFro,
    &igia_mean::IgiaMean,
    &exact::Exact,
    &taylor::Taylor,
    &bi::BlockInfluence,
    &igia_bi::IgiaBi,
    &angular::Angular,
    &cka::Cka,
    &max_rm_bi::MaxRmBi,
    &gradmap::GradMap,
    &perplexity::Perplexity,
    &greedy::Greedy,
    &linear_fit::LinearFit,
    &gates::Gates,
    &policy::Policy,
    &magnitude::Magnitude,
    &last::Last,
    &random::Random,
];

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use checkpoint::{Activations, Checkpoint, Module};
    use evidence::{
        Evidence, EvidenceError, GateSettings, Hidden, HiddenMeans, LayerSensitivity, LossProbe,
        Need, RunErrors, RunSettings, Sensitivity, WeightSensitivity,
    };

    use super::*;
    use crate::{Criterion, Keep, SelectionError, Share};

    /// Evidence of layers that all do the same.
    pub(crate) fn hidden(num_layers: usize) -> Hidden {
        let square = vec![vec![0.5; num_layers + 1]; num_layers + 1];
        Hidden::new(HiddenMeans {
            rows: 1,
            tokens: 1,
            cosines: square.clone(),
            last_cosines: square,
            cka: vec![0.5; num_layers],
            relative_step: vec![0.5; num_layers],
        })
    }

    /// Evidence of layers whose module `m` has the squared gradient `(value · (m + 1))²`, and `(m + 1) / value` of
    /// weight times gradient.
    pub(crate) fn sensitivity(values: &[f64]) -> Sensitivity {
        let layer = |value: &f64| {
            let weight = |(m, module): (usize, Module)| {
                let m = m as f64 + 1.0;
                let gradient_squared = (value * m).powi(2);
                let weight_times_gradient = m / value;
                (module, WeightSensitivity { gradient_squared, weight_times_gradient })
            };
            let modules = Module::SPLIT.into_iter().enumerate().map(weight).collect();
            LayerSensitivity { state_gradient: *value, modules }
        };
        Sensitivity::new(1, 1, values.iter().map(layer).collect())
    }

    /// Losses by a formula, and the sets that were asked for. Whatever else a probe says of a layer is what is lost
    /// with it besides.
    pub(crate) struct Formula {
        of: fn(&[usize]) -> f64,
        pub(crate) asked: Vec<Vec<usize>>,
    }

    impl Formula {
        pub(crate) fn new(of: fn(&[usize]) -> f64) -> Self {
            Self { of, asked: Vec::new() }
        }
    }

    impl LossProbe for Formula {
        fn loss(&mut self, without: &[usize]) -> evidence::Result<f64> {
            assert!(without.is_sorted_by(|x, y| x < y), "{without:?}");
            self.asked.push(without.to_vec());
            Ok((self.of)(without))
        }

        fn state_gradients(&mut self, without: &[usize]) -> evidence::Result<BTreeMap<usize, f64>> {
            let lost = self.loss(without)?;
            let left = (0..30).filter(|layer| !without.contains(layer));
            let with = |layer: usize| {
                let mut set = [without, &[layer]].concat();
                set.sort_unstable();
                (layer, (self.of)(&set) - lost)
            };
            Ok(left.map(with).collect())
        }

        fn gates(&mut self, _: &GateSettings) -> evidence::Result<Vec<f64>> {
            (0..6).map(|layer| self.loss(&[layer])).collect()
        }

        fn run_errors(&mut self, settings: &RunSettings) -> evidence::Result<RunErrors> {
            let mut errors = RunErrors::default();
            for run in settings.runs() {
                let set: Vec<usize> = run.clone().collect();
                errors.insert(run, self.loss(&set)?);
            }
            Ok(errors)
        }
    }

    #[test]
    fn names_are_told_apart_and_found() {
        let names: BTreeSet<_> = SELECTORS.iter().map(|selector| selector.name()).collect();
        assert_eq!(names.len(), SELECTORS.len());
        for name in names {
            assert_eq!(name.parse::<Criterion>().unwrap().name(), name);
        }
        assert!("igia-median".parse::<Criterion>().unwrap_err().contains("igia-mean"));
    }

    /// Whatever a selector is, it chooses so many different layers of those that may go, and the same again.
    #[test]
    fn what_is_chosen_may_go() {
        let folder = testkit::fixture("tiny_llama");
        let model = Checkpoint::open(&folder.join("model")).unwrap();
        let record = checkpoint::Record::open(&folder.join("record")).unwrap();
        for criterion in Criterion::all() {
            for (count, keep) in [(1, Keep::Guard), (4, Keep::Guard), (3, Keep::NONE)] {
                let choose = || {
                    let mut seen = Evidence::of_record(&record, &[Need::Gradients]).unwrap();
                    let influence = vec![0.5, 0.1, 0.4, 0.4, 0.2, 0.3];
                    seen.activations = Some(Activations::new(9, influence));
                    seen.hidden = Some(hidden(6));
                    seen.sensitivity = Some(sensitivity(&[5.0, 2.0, 4.0, 4.0, 1.0, 3.0]));
                    seen.model = Some(&model);
                    let mut losses =
                        Formula::new(|set| set.iter().map(|l| l * 5 % 6).sum::<usize>() as f64);
                    seen.losses = Some(&mut losses);
                    let request = criterion.request(6, Share::Layers(count), keep, 3).unwrap();
                    let found = criterion.select(&mut seen, &request).unwrap();
                    (found.removed, request)
                };
                let (removed, request) = choose();
                let different: BTreeSet<_> = removed.iter().collect();
                assert_eq!((removed.len(), different.len()), (count, count), "{criterion:?}");
                assert!(removed.iter().all(|layer| request.candidates.contains(layer)));
                assert_eq!(choose().0, removed, "{criterion:?}");
            }
        }
    }

    #[test]
    fn missing_evidence_is_named() {
        for criterion in Criterion::all() {
            let request = criterion.request(6, Share::Layers(2), Keep::Guard, 0).unwrap();
            let mut none = Evidence { num_layers: 6, ..Evidence::default() };
            let found = criterion.select(&mut none, &request);
            match criterion.all_needs() {
                [] => assert!(found.is_ok()),
                needs => {
                    let Err(SelectionError::Evidence(error)) = found else {
                        panic!("{criterion:?} must want {needs:?}");
                    };
                    let EvidenceError::Missing { selector, need } = error else {
                        panic!("{error}")
                    };
                    assert_eq!((selector, need), (criterion.name(), needs[0]));
                }
            }
        }
    }
}
