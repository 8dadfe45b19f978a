//! `igia-bi`: layers that two signs agree on.

use evidence::{Evidence, Need};

use super::bi::BlockInfluence;
use super::igia::Igia;
use crate::{Criterion, Result, Scores, Selector};

/// The larger of a layer's ranks by gradients and by block influence: a layer goes only if both find it unimportant.
///
/// ```text
/// score(l) = max( rank of igia(l), rank of bi(l) )
/// ```
///
/// with ranks counted from 0, the least important first.
pub(crate) struct IgiaBi;

impl Selector for IgiaBi {
    fn name(&self) -> &'static str {
        "igia-bi"
    }

    fn about(&self) -> &'static str {
        "the larger of the ranks by igia and by bi: layers that both find unimportant are removed first"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Gradients, Need::Activations]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        // What is missing is missing for this rule, not for those it is made of.
        seen.gradients(self.name())?;
        seen.activations(self.name())?;
        let mut larger: Vec<f64> = Vec::new();
        for scores in [Igia.scores(seen)?, BlockInfluence.scores(seen)?].into_iter().flatten() {
            let ranking = scores.ranking();
            larger.resize(ranking.len(), 0.0);
            for (rank, layer) in ranking.into_iter().enumerate() {
                larger[layer] = larger[layer].max(rank as f64);
            }
        }
        Ok(Some(Scores::of_layers(Criterion::of(&Self), &larger)))
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::{Activations, Record};

    use super::*;

    /// Against ranks counted by hand: how many layers score less, equal ones later in the model among them.
    #[test]
    fn the_larger_rank() {
        for name in testkit::GOLDEN {
            let record = Record::open(&testkit::fixture(&format!("{name}/record"))).unwrap();
            let mut seen = Evidence::of_record(&record, &[Need::Gradients]).unwrap();
            let influence = vec![0.3, 0.1, 0.5, 0.1, 0.9, 0.2];
            seen.activations = Some(Activations::new(1, influence.clone()));
            let of = |scores: Scores| scores.layers.iter().map(|x| x.score).collect::<Vec<_>>();
            let igia = of(Igia.scores(&mut seen).unwrap().unwrap());
            let rank = |values: &[f64], layer: usize| {
                let before = |&other: &usize| {
                    values[other] < values[layer]
                        || (values[other] == values[layer] && other > layer)
                };
                (0..values.len()).filter(before).count()
            };
            let found = of(IgiaBi.scores(&mut seen).unwrap().unwrap());
            for (layer, found) in found.into_iter().enumerate() {
                let expected = rank(&igia, layer).max(rank(&influence, layer));
                assert_eq!(found, expected as f64, "{name} layer {layer}");
            }
        }
    }
}
