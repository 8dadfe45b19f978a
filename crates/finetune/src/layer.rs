//! One decoder layer, forward and backward.

use std::collections::BTreeMap;

use checkpoint::{Activation, Module};
use tch::{Device, Tensor};

use crate::attention::{Attended, Attention, Heads};
use crate::linear::{Inner, Linear, Siblings};
use crate::lora::Lora;
use crate::norm::Norm;
use crate::observer::{Observer, WeightPass};
use crate::parameter::Parameter;
use crate::product;
use crate::rope::Rotation;
use crate::weight::Weight;
use crate::{FinetuneError, Result};

/// Attention and MLP, each added to what goes in, with norms before, after or around them.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) norms: LayerNorms,
    /// Norms of queries and keys.
    pub(crate) qk_norms: Option<QkNorms>,
    pub(crate) linears: BTreeMap<Module, Linear>,
    pub(crate) shape: LayerShape,
}

/// The norms that a layer has.
#[derive(Debug)]
pub(crate) struct LayerNorms {
    pub(crate) before_attention: Option<Norm>,
    pub(crate) after_attention: Option<Norm>,
    pub(crate) before_mlp: Option<Norm>,
    pub(crate) after_mlp: Option<Norm>,
}

/// Norms of queries and keys.
#[derive(Debug)]
pub(crate) struct QkNorms {
    pub(crate) queries: Norm,
    pub(crate) keys: Norm,
    /// Whether each head is normalised by itself, or all together.
    pub(crate) is_by_head: bool,
}

/// What of a layer is no weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerShape {
    pub(crate) head_dim: i64,
    /// Outputs of queries, of keys and of values.
    pub(crate) qkv: [i64; 3],
    /// Outputs of gate and of up.
    pub(crate) gate_up: [i64; 2],
    /// Whether queries, keys and values are one weight, and gate and up another.
    pub(crate) is_fused: bool,
    pub(crate) activation: Activation,
    /// What attention and MLP give is multiplied by this before it is added.
    pub(crate) residual_scale: f64,
}

/// Queries and keys.
type HeadPair = (Tensor, Tensor);

/// What the backward pass wants of a forward pass, besides the layer's input.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Queries and keys before their norms.
    unnormed: Option<HeadPair>,
    heads: Heads,
    attended: Attended,
    /// What attention and the MLP gave before the norms after them.
    given: [Option<Tensor>; 2],
    /// What the MLP, or its norm, sees.
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// What adapters keep: of queries, keys and values; output; gate and up; down.
    inner: [Inner; 4],
}

