//! `cka`: centred kernel alignment.

use evidence::{Evidence, Need};

use crate::{Criterion, Result, Scores, Selector};

/// How unlike the layer's input and output are as representations of rows (arXiv 2602.05988), linear, at last tokens:
///
/// ```text
/// score(l) = 1 − ‖Yᵀ·X‖²_F / (‖Xᵀ·X‖_F · ‖Yᵀ·Y‖_F)
/// ```
///
/// with `X` and `Y` the centred states before and after the layer, a row of data a row.
pub(crate) struct Cka;

impl Selector for Cka {
    fn name(&self) -> &'static str {
        "cka"
    }

    fn about(&self) -> &'static str {
        "the dissimilarity of the layer's input and output, by centred kernel alignment"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Hidden]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let scores: Vec<f64> = seen.hidden(self.name())?.cka.iter().map(|cka| 1.0 - cka).collect();
        Ok(Some(Scores::of_layers(Criterion::of(&Self), &scores)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::hidden;

    #[test]
    fn alike_is_low() {
        let mut hidden = hidden(3);
        hidden.cka = vec![0.25, 1.0, 0.5];
        let mut seen = Evidence { hidden: Some(hidden), ..Evidence::default() };
        let found = Cka.scores(&mut seen).unwrap().unwrap();
        assert_eq!(
            found.layers.iter().map(|layer| layer.score).collect::<Vec<_>>(),
            [0.75, 0.0, 0.5]
        );
    }
}
