//! `bi`: block influence.

use evidence::{Evidence, Need};

use crate::{Criterion, Result, Scores, Selector};

/// How far the layer turns its input (ShortGPT, arXiv 2403.03853):
///
/// ```text
/// score(l) = 1 − mean over tokens of cos(x_l, x_{l+1})
/// ```
pub(crate) struct BlockInfluence;

impl Selector for BlockInfluence {
    fn name(&self) -> &'static str {
        "bi"
    }

    fn about(&self) -> &'static str {
        "block influence: how much the layer changes the direction of its input"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Activations]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let influence = &seen.activations(self.name())?.block_influence;
        Ok(Some(Scores::of_layers(Criterion::of(&Self), influence)))
    }
}
