//! Passes of rows through some layers, each weighted by a gate, forth and back.

use tch::Tensor;

use crate::Result;
use crate::head::Head;
use crate::layer::Descent;
use crate::loss::CrossEntropy;
use crate::observer::Nobody;
use crate::offload::Passage;
use crate::stop;
use crate::walk::{Pack, Walk};

/// A layer of a path, and the weight of what it adds to its input:
///
/// ```text
/// x ← x + s·(layer(x) − x)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gated {
    /// The layer's number.
    pub(crate) layer: usize,
    /// `s`.
    pub(crate) gate: f64,
}

/// What the way back shows of a layer.
pub(crate) struct Turn<'a> {
    /// Its place in the path.
    pub(crate) place: usize,
    /// What it was applied to, `[n, hidden]`.
    pub(crate) input: &'a Tensor,
    /// What it gave, before the gate.
    pub(crate) output: &'a Tensor,
    /// The gradient of the state after the gate.
    pub(crate) gradient: &'a Tensor,
}

/// A pack on its way through layers with gates.
pub(crate) struct GatedPass<'a> {
    pub(crate) walk: &'a Walk<'a>,
    /// Something of it must be labelled.
    pub(crate) pack: &'a Pack,
    /// The layers it goes through, in order.
    pub(crate) path: &'a [Gated],
    /// What the sum of the labelled tokens' negative log-likelihoods is multiplied by where gradients are taken.
    pub(crate) scale: f64,
}

impl GatedPass<'_> {
    /// Takes the pack through its path and the gradient back down; returns the sum of the labelled tokens'
    /// negative log-likelihoods. `see` gets each layer on the way back, the last first.
    ///
    /// Held are the layers' inputs; the rest is computed again. Nothing of the model gathers gradients. What is
    /// below a gate gets
    ///
    /// ```text
    /// ∂L/∂x = layer.backward(s·δ) + (1 − s)·δ
    /// ```
    pub(crate) fn forth_and_back(
        &self,
        see: &mut dyn FnMut(&Turn<'_>) -> Result<()>,
    ) -> Result<f64> {
        let &Self { walk, pack, path, scale } = self;
        let (up, down) = (path.iter(), path.iter().rev());
        let mut passage = Passage::new(walk.model, up.chain(down).map(|at| at.layer));
        let mut x = walk.model.embed(&pack.rows)?;
        let mut inputs = Vec::new();
        for &Gated { layer: number, gate } in path {
            stop::check()?;
            let layer = passage.next()?;
            let (output, _) = walk.through(pack, number, &layer, &x)?;
            let next = gated(&x, output, gate)?;
            inputs.push(x);
            x = next;
        }
        let head = walk.model.head();
        let (norm, weight) = (head.norm.untrained(), head.weight.untrained());
        let head = Head { norm: &norm, weight: &weight, ..head };
        let (sums, mut gradient) = head.loss(&x, &pack.rows, &CrossEntropy { scale })?;
        drop(x);
        for (place, &Gated { layer: number, gate }) in path.iter().enumerate().rev() {
            stop::check()?;
            let layer = passage.next()?.untrained();
            let Some(input) = inputs.pop() else { break };
            let (output, saved) = walk.through(pack, number, &layer, &input)?;
            see(&Turn { place, input: &input, output: &output, gradient: &gradient })?;
            let is_open = gate == 1.0;
            let into = match is_open {
                true => gradient.shallow_clone(),
                false => gradient.f_mul_scalar(gate)?,
            };
            let descent = Descent {
                number,
                input: &input,
                saved: &saved,
                rotation: walk.rotation(pack, number),
                attention: walk.attention(pack, number),
                gradient: &into,
                below: true,
            };
            let Some(through) = layer.backward(&descent, &mut Nobody)? else { break };
            gradient = match is_open {
                true => through,
                false => through.f_add(&gradient.f_mul_scalar(1.0 - gate)?)?,
            };
        }
        Ok(sums.negative_log_likelihood)
    }
}

/// `x + s·(y − x)`, which is `y` itself behind an open gate.
fn gated(x: &Tensor, y: Tensor, gate: f64) -> Result<Tensor> {
    match gate == 1.0 {
        true => Ok(y),
        false => Ok(y.f_sub(x)?.f_mul_scalar(gate)?.f_add(x)?),
    }
}
