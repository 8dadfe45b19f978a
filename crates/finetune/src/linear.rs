//! Linear maps with adapters on them, and their gradients.

use tch::{Kind, Tensor};

use crate::Result;
use crate::lora::Lora;
use crate::magnitude::Magnitude;
use crate::parameter::Parameter;
use crate::product;
use crate::weight::Weight;

/// `y = x Wᵀ + b`, and `s · (x Aᵀ) Bᵀ` if it has an adapter, which may give the rows of `W + s·B A` other
/// [norms](Magnitude).
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Weight,
    /// `[out]`.
    pub(crate) bias: Option<Parameter>,
    pub(crate) lora: Option<Lora>,
}

impl Linear {
    fn magnitude(&self) -> Option<&Magnitude> {
        self.lora.as_ref()?.magnitude.as_ref()
    }
}

/// Linear maps of one input; all their `A` are one product.
pub(crate) struct Siblings<'a>(pub(crate) Vec<&'a Linear>);

/// What the backward pass wants of adapters' forward pass.
#[derive(Debug)]
pub(crate) struct Inner {
    /// `s · x Aᵀ` of all side by side, `[n, Σ r]`.
    values: Option<Tensor>,
    /// Each map's `(W + s·B A) x`, `[n, out]`, where its magnitude trains.
    products: Vec<Option<Tensor>>,
}

/// Gradients of what is computed from the input.
pub(crate) struct OfProducts {
    /// Of each map's `(W + s·B A) x`, `[n, out]`.
    outputs: Vec<Tensor>,
    /// Of `x Aᵀ` of all side by side.
    inner: Option<Tensor>,
}

impl Siblings<'_> {
    /// Each map's output of `x`, `[n, in]`, and what the backward pass wants.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Vec<Tensor>, Inner)> {
        let kind = x.f_kind()?;
        let none: Option<&Tensor> = None;
        let values = match self.stacked_a(kind)? {
            Some(a) => Some(self.scaled(x.f_linear(&a, none)?)?),
            None => None,
        };
        let (mut outputs, mut products, mut first) = (Vec::new(), Vec::new(), 0);
        for linear in &self.0 {
            let bias = match &linear.bias {
                Some(bias) => Some(bias.as_kind(kind)?),
                None => None,
            };
            let magnitude = linear.magnitude();
            let at_once = bias.as_ref().filter(|_| magnitude.is_none());
            let mut output = product::linear(x, linear.weight.factor(), at_once)?;
            if let (Some(lora), Some(values)) = (&linear.lora, &values) {
                let own = values.f_narrow(1, first, lora.rank())?;
                output = output.f_addmm_(&own, &lora.b.as_kind(kind)?.f_numpy_t()?)?;
                first += lora.rank();
            }
            let mut product = None;
            if let Some(magnitude) = magnitude {
                let sized = magnitude.scale(&output)?;
                product = magnitude.value.trains().then_some(output);
                output = match bias {
                    Some(bias) => sized.f_add(&bias)?,
                    None => sized,
                };
            }
            outputs.push(output);
            products.push(product);
        }
        Ok((outputs, Inner { values, products }))
    }

    /// Gathers the gradients of weights, biases and adapters from those of the outputs, and
    /// returns those that the input's is made of.
    pub(crate) fn gather(
        &self,
        x: &Tensor,
        inner: &Inner,
        gradients: &[Tensor],
    ) -> Result<OfProducts> {
        let kind = x.f_kind()?;
        let (mut outputs, mut inner_gradients, mut first) = (Vec::new(), Vec::new(), 0);
        for ((linear, gradient), product) in self.0.iter().zip(gradients).zip(&inner.products) {
            if let Some(bias) = &linear.bias {
                bias.gather(|| {
                    Ok(gradient.f_to_kind(Kind::Float)?.f_sum_dim_intlist(
                        0_i64,
                        false,
                        Kind::Float,
                    )?)
                })?;
            }
            let gradient = match linear.magnitude() {
                None => gradient.shallow_clone(),
                Some(magnitude) => {
                    if let Some(product) = product {
                        magnitude.gather(gradient, product)?;
                    }
                    magnitude.scale(gradient)?
                }
            };
            linear.weight.gather(|| Ok(gradient.f_numpy_t()?.f_mm(x)?))?;
            if let (Some(lora), Some(values)) = (&linear.lora, &inner.values) {
                let own = values.f_narrow(1, first, lora.rank())?;
                lora.b.gather(|| Ok(gradient.f_numpy_t()?.f_mm(&own)?))?;
                inner_gradients.push(gradient.f_mm(&lora.b.as_kind(kind)?)?);
                first += lora.rank();
            }
            outputs.push(gradient);
        }
        if inner_gradients.is_empty() {
            return Ok(OfProducts { outputs, inner: None });
        }
        let inner_gradient = self.scaled(Tensor::f_cat(&inner_gradients, 1)?)?;
        let a_gradient = inner_gradient.f_numpy_t()?.f_mm(x)?;
        let mut first = 0;
        for lora in self.0.iter().filter_map(|linear| linear.lora.as_ref()) {
            lora.a.gather(|| Ok(a_gradient.f_narrow(0, first, lora.rank())?))?;
            first += lora.rank();
        }
        Ok(OfProducts { outputs, inner: Some(inner_gradient) })
    }

    /// The gradient of the input.
    pub(crate) fn input_gradient(&self, of: &OfProducts) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (linear, gradient) in self.0.iter().zip(&of.outputs) {
            sum = Some(product::add_product(sum, gradient, linear.weight.factor())?);
        }
        if let Some(inner) = &of.inner
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
        inner: &Inner,
        gradients: &[Tensor],
    ) -> Result<Tensor> {
        self.input_gradient(&self.gather(x, inner, gradients)?)
    }

    /// The adapters' `A` one below the other, `[Σ r, in]`.
    fn stacked_a(&self, kind: Kind) -> Result<Option<Tensor>> {
        let all = self
            .0
            .iter()
            .filter_map(|linear| linear.lora.as_ref())
            .map(|lora| &lora.a.value)
            .collect::<Vec<_>>();
        Ok(match all.as_slice() {
            [] => None,
            [one] => Some(one.f_to_kind(kind)?),
            all => Some(Tensor::f_cat(all, 0)?.f_to_kind(kind)?),
        })
    }

    /// What is of all adapters side by side, `[n, Σ r]`, each times its scale.
    fn scaled(&self, values: Tensor) -> Result<Tensor> {
        let mut values = values;
        let loras = self.0.iter().filter_map(|linear| linear.lora.as_ref());
        let scales: Vec<(f64, i64)> = loras.map(|lora| (lora.scale, lora.rank())).collect();
        if let [(first, _), rest @ ..] = scales.as_slice()
            && rest.iter().all(|(scale, _)| scale == first)
        {
            return Ok(if *first == 1.0 { values } else { values.f_mul_scalar_(*first)? });
        }
        let mut first = 0;
        for (scale, rank) in scales {
            let _ = values.f_narrow(1, first, rank)?.f_mul_scalar_(scale)?;
            first += rank;
        }
        Ok(values)
    }
}
