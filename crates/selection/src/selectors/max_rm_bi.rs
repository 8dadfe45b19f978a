//! `max-rm-bi`: the larger of two signs that a layer does something.

use evidence::{Evidence, Need};

use crate::{Criterion, Result, Scores, Selector};

/// The larger of the layer's relative step and its block influence, each as standard scores (`XMerge`, arXiv 2609.02083):
///
/// ```text
/// score(l) = max( z(mean ‖x_{l+1} − x_l‖ / ‖x_l‖), z(1 − mean cos(x_l, x_{l+1})) )
/// ```
///
/// with `z(v) = (v − mean) / standard deviation` over layers.
pub(crate) struct MaxRmBi;

impl Selector for MaxRmBi {
    fn name(&self) -> &'static str {
        "max-rm-bi"
    }

    fn about(&self) -> &'static str {
        "the larger of relative step and block influence, as standard scores"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Hidden]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let hidden = seen.hidden(self.name())?;
        let influence: Vec<f64> =
            (0..hidden.num_layers()).map(|layer| 1.0 - hidden.cosines[layer][layer + 1]).collect();
        let (step, influence) = (standard(&hidden.relative_step), standard(&influence));
        let scores: Vec<f64> = step.iter().zip(influence).map(|(x, y)| x.max(y)).collect();
        Ok(Some(Scores::of_layers(Criterion::of(&Self), &scores)))
    }
}

/// Standard scores; zeros if all values are one.
fn standard(values: &[f64]) -> Vec<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
    let score = |x: &f64| if deviation > 0.0 { (x - mean) / deviation } else { 0.0 };
    values.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::hidden;

    #[test]
    fn the_larger_standard_score() {
        let mut hidden = hidden(3);
        // Standard scores of 1, 1, 4 are −1/√2, −1/√2, √2; of influences 0.5, 0.2, 0.2: √2, −1/√2, −1/√2.
        hidden.relative_step = vec![1.0, 1.0, 4.0];
        for (layer, cosine) in [0.5, 0.8, 0.8].into_iter().enumerate() {
            hidden.cosines[layer][layer + 1] = cosine;
        }
        let mut seen = Evidence { hidden: Some(hidden), ..Evidence::default() };
        let found = MaxRmBi.scores(&mut seen).unwrap().unwrap();
        let (high, low) = (2.0_f64.sqrt(), -0.5_f64.sqrt());
        for (layer, expected) in found.layers.iter().zip([high, low, high]) {
            assert!((layer.score - expected).abs() < 1e-9, "{layer:?}");
        }
        assert_eq!(standard(&[3.0; 4]), [0.0; 4]);
    }
}
