//! `exact`: the squared gradients themselves.

use evidence::{Evidence, Need};

use crate::{Criterion, Result, Scores, Selector};

/// The squared gradients of the layer's weights in the model without adapters, which `igia` simulates:
///
/// ```text
/// score(l) = Σ_{W in l} (1/b) Σ_i ‖∂L_i/∂W‖²_F
/// ```
///
/// with `L_i` the mean token loss of batch `i` of `b`, as large as a collected step.
pub(crate) struct Exact;

impl Selector for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn about(&self) -> &'static str {
        "the quantity that igia simulates: the sum of the weights' squared gradients, without adapters"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Sensitivity]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let weights = seen.sensitivity(self.name())?.weights();
        let scores = weights.map(|(at, weight)| (at, weight.gradient_squared));
        Ok(Some(Scores::of_weights(Criterion::of(&Self), scores)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::sensitivity;

    #[test]
    fn squared_gradients_of_all_weights() {
        let sensitivity = Some(sensitivity(&[3.0, 1.0, 2.0]));
        let mut seen = Evidence { num_layers: 3, sensitivity, ..Evidence::default() };
        let found = Exact.scores(&mut seen).unwrap().unwrap();
        // Module m of layer l has l's value times m + 1, squared; of seven modules, 1² + … + 7² = 140.
        let scores: Vec<f64> = found.layers.iter().map(|layer| layer.score).collect();
        assert_eq!(scores, [9.0 * 140.0, 140.0, 4.0 * 140.0]);
        assert_eq!(found.ranking(), [1, 2, 0]);
    }
}
