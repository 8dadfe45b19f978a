//! Layer scores from gradients as they come in, with no record on disk.

use std::collections::BTreeMap;

use checkpoint::{Module, StepGradients};
use finetune::FinetuneError;
use igia::product_norm_squared;
use prune::{Criterion, Scores, scores_of_norms};
use rayon::prelude::*;

/// `‖G‖²` of each weight's simulated gradient `G`, of one step.
pub(crate) type StepNorms = Vec<((usize, Module), f64)>;

/// One step's [`StepNorms`].
pub(crate) fn norms(
    gradients: &[((usize, Module), StepGradients)],
) -> Result<StepNorms, FinetuneError> {
    gradients
        .par_iter()
        .map(|(place, pair)| {
            let squared = product_norm_squared(&pair.b, &pair.a)
                .map_err(|error| FinetuneError::Settings(error.to_string()))?;
            Ok((*place, squared))
        })
        .collect()
}

/// Keeps each weight's `‖G_i‖²`, step by step.
#[derive(Debug, Default)]
pub struct GramScores {
    norms: BTreeMap<(usize, Module), Vec<f64>>,
}

impl GramScores {
    /// The scores over the steps so far; `None` before the first, or for `bi`.
    pub fn scores(&self, criterion: Criterion) -> Option<Scores> {
        match criterion {
            Criterion::Bi => None,
            _ if self.norms.is_empty() => None,
            _ => Some(scores_of_norms(&self.norms, criterion)),
        }
    }

    pub(crate) fn add(&mut self, norms: &StepNorms) {
        for &(place, squared) in norms {
            self.norms.entry(place).or_default().push(squared);
        }
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
                    let pair = record.gradients(step, layer, module).unwrap();
                    let (a, b) = (pair.a.into_owned(), pair.b.into_owned());
                    ((layer, module), StepGradients { a, b })
                })
                .collect();
            sums.add(&norms(&gradients).unwrap());
        }
        for criterion in [Criterion::Igia, Criterion::IgiaFro] {
            let expected = prune::score(&record, criterion).unwrap();
            assert_eq!(sums.scores(criterion), Some(expected));
        }
        assert_eq!(sums.scores(Criterion::Bi), None);
    }
}
