//! One decoder layer, forward and backward.

use std::collections::BTreeMap;

use checkpoint::Module;
use tch::{Device, Tensor};

use crate::Result;
use crate::attention::{Attention, Heads};
use crate::linear::{Linear, Siblings};
use crate::lora::Lora;
use crate::norm::Norm;
use crate::observer::{Observer, WeightPass};
use crate::parameter::Parameter;
use crate::product;
use crate::rope::Rotation;

/// Attention and MLP, each on a normalised input, each added to it.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Norm,
    pub(crate) post_norm: Norm,
    /// Norms of queries and keys, by head (Qwen3).
    pub(crate) qk_norms: Option<(Norm, Norm)>,
    pub(crate) linears: BTreeMap<Module, Linear>,
    pub(crate) head_dim: i64,
}

/// What the backward pass wants of a forward pass, besides the layer's input.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Queries and keys before their norms.
    unnormed: Option<(Tensor, Tensor)>,
    heads: Heads,
    attended: Tensor,
    /// What the MLP's norm sees.
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// Adapters' inner values: of queries, keys and values; output; gate and up; down.
    inner: [Option<Tensor>; 4],
}

/// A layer's turn in a backward pass.
pub(crate) struct Descent<'a> {
    /// The layer's number.
    pub(crate) number: usize,
    /// What it was applied to, `[n, hidden]`.
    pub(crate) input: &'a Tensor,
    /// What its forward pass left.
    pub(crate) saved: &'a Saved,
    pub(crate) rotation: &'a Rotation,
    pub(crate) attention: &'a Attention,
    /// The gradient of its output, `[n, hidden]`.
    pub(crate) gradient: &'a Tensor,
    /// Whether something below the layer wants the gradient of its input.
    pub(crate) below: bool,
}