/// A layer's turn in a backward pass.
pub(crate) struct Descent<'a> {
    /// The layer's number.
    pub(crate) number: usize,
    /// What it was applied to, `[n, hidden]`.
    pub(crate) input: &'a Tensor,
    /// What its forward pass left.
    pub(crate) saved: &'a Saved,
    /// `None` if its queries and keys are not rotated.
    pub(crate) rotation: Option<&'a Rotation>,
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
        rotation: Option<&Rotation>,
        attend: impl FnOnce(&Heads) -> Result<Attended>,
    ) -> Result<(Tensor, Saved)> {
        let LayerNorms { before_attention, after_attention, before_mlp, after_mlp } = &self.norms;
        let normed = normed(before_attention.as_ref(), x)?;
        let ([queries, keys, values], inner_qkv) =
            self.project(self.qkv(), self.shape.qkv, &normed)?;
        let ((queries, keys), unnormed) = self.normed_heads(queries, keys)?;
        let values = self.by_head(&values)?;
        let (queries, keys) = match rotation {
            Some(rotation) => (rotation.forward(&queries)?, rotation.forward(&keys)?),
            None => (queries, keys),
        };
        let heads = Heads { queries, keys, values };
        let attended = attend(&heads)?;
        let ([output], inner_o) = self.project(&OUTPUT, [0], &attended.output)?;
        let (middle, attention) = self.added(x, output, after_attention.as_ref())?;

        let normed = self::normed(before_mlp.as_ref(), &middle)?;
        let ([gate, up], inner_gate_up) =
            self.project(self.gate_up(), self.shape.gate_up, &normed)?;
        let active = self.active(&gate)?.f_mul(&up)?;
        let ([output], inner_down) = self.project(&DOWN, [0], &active)?;
        let (out, mlp) = self.added(&middle, output, after_mlp.as_ref())?;
        let inner = [inner_qkv, inner_o, inner_gate_up, inner_down];
        let given = [attention, mlp];
        Ok((out, Saved { unnormed, heads, attended, given, middle, gate, up, inner }))
    }

    /// What the frozen weight of `down_proj` alone adds to the layer's output in a forward pass: the MLP's output without
    /// a bias and without an adapter. Where a norm stands behind the MLP it is not what is added.
    pub(crate) fn frozen_mlp(&self, saved: &Saved) -> Result<Tensor> {
        let active = self.active(&saved.gate)?.f_mul(&saved.up)?;
        let given =
            product::linear(&active, self.linears[&Module::DownProj].weight.factor(), None)?;
        self.scaled(given)
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
        let Saved { unnormed, heads, attended, given, middle, gate, up, inner } = saved;
        let [inner_qkv, inner_o, inner_gate_up, inner_down] = inner;
        let [of_attention, of_mlp] = given.each_ref().map(Option::as_ref);
        let LayerNorms { before_attention, after_attention, before_mlp, after_mlp } = &self.norms;
        let mut show = |modules: &[Module], input: &Tensor, gradients: &[Tensor]| -> Result<()> {
            if !observer.wants_gradients() {
                return Ok(());
            }
            modules.iter().zip(gradients).try_for_each(|(&module, gradient)| {
                let weight = &self.linears[&module].weight.tensor()?;
                observer.weight(&WeightPass { layer: number, module, weight, input, gradient })
            })
        };

        let (of_gate, of_up) = {
            let acting = self.active(gate)?;
            let active = acting.f_mul(up)?;
            let gradients = [self.given_gradient(gradient, after_mlp.as_ref(), of_mlp)?];
            show(&DOWN, &active, &gradients)?;
            let of_active = self.siblings(&DOWN).backward(&active, inner_down, &gradients)?;
            (self.active_backward(gate, &of_active.f_mul(up)?)?, of_active.f_mul(&acting)?)
        };
        let of_middle = {
            let (modules, normed) = (self.gate_up(), normed(before_mlp.as_ref(), middle)?);
            let gradients = Self::of_weights(modules, [of_gate, of_up])?;
            show(modules, &normed, &gradients)?;
            let of_normed = self.siblings(modules).backward(&normed, inner_gate_up, &gradients)?;
            gradient.f_add(&normed_gradient(before_mlp.as_ref(), middle, of_normed)?)?
        };

        let of_attended = {
            let of_given =
                self.given_gradient(&of_middle, after_attention.as_ref(), of_attention)?;
            let gradients = [of_given];
            show(&OUTPUT, &attended.output, &gradients)?;
            self.siblings(&OUTPUT).backward(&attended.output, inner_o, &gradients)?
        };
        let Heads { queries, keys, values } = attention.backward(heads, attended, &of_attended)?;
        let (queries, keys) = match rotation {
            Some(rotation) => (rotation.backward(&queries)?, rotation.backward(&keys)?),
            None => (queries, keys),
        };
        let [queries, keys] = self.normed_heads_gradients(unnormed.as_ref(), [queries, keys])?;
        let (modules, normed) = (self.qkv(), normed(before_attention.as_ref(), x)?);
        let gradients = Self::of_weights(modules, [queries, keys, by_token(&values)?])?;
        show(modules, &normed, &gradients)?;
        let siblings = self.siblings(modules);
        let of_products = siblings.gather(&normed, inner_qkv, &gradients)?;
        let norm_trains = before_attention.as_ref().is_some_and(|norm| norm.weight.trains());
        if !below && !norm_trains {
            return Ok(None);
        }
        let of_normed = siblings.input_gradient(&of_products)?;
        let of_input = normed_gradient(before_attention.as_ref(), x, of_normed)?;
        Ok(Some(of_middle.f_add(&of_input)?))
    }

    /// `[n, heads · head_dim]` as `[n, heads, head_dim]`.
    fn by_head(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.size2()?;
        let head_dim = self.shape.head_dim;
        Ok(x.f_view([tokens, width / head_dim, head_dim])?)
    }

    /// Queries and keys by head, normalised if the layer does so, and what they were before.
    fn normed_heads(&self, queries: Tensor, keys: Tensor) -> Result<(HeadPair, Option<HeadPair>)> {
        let Some(norms) = &self.qk_norms else {
            return Ok(((self.by_head(&queries)?, self.by_head(&keys)?), None));
        };
        if norms.is_by_head {
            let (queries, keys) = (self.by_head(&queries)?, self.by_head(&keys)?);
            let normed = (norms.queries.forward(&queries)?, norms.keys.forward(&keys)?);
            return Ok((normed, Some((queries, keys))));
        }
        let (q, k) = (norms.queries.forward(&queries)?, norms.keys.forward(&keys)?);
        Ok(((self.by_head(&q)?, self.by_head(&k)?), Some((queries, keys))))
    }

    /// The gradients of queries and keys as projections gave them, `[n, heads · head_dim]`.
    fn normed_heads_gradients(
        &self,
        unnormed: Option<&HeadPair>,
        gradients: [Tensor; 2],
    ) -> Result<[Tensor; 2]> {
        let [queries, keys] = gradients;
        let (Some(norms), Some((raw_queries, raw_keys))) = (&self.qk_norms, unnormed) else {
            return Ok([by_token(&queries)?, by_token(&keys)?]);
        };
        let back = |norm: &Norm, raw: &Tensor, gradient: &Tensor| -> Result<Tensor> {
            match norms.is_by_head {
                true => by_token(&norm.backward(raw, gradient)?),
                false => norm.backward(raw, &by_token(gradient)?),
            }
        };
        let queries = back(&norms.queries, raw_queries, &queries)?;
        Ok([queries, back(&norms.keys, raw_keys, &keys)?])
    }

    /// What a part gave added to what went into it, and, if it is normalised before, as it was.
    fn added(
        &self,
        x: &Tensor,
        given: Tensor,
        after: Option<&Norm>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let Some(norm) = after else {
            return Ok((x.f_add(&self.scaled(given)?)?, None));
        };
        let sum = x.f_add(&self.scaled(norm.forward(&given)?)?)?;
        Ok((sum, Some(given)))
    }

    /// The gradient of what a part gave from that of the sum.
    fn given_gradient(
        &self,
        of_sum: &Tensor,
        after: Option<&Norm>,
        given: Option<&Tensor>,
    ) -> Result<Tensor> {
        let gradient = self.scaled(of_sum.shallow_clone())?;
        match (after, given) {
            (Some(norm), Some(given)) => norm.backward(given, &gradient),
            _ => Ok(gradient),
        }
    }

    fn scaled(&self, x: Tensor) -> Result<Tensor> {
        match self.shape.residual_scale {
            1.0 => Ok(x),
            scale => Ok(x.f_mul_scalar(scale)?),
        }
    }

    fn active(&self, gate: &Tensor) -> Result<Tensor> {
        Ok(match self.shape.activation {
            Activation::Silu => gate.f_silu()?,
            Activation::GeluTanh => gate.f_gelu("tanh")?,
        })
    }

    fn active_backward(&self, gate: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        Ok(match self.shape.activation {
            Activation::Silu => gate.f_silu_backward(gradient)?,
            Activation::GeluTanh => gate.f_gelu_backward(gradient, "tanh")?,
        })
    }

    /// Makes all its weights train, on a device.
    pub(crate) fn train(&mut self, device: Device) -> Result<()> {
        for norm in self.norms.all_mut() {
            norm.weight.train()?;
        }
        if let Some(norms) = &mut self.qk_norms {
            norms.queries.weight.train()?;
            norms.keys.weight.train()?;
        }
        for linear in self.linears.values_mut() {
            linear.weight.parameter_mut()?.train_on(device)?;
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
        }) || self.norms.all().any(|norm| norm.weight.trains())
    }

    /// The linear weights that do not train, but for those in four bits.
    pub(crate) fn frozen(&self) -> BTreeMap<Module, Tensor> {
        let whole = self.linears.iter().filter_map(|(&module, linear)| {
            let weight = linear.weight.parameter().filter(|weight| !weight.trains())?;
            Some((module, weight.value.shallow_clone()))
        });
        whole.collect()
    }

    /// The same layer with other handles on [`Layer::frozen`]'s weights.
    pub(crate) fn with_frozen(&self, mut weights: BTreeMap<Module, Tensor>) -> Self {
        let linears = self.linears.iter().map(|(&module, linear)| {
            let weight = match weights.remove(&module) {
                Some(weight) => Weight::Whole(Parameter::frozen(weight)),
                None => linear.weight.share(),
            };
            let bias = linear.bias.as_ref().map(Parameter::share);
            (module, Linear { weight, bias, lora: linear.lora.as_ref().map(Lora::share) })
        });
        Self {
            norms: self.norms.map(Norm::share),
            qk_norms: self.qk_norms.as_ref().map(|norms| norms.map(Norm::share)),
            linears: linears.collect(),
            shape: self.shape,
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
            norms: self.norms.map(Norm::untrained),
            qk_norms: self.qk_norms.as_ref().map(|norms| norms.map(Norm::untrained)),
            linears: linears.collect(),
            shape: self.shape,
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
            linear.weight.parameter_mut()?.train()?;
        }
        Ok(layer)
    }

    fn siblings(&self, modules: &[Module]) -> Siblings<'_> {
        Siblings(modules.iter().map(|module| &self.linears[module]).collect())
    }

    /// The weights of queries, keys and values.
    fn qkv(&self) -> &'static [Module] {
        if self.shape.is_fused { &[Module::QkvProj] } else { &QKV }
    }

    /// The weights of gate and up.
    fn gate_up(&self) -> &'static [Module] {
        if self.shape.is_fused { &[Module::GateUpProj] } else { &GATE_UP }
    }

    /// Outputs of so many features each, of one weight or of as many, and what adapters keep.
    fn project<const N: usize>(
        &self,
        modules: &[Module],
        widths: [i64; N],
        x: &Tensor,
    ) -> Result<([Tensor; N], Inner)> {
        let (mut outputs, inner) = self.siblings(modules).forward(x)?;
        if outputs.len() < N {
            outputs = outputs[0].f_split_with_sizes(widths, 1)?;
        }
        let wrong = |_| FinetuneError::Settings("a fused weight has other parts".into());
        Ok((<[Tensor; N]>::try_from(outputs).map_err(wrong)?, inner))
    }

    /// Gradients of the outputs of weights from those of their parts.
    fn of_weights<const N: usize>(modules: &[Module], parts: [Tensor; N]) -> Result<Vec<Tensor>> {
        match modules.len() < N {
            true => Ok(vec![Tensor::f_cat(&parts, 1)?]),
            false => Ok(parts.into()),
        }
    }
}

