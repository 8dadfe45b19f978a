//! `igia-mean`: `igia` per element.

use std::collections::BTreeMap;

use evidence::{Evidence, Need};
use igia::WeightScores;

use crate::{Criterion, Result, Scores, Selector};

/// The mean of the elements of the layer's IGIA matrices: big matrices count no more than small ones.
///
/// ```text
/// score(l) = Σ_{W in l} Σ_{o,n} F_W[o,n] / Σ_{W in l} out·in
/// ```
pub(crate) struct IgiaMean;

impl Selector for IgiaMean {
    fn name(&self) -> &'static str {
        "igia-mean"
    }

    fn about(&self) -> &'static str {
        "igia divided by the layer's number of scored elements"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Gradients]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let gradients = seen.gradients(self.name())?;
        let mut elements: BTreeMap<usize, usize> = BTreeMap::new();
        for ((layer, _), weight) in gradients.weights() {
            *elements.entry(layer).or_default() += weight.elements;
        }
        let scores = gradients.weights().map(|(at, weight)| {
            let sum = WeightScores::of_steps(&weight.squares).igia;
            let elements = elements[&at.0].max(1) as f64;
            (at, sum / elements)
        });
        Ok(Some(Scores::of_weights(Criterion::of(&Self), scores)))
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Record;

    use super::*;

    /// The mean over all elements of `F`, each worked out by plain loops in f64.
    #[test]
    fn the_mean_of_all_elements() {
        for name in testkit::GOLDEN {
            let record = Record::open(&testkit::fixture(&format!("{name}/record"))).unwrap();
            let mut seen = Evidence::of_record(&record, &[Need::Gradients]).unwrap();
            let found = IgiaMean.scores(&mut seen).unwrap().unwrap();
            for layer in &found.layers {
                let (mut sum, mut count) = (0.0, 0);
                for (_, module) in record.pairs().filter(|(found, _)| *found == layer.layer) {
                    let (rows, columns) = record.shape(layer.layer, &module).unwrap();
                    count += rows * columns;
                    for step in 0..record.num_steps() {
                        let pair = record.gradients(step, layer.layer, &module).unwrap();
                        for o in 0..rows {
                            for n in 0..columns {
                                let mut element = 0.0;
                                for r in 0..pair.a.nrows() {
                                    element +=
                                        f64::from(pair.b[[o, r]]) * f64::from(pair.a[[r, n]]);
                                }
                                sum += element * element / record.num_steps() as f64;
                            }
                        }
                    }
                }
                let expected = sum / count as f64;
                assert!((layer.score / expected - 1.0).abs() < 1e-9, "{name} {}", layer.layer);
            }
        }
    }
}
