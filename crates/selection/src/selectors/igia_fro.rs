//! `igia-fro`: the criterion of the paper's public code.

use evidence::{Evidence, Need};
use igia::WeightScores;

use crate::{Criterion, Result, Scores, Selector};

/// The sum over steps of the norms of the simulated gradients (GradPruner's code; method.md §3):
///
/// ```text
/// score(l) = Σ_i Σ_{W in l} ‖∇B_i·∇A_i‖_F
/// ```
pub(crate) struct IgiaFro;

impl Selector for IgiaFro {
    fn name(&self) -> &'static str {
        "igia-fro"
    }

    fn about(&self) -> &'static str {
        "the criterion of the authors' code: the sum of the simulated gradients' norms"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Gradients]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let weights = seen.gradients(self.name())?.weights();
        let scores =
            weights.map(|(at, weight)| (at, WeightScores::of_steps(&weight.squares).igia_fro));
        Ok(Some(Scores::of_weights(Criterion::of(&Self), scores)))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn golden_scores() {
        crate::selectors::igia::tests::check_golden("igia-fro");
    }
}
