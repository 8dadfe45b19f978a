//! `gates`: layers that training turns down.

use evidence::{Evidence, GateSettings, Need};

use crate::{Criterion, Result, Scores, Selector};

/// How gates are trained. Steps times rate is below 1: a gate is shut only where steps in a row are larger than the rate, as
/// Adam's are where gradients grow.
const TRAINING: GateSettings = GateSettings { steps: 45, learning_rate: 0.02, penalty: 0.05 };

/// What training leaves of a scalar that multiplies what the layer adds (`TRSP`, arXiv 2505.18232), on rows held out of
/// the fine-tuning:
///
/// ```text
/// score(l) = |s_l|,   x_{l+1} = x_l + s_l·f_l(x_l),   min over s of L + λ·Σ|s_l|
/// ```
///
/// from `s = 1` on, 45 steps of Adam at a rate of 0.02 with `λ` 0.05, none of which goes below `s = 0`. Nothing else trains.
pub(crate) struct Gates;

impl Selector for Gates {
    fn name(&self) -> &'static str {
        "gates"
    }

    fn about(&self) -> &'static str {
        "a scalar on the layer's contribution, trained on held-out rows to be small"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Loss]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> Result<Option<Scores>> {
        let gates = seen.losses(self.name())?.gates(&TRAINING)?;
        let scores: Vec<f64> = gates.iter().map(|gate| gate.abs()).collect();
        Ok(Some(Scores::of_layers(Criterion::of(&Self), &scores)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::Formula;

    #[test]
    fn small_gates_go_whatever_their_sign() {
        let mut probe = Formula::new(|set| [0.5, -0.25, 1.0, -2.0, 0.0, 0.75][set[0]]);
        let mut seen = Evidence { num_layers: 6, losses: Some(&mut probe), ..Evidence::default() };
        let found = Gates.scores(&mut seen).unwrap().unwrap();
        assert_eq!(found.ranking(), [4, 1, 0, 5, 2, 3]);
    }
}
