//! `taylor`: what the loss is expected to lose with each weight.

use evidence::{Evidence, Need};

use crate::{Criterion, Result, Scores, Selector};

/// The first-order change of the loss if an element of a weight is set to zero, in magnitude, summed over the layer
/// (Shortened `LLaMA`, arXiv 2402.02834):
///
/// ```text
/// score(l) = Σ_{W in l} (1/b) Σ_i Σ |W ∘ ∂L_i/∂W|
/// ```
///
/// with `L_i` the mean token loss of batch `i` of `b`.
pub(crate) struct Taylor;

impl Selector for Taylor {
    fn name(&self) -> &'static str {
        "taylor"
    }

    fn about(&self) -> &'static str {
        "the sum of the magnitudes of weights times their gradients"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Sensitivity]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let weights = seen.sensitivity(self.name())?.weights();
        let scores = weights.map(|(at, weight)| (at, weight.weight_times_gradient));
        Ok(Some(Scores::of_weights(Criterion::of(&Self), scores)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::sensitivity;

    #[test]
    fn weights_times_gradients_of_all_weights() {
        let sensitivity = Some(sensitivity(&[3.0, 1.0, 2.0]));
        let mut seen = Evidence { num_layers: 3, sensitivity, ..Evidence::default() };
        let found = Taylor.scores(&mut seen).unwrap().unwrap();
        // Module m of layer l has (m + 1) / l's value; 1 + … + 7 = 28.
        let scores: Vec<f64> = found.layers.iter().map(|layer| layer.score).collect();
        let expected = [28.0 / 3.0, 28.0, 14.0];
        assert!(scores.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-12), "{scores:?}");
        assert_eq!(found.ranking(), [0, 2, 1]);
    }
}
