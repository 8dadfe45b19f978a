//! `igia`: the paper's criterion.

use evidence::{Evidence, Need};
use igia::WeightScores;

use crate::{Criterion, Result, Scores, Selector};

/// The sum of the layer's IGIA matrices (GradPruner, arXiv 2601.19503; method.md §3):
///
/// ```text
/// score(l) = Σ_{W in l} Σ_{o,n} F_W[o,n] = Σ_{W in l} (1/t) Σ_i ‖∇B_i·∇A_i‖²_F
/// ```
pub(crate) struct Igia;

impl Selector for Igia {
    fn name(&self) -> &'static str {
        "igia"
    }

    fn about(&self) -> &'static str {
        "the paper's criterion: the sum of the squared simulated gradients"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Gradients]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let weights = seen.gradients(self.name())?.weights();
        let scores = weights.map(|(at, weight)| (at, WeightScores::of_steps(&weight.squares).igia));
        Ok(Some(Scores::of_weights(Criterion::IGIA, scores)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The scores of the golden records by a criterion, against those worked out independently.
    pub(crate) fn check_golden(criterion: &str) {
        let criterion: Criterion = criterion.parse().unwrap();
        for name in testkit::GOLDEN {
            let record = testkit::fixture(&format!("{name}/record"));
            let mut seen = Evidence::open(&record, criterion.all_needs()).unwrap();
            let found = criterion.scores(&mut seen).unwrap();
            let file = testkit::fixture(&format!("{name}/scores_{}.json", criterion.name()));
            let expected = Scores::read(&file).unwrap();
            assert_eq!(found.ranking(), expected.ranking(), "{name}");
            for (found, expected) in found.layers.iter().zip(&expected.layers) {
                assert!((found.score / expected.score - 1.0).abs() < 1e-6, "{name}");
                for (module, expected) in &expected.modules {
                    let found = found.modules[module];
                    assert!((found - expected).abs() <= 1e-6 * expected, "{name} {module}");
                }
            }
        }
    }

    #[test]
    fn golden_scores() {
        check_golden("igia");
    }
}
