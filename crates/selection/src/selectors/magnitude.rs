//! `magnitude`: the size of the weights, a control.

use evidence::{Evidence, Need, magnitudes};

use crate::{Criterion, Result, Scores, Selector};

/// The sum of the magnitudes of the layer's weights, which knows nothing of the data:
///
/// ```text
/// score(l) = Σ_{W in l} ‖W‖₁
/// ```
pub(crate) struct Magnitude;

impl Selector for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn about(&self) -> &'static str {
        "the sum of the weights' magnitudes, a control"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Weights]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let weights = magnitudes(seen.model(self.name())?)?;
        Ok(Some(Scores::of_weights(Criterion::of(&Self), weights.into_iter())))
    }
}
