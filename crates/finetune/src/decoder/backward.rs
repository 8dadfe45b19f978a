//! A training's pass: forward, the loss, and the written-out way back.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::attention::Heads;
use crate::layer::{Descent, Layer, Saved};
use crate::loss::{Objective, PassSums};
use crate::observer::{LayerPass, Observer, StateGradient};
use crate::offload::Passage;
use crate::pack::Packed;
use crate::{Model, Result};

/// What a training's forward pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// All that the backward pass wants.
    Activations,
    /// Each layer's input; the rest is computed again, a layer at a time.
    LayerInputs,
}

impl Model {
    /// What a batch loses; the gradient of the objective is added to what trains.
    ///
    /// `observer` sees each layer, and the gradients if it wants them. No graph is recorded: the passes are
    /// each other's mirror, written out.
    pub(crate) fn loss_and_gradients(
        &self,
        batch: &Packed,
        objective: &Objective<'_>,
        keep: Keep,
        observer: &mut dyn Observer,
    ) -> Result<PassSums> {
        let _guard = tch::no_grad_guard();
        let shared = self.prepare(batch)?;
        let kind = |layer: usize| self.config.layers[layer];
        let attention = |layer: usize| shared.attention(kind(layer));
        let lowest = match self.embedding.trains() || observer.wants_gradients() {
            true => 0,
            false => self.layers.iter().position(Layer::trains).unwrap_or(self.layers.len()),
        };
        let mut x = self.embed(batch)?;
        let mut kept: Vec<(Tensor, Option<Saved>)> = Vec::new();
        let (mut states, mut of_states) = (0.0, BTreeMap::new());
        let (up, down) = (0..self.layers.len(), (lowest..self.layers.len()).rev());
        let mut passage = Passage::new(self, up.clone().chain(down.clone()));
        for number in up {
            let layer = passage.next()?;
            let (out, saved) = layer.forward(&x, shared.rotation(kind(number)), |heads| {
                attention(number).forward(heads)
            })?;
            let real = batch.num_tokens() as i64;
            let (input, output) = (x.f_narrow(0, 0, real)?, out.f_narrow(0, 0, real)?);
            let seen = LayerPass { rows: batch, layer: number, input: &input, output: &output };
            observer.layer(&seen)?;
            if let Some(losses) = objective.states
                && let Some(term) = losses.of(number, &out)?
            {
                states += term.loss;
                of_states.insert(number, term.of_output);
            }
            if number >= lowest {
                kept.push((x, (keep == Keep::Activations).then_some(saved)));
            }
            x = out;
        }
        let (tokens, gradient) = self.head().loss(&x, batch, objective.tokens)?;
        drop(x);
        let mut gradient = Some(gradient);
        for number in down {
            let (Some((x, saved)), Some(mut of_output)) = (kept.pop(), gradient.take()) else {
                break;
            };
            if let Some(of_state) = of_states.remove(&number) {
                let _ = of_output.f_add_(&of_state)?;
            }
            let layer = passage.next()?;
            let rotation = shared.rotation(kind(number));
            let attend = |heads: &Heads| attention(number).forward(heads);
            let saved = match saved {
                Some(saved) => saved,
                None => layer.forward(&x, rotation, attend)?.1,
            };
            if observer.wants_gradients() {
                let of_rows = of_output.f_narrow(0, 0, batch.num_tokens() as i64)?;
                observer.state_gradient(&StateGradient { layer: number, gradient: &of_rows })?;
            }
            let descent = Descent {
                number,
                input: &x,
                saved: &saved,
                rotation,
                attention: attention(number),
                gradient: &of_output,
                below: number > lowest || self.embedding.trains(),
            };
            gradient = layer.backward(&descent, observer)?;
            observer.gathered(number)?;
        }
        if let Some(gradient) = gradient {
            self.embedding.gather(|| {
                let (vocabulary, _) = self.embedding.factor().size()?;
                let wide = self.scaled_embedding(gradient)?.f_to_kind(Kind::Float)?;
                let tokens = &batch.tokens;
                Ok(Tensor::f_embedding_dense_backward(&wide, tokens, vocabulary, -1, false)?)
            })?;
        }
        Ok(PassSums { tokens, states })
    }
}