impl LayerNorms {
    /// Those that there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Norm> {
        let Self { before_attention, after_attention, before_mlp, after_mlp } = self;
        [before_attention, after_attention, before_mlp, after_mlp].into_iter().flatten()
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let Self { before_attention, after_attention, before_mlp, after_mlp } = self;
        [before_attention, after_attention, before_mlp, after_mlp].into_iter().flatten()
    }

    fn map(&self, of: impl Fn(&Norm) -> Norm) -> Self {
        Self {
            before_attention: self.before_attention.as_ref().map(&of),
            after_attention: self.after_attention.as_ref().map(&of),
            before_mlp: self.before_mlp.as_ref().map(&of),
            after_mlp: self.after_mlp.as_ref().map(&of),
        }
    }
}

impl QkNorms {
    fn map(&self, of: impl Fn(&Norm) -> Norm) -> Self {
        Self { queries: of(&self.queries), keys: of(&self.keys), is_by_head: self.is_by_head }
    }
}

fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.shallow_clone()), |norm| norm.forward(x))
}

/// The gradient of what a norm sees, if there is one.
fn normed_gradient(norm: Option<&Norm>, x: &Tensor, gradient: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.backward(x, &gradient),
        None => Ok(gradient),
    }
}

/// `[n, heads, head_dim]` as `[n, heads · head_dim]`.
fn by_token(x: &Tensor) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.size3()?;
    Ok(x.f_reshape([tokens, heads * head_dim])?)
}

const QKV: [Module; 3] = [Module::QProj, Module::KProj, Module::VProj];
const OUTPUT: [Module; 1] = [Module::OProj];
const GATE_UP: [Module; 2] = [Module::GateProj, Module::UpProj];
const DOWN: [Module; 1] = [Module::DownProj];
