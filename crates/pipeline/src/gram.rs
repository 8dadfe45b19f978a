//! Layer scores summed while gradients come in, with no record on disk.

use std::collections::BTreeMap;

use checkpoint::{Module, StepGradients, StepReport};
use finetune::{FinetuneError, GradientSink};
use igia::product_norm_squared;
use prune::{Criterion, LayerScore, Scores};

/// Sums each weight's part of the scores `igia` and `igia-fro`, step by step.
#[derive(Debug, Default)]
pub struct GramScores {
    steps: usize,
    /// `Σ_i ‖G_i‖²` and `Σ_i ‖G_i‖` of each weight.
    sums: BTreeMap<(usize, Module), (f64, f64)>,
}

impl GramScores {
    /// The scores over the steps so far; `None` before the first, or for `bi`.
    pub fn scores(&self, criterion: Criterion) -> Option<Scores> {
        let steps = self.steps as f64;
        let pick = |&(squares, norms): &(f64, f64)| match criterion {
            Criterion::Igia => Some(squares / steps),
            Criterion::IgiaFro => Some(norms),
            Criterion::Bi => None,
        };
        let mut layers: BTreeMap<usize, BTreeMap<Module, f64>> = BTreeMap::new();
        for (&(layer, module), sums) in &self.sums {
            layers.entry(layer).or_default().insert(module, pick(sums)?);
        }
        let layers: Vec<_> = layers
            .into_iter()
            .map(|(layer, modules)| LayerScore { layer, score: modules.values().sum(), modules })
            .collect();
        (self.steps > 0).then(|| Scores::new(criterion, layers))
    }
}

/// `‖G‖²` of each weight's simulated gradient `G`, of one step.
pub(crate) type StepNorms = Vec<((usize, Module), f64)>;

/// One step's [`StepNorms`].
pub(crate) fn norms(
    gradients: &[((usize, Module), StepGradients)],
) -> Result<StepNorms, FinetuneError> {
    gradients
        .iter()
        .map(|(place, pair)| {
            let squared = product_norm_squared(&pair.b, &pair.a)
                .map_err(|error| FinetuneError::Settings(error.to_string()))?;
            Ok((*place, squared))
        })
        .collect()
}

impl GramScores {
    pub(crate) fn add(&mut self, norms: &StepNorms) {
        for (place, squared) in norms {
            let (squares, norms) = self.sums.entry(*place).or_default();
            *squares += squared;
            *norms += squared.sqrt();
        }
        self.steps += 1;
    }
}

impl GradientSink for GramScores {
    fn step(
        &mut self,
        _: StepReport,
        gradients: &[((usize, Module), StepGradients)],
    ) -> Result<(), FinetuneError> {
        self.add(&norms(gradients)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Record;

    use super::*;

    #[test]
    fn sums_are_the_records_scores() {
        let record = Record::open(&testkit::fixture("tiny_qwen2/record")).unwrap();
        let mut sums = GramScores::default();
        assert_eq!(sums.scores(Criterion::Igia), None);
        for step in 0..record.num_steps() {
            let gradients: Vec<_> = record
                .pairs()
                .map(|(layer, module)| {
                    ((layer, module), record.gradients(step, layer, module).unwrap())
                })
                .collect();
            let report = StepReport { loss: 0.0, grad_norm: 0.0, learning_rate: 0.0, tokens: 0 };
            sums.step(report, &gradients).unwrap();
        }
        for criterion in [Criterion::Igia, Criterion::IgiaFro] {
            let expected = prune::score(&record, criterion).unwrap();
            assert_eq!(sums.scores(criterion), Some(expected));
        }
        assert_eq!(sums.scores(Criterion::Bi), None);
    }
}