impl Layer {
    /// The layer's output of `x`, `[n, hidden]`, with attention as the caller has it.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        attend: impl FnOnce(&Heads) -> Result<Tensor>,
    ) -> Result<(Tensor, Saved)> {
        let by_head = |x: Tensor| {
            let (tokens, width) = x.size2()?;
            x.f_view([tokens, width / self.head_dim, self.head_dim])
        };
        let normed = self.input_norm.forward(x)?;
        let ([queries, keys, values], inner_qkv) = self.siblings(QKV).forward(&normed)?;
        let (queries, keys, values) = (by_head(queries)?, by_head(keys)?, by_head(values)?);
        let (queries, keys, unnormed) = match &self.qk_norms {
            Some((q, k)) => (q.forward(&queries)?, k.forward(&keys)?, Some((queries, keys))),
            None => (queries, keys, None),
        };
        let heads =
            Heads { queries: rotation.forward(&queries)?, keys: rotation.forward(&keys)?, values };
        let attended = attend(&heads)?;
        let ([output], inner_o) = self.siblings(OUTPUT).forward(&attended)?;
        let middle = x.f_add(&output)?;

        let normed = self.post_norm.forward(&middle)?;
        let ([gate, up], inner_gate_up) = self.siblings(GATE_UP).forward(&normed)?;
        let active = gate.f_silu()?.f_mul(&up)?;
        let ([output], inner_down) = self.siblings(DOWN).forward(&active)?;
        let out = middle.f_add(&output)?;
        let inner = [inner_qkv, inner_o, inner_gate_up, inner_down];
        Ok((out, Saved { unnormed, heads, attended, middle, gate, up, inner }))
    }

    /// What the frozen weight of `down_proj` alone gave in a forward pass: the MLP's output without a bias and
    /// without an adapter.
    pub(crate) fn frozen_mlp(&self, saved: &Saved) -> Result<Tensor> {
        let active = saved.gate.f_silu()?.f_mul(&saved.up)?;
        product::linear(&active, &self.linears[&Module::DownProj].weight.value, None)
    }

    /// Gathers the gradients of what trains in the layer from the output's, and returns the
    /// input's if something below the layer wants it.
    ///
    /// `observer` sees each linear weight, if it wants gradients.
    pub(crate) fn backward(
        &self,
        descent: &Descent<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Tensor>> {
        let &Descent { number, input: x, saved, rotation, attention, gradient, below } = descent;
        let Saved { unnormed, heads, attended, middle, gate, up, inner } = saved;
        let [inner_qkv, inner_o, inner_gate_up, inner_down] = inner.each_ref().map(Option::as_ref);
        let by_token = |x: &Tensor| {
            let (tokens, heads, head_dim) = x.size3()?;
            x.f_reshape([tokens, heads * head_dim])
        };
        let mut show = |modules: &[Module], input: &Tensor, gradients: &[Tensor]| -> Result<()> {
            if !observer.wants_gradients() {
                return Ok(());
            }
            modules.iter().zip(gradients).try_for_each(|(&module, gradient)| {
                let weight = &self.linears[&module].weight.value;
                observer.weight(&WeightPass { layer: number, module, weight, input, gradient })
            })
        };

        let (of_gate, of_up) = {
            let silu = gate.f_silu()?;
            let (active, gradients) = (silu.f_mul(up)?, [gradient.shallow_clone()]);
            show(&DOWN, &active, &gradients)?;
            let of_active = self.siblings(DOWN).backward(&active, inner_down, &gradients)?;
            (gate.f_silu_backward(&of_active.f_mul(up)?)?, of_active.f_mul(&silu)?)
        };
        let of_normed = {
            let (normed, gradients) = (self.post_norm.forward(middle)?, [of_gate, of_up]);
            show(&GATE_UP, &normed, &gradients)?;
            self.siblings(GATE_UP).backward(&normed, inner_gate_up, &gradients)?
        };
        let of_middle = gradient.f_add(&self.post_norm.backward(middle, &of_normed)?)?;

        let of_attended = {
            let gradients = [of_middle.shallow_clone()];
            show(&OUTPUT, attended, &gradients)?;
            self.siblings(OUTPUT).backward(attended, inner_o, &gradients)?
        };
        let of_heads = attention.backward(heads, &of_attended)?;
        let mut queries = rotation.backward(&of_heads.queries)?;
        let mut keys = rotation.backward(&of_heads.keys)?;
        if let (Some((q, k)), Some((raw_queries, raw_keys))) = (&self.qk_norms, unnormed) {
            (queries, keys) = (q.backward(raw_queries, &queries)?, k.backward(raw_keys, &keys)?);
        }
        let gradients = [by_token(&queries)?, by_token(&keys)?, by_token(&of_heads.values)?];
        let normed = self.input_norm.forward(x)?;
        show(&QKV, &normed, &gradients)?;
        let siblings = self.siblings(QKV);
        let of_inner = siblings.gather(&normed, inner_qkv, &gradients)?;
        if !below && !self.input_norm.weight.trains() {
            return Ok(None);
        }
        let of_normed = siblings.input_gradient(&gradients, of_inner.as_ref())?;
        Ok(Some(of_middle.f_add(&self.input_norm.backward(x, &of_normed)?)?))
    }

    /// Makes all its weights train, on a device.
    pub(crate) fn train(&mut self, device: Device) -> Result<()> {
        self.input_norm.weight.train()?;
        self.post_norm.weight.train()?;
        if let Some((q, k)) = &mut self.qk_norms {
            q.weight.train()?;
            k.weight.train()?;
        }
        for linear in self.linears.values_mut() {
            linear.weight.train_on(device)?;
            if let Some(bias) = &mut linear.bias {
                bias.train()?;
            }
        }
        Ok(())
    }

    /// Whether anything in it trains.
    pub(crate) fn trains(&self) -> bool {
        self.linears.values().any(|linear| {
            linear.lora.is_some()
                || linear.weight.trains()
                || linear.bias.as_ref().is_some_and(Parameter::trains)
        }) || self.input_norm.weight.trains()
    }

    /// The linear weights that do not train.
    pub(crate) fn frozen(&self) -> BTreeMap<Module, Tensor> {
        let frozen = self.linears.iter().filter(|(_, linear)| !linear.weight.trains());
        frozen.map(|(&module, linear)| (module, linear.weight.value.shallow_clone())).collect()
    }

    /// The same layer with other handles on [`Layer::frozen`]'s weights.
    pub(crate) fn with_frozen(&self, mut weights: BTreeMap<Module, Tensor>) -> Self {
        let linears = self.linears.iter().map(|(&module, linear)| {
            let weight = match weights.remove(&module) {
                Some(weight) => Parameter::frozen(weight),
                None => linear.weight.share(),
            };
            let bias = linear.bias.as_ref().map(Parameter::share);
            (module, Linear { weight, bias, lora: linear.lora.as_ref().map(Lora::share) })
        });
        Self {
            input_norm: self.input_norm.share(),
            post_norm: self.post_norm.share(),
            qk_norms: self.qk_norms.as_ref().map(|(q, k)| (q.share(), k.share())),
            linears: linears.collect(),
            head_dim: self.head_dim,
        }
    }

    /// The same layer with handles on the same weights, none of which trains: a backward pass leaves no gradients
    /// in it.
    pub(crate) fn untrained(&self) -> Self {
        let linears = self.linears.iter().map(|(&module, linear)| {
            let (weight, bias) = (&linear.weight, linear.bias.as_ref());
            let lora = linear.lora.as_ref().map(Lora::untrained);
            let (weight, bias) = (weight.untrained(), bias.map(Parameter::untrained));
            (module, Linear { weight, bias, lora })
        });
        Self {
            input_norm: self.input_norm.untrained(),
            post_norm: self.post_norm.untrained(),
            qk_norms: self.qk_norms.as_ref().map(|(q, k)| (q.untrained(), k.untrained())),
            linears: linears.collect(),
            head_dim: self.head_dim,
        }
    }

    /// As [`Layer::untrained`], and without adapters.
    pub(crate) fn bare(&self) -> Self {
        let mut layer = self.untrained();
        layer.linears.values_mut().for_each(|linear| linear.lora = None);
        layer
    }

    /// The same layer with copies of the linear weights that train, and nothing else that does.
    pub(crate) fn with_trained_weights(&self) -> Result<Self> {
        let mut layer = self.untrained();
        for linear in layer.linears.values_mut() {
            linear.weight.train()?;
        }
        Ok(layer)
    }

    fn siblings<const N: usize>(&self, modules: [Module; N]) -> Siblings<'_, N> {
        Siblings(modules.map(|module| &self.linears[&module]))
    }
}

const QKV: [Module; 3] = [Module::QProj, Module::KProj, Module::VProj];
const OUTPUT: [Module; 1] = [Module::OProj];
const GATE_UP: [Module; 2] = [Module::GateProj, Module::UpProj];
const DOWN: [Module; 1] = [Module::DownProj];
