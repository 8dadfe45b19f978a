//! `perplexity`: what is lost without each layer alone.

use evidence::{Evidence, Need};

use crate::{Criterion, Result, Scores, Selector};

/// What is lost when the layer alone is skipped (Shortened `LLaMA`, arXiv 2402.02834), on rows held out of training:
///
/// ```text
/// score(l) = D({l})
/// ```
///
/// `D` is the distance of answers and last states from the whole model's, since plain perplexity ranks noise once it
/// has left the whole model's far behind.
pub(crate) struct Perplexity;

impl Selector for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn about(&self) -> &'static str {
        "the distance from the whole model on held-out rows when only this layer is skipped"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Loss]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let num_layers = seen.num_layers;
        let losses = seen.losses(self.name())?;
        let scores =
            (0..num_layers).map(|layer| losses.loss(&[layer])).collect::<Result<Vec<f64>, _>>()?;
        Ok(Some(Scores::of_layers(Criterion::of(&Self), &scores)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::Formula;

    #[test]
    fn each_layer_alone() {
        let mut losses = Formula::new(|without| (without[0] * 7 % 5) as f64);
        let mut seen = Evidence { num_layers: 4, losses: Some(&mut losses), ..Evidence::default() };
        let found = Perplexity.scores(&mut seen).unwrap().unwrap();
        let scores: Vec<f64> = found.layers.iter().map(|layer| layer.score).collect();
        assert_eq!(scores, [0.0, 2.0, 4.0, 1.0]);
        assert_eq!(losses.asked.len(), 4);
    }
}
