//! Linear maps with adapters on them, and their gradients.

use tch::{Kind, Tensor};

use crate::Result;
use crate::lora::Lora;
use crate::parameter::Parameter;
use crate::product;
use crate::weight::Weight;

/// `y = x Wᵀ + b`, and `s · (x Aᵀ) Bᵀ` if it has an adapter.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Weight,
    /// `[out]`.
    pub(crate) bias: Option<Parameter>,
    pub(crate) lora: Option<Lora>,
}

/// Linear maps of one input; all their `A` are one product.
pub(crate) struct Siblings<'a>(pub(crate) Vec<&'a Linear>);

impl Siblings<'_> {
    /// Each map's output of `x`, `[n, in]`, and the adapters' inner values side by side,
    /// `[n, Σ r]`, which the backward pass wants.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let kind = x.f_kind()?;
        let none: Option<&Tensor> = None;
        let inner = match self.stacked_a(kind)? {
            Some(a) => Some(x.f_linear(&a, none)?),
            None => None,
        };
        let (mut outputs, mut first) = (Vec::with_capacity(self.0.len()), 0);
        for linear in &self.0 {
            let bias = match &linear.bias {
                Some(bias) => Some(bias.as_kind(kind)?),
                None => None,
            };
            let mut output = product::linear(x, linear.weight.factor(), bias.as_ref())?;
            if let (Some(lora), Some(inner)) = (&linear.lora, &inner) {
                let own = inner.f_narrow(1, first, lora.rank())?;
                output = output.f_addmm_(&own, &lora.scaled_b(kind)?.f_numpy_t()?)?;
                first += lora.rank();
            }
            outputs.push(output);
        }
        Ok((outputs, inner))
    }

    /// Gathers the gradients of weights, biases and adapters from those of the outputs, and
    /// returns that of the adapters' inner values, `[n, Σ r]`.
    pub(crate) fn gather(
        &self,
        x: &Tensor,
        inner: Option<&Tensor>,
        gradients: &[Tensor],
    ) -> Result<Option<Tensor>> {
        let kind = x.f_kind()?;
        let (mut inner_gradients, mut first) = (Vec::new(), 0);
        for (linear, gradient) in self.0.iter().zip(gradients) {
            linear.weight.gather(|| wide(&gradient.f_numpy_t()?.f_mm(x)?))?;
            if let Some(bias) = &linear.bias {
                bias.gather(|| {
                    Ok(gradient.f_to_kind(Kind::Float)?.f_sum_dim_intlist(
                        0_i64,
                        false,
                        Kind::Float,
                    )?)
                })?;
            }
            if let (Some(lora), Some(inner)) = (&linear.lora, inner) {
                let own = inner.f_narrow(1, first, lora.rank())?;
                lora.b.gather(|| {
                    Ok(wide(&gradient.f_numpy_t()?.f_mm(&own)?)?.f_mul_scalar_(lora.scale)?)
                })?;
                inner_gradients.push(gradient.f_mm(&lora.scaled_b(kind)?)?);
                first += lora.rank();
            }
        }
        if inner_gradients.is_empty() {
            return Ok(None);
        }
        let inner_gradient = Tensor::f_cat(&inner_gradients, 1)?;
        let a_gradient = wide(&inner_gradient.f_numpy_t()?.f_mm(x)?)?;
        let mut first = 0;
        for lora in self.0.iter().filter_map(|linear| linear.lora.as_ref()) {
            lora.a.gather(|| Ok(a_gradient.f_narrow(0, first, lora.rank())?))?;
            first += lora.rank();
        }
        Ok(Some(inner_gradient))
    }

    /// The gradient of the input from those of the outputs and of the inner values.
    pub(crate) fn input_gradient(
        &self,
        gradients: &[Tensor],
        inner_gradient: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (linear, gradient) in self.0.iter().zip(gradients) {
            sum = Some(product::add_product(sum, gradient, linear.weight.factor())?);
        }
        if let Some(inner) = inner_gradient
            && let Some(a) = self.stacked_a(inner.f_kind()?)?
        {
            sum = Some(product::add_product(sum, inner, &a)?);
        }
        Ok(sum.unwrap_or_default())
    }

    /// As [`Siblings::gather`] and [`Siblings::input_gradient`] in turn.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        inner: Option<&Tensor>,
        gradients: &[Tensor],
    ) -> Result<Tensor> {
        let inner_gradient = self.gather(x, inner, gradients)?;
        self.input_gradient(gradients, inner_gradient.as_ref())
    }

    /// The adapters' `A` one below the other, `[Σ r, in]`.
    fn stacked_a(&self, kind: Kind) -> Result<Option<Tensor>> {
        let all = self
            .0
            .iter()
            .filter_map(|linear| linear.lora.as_ref())
            .map(|lora| lora.a.as_kind(kind))
            .collect::<Result<Vec<_>>>()?;
        match all.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.shallow_clone())),
            all => Ok(Some(Tensor::f_cat(all, 0)?)),
        }
    }
}

fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_kind(Kind::Float)?)
}
