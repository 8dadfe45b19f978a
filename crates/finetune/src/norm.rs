//! Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467).

use tch::{Kind, Tensor};

use crate::Result;
use crate::parameter::Parameter;

/// `y = round(x / √(mean(x²) + ε)) · weight` over the last dimension; or Gemma's, whose stored weight lacks 1 and which
/// rounds last.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[width]`.
    pub(crate) weight: Parameter,
    pub(crate) epsilon: f64,
    /// What is added to the weight.
    pub(crate) offset: f64,
}

impl Norm {
    /// Another handle on the same weight.
    pub(crate) fn share(&self) -> Self {
        Self { weight: self.weight.share(), ..*self }
    }

    /// Another handle on the same weight, which does not train.
    pub(crate) fn untrained(&self) -> Self {
        Self { weight: self.weight.untrained(), ..*self }
    }

    /// In f32, rounded to `x`'s type before the weight as the families' reference code does.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let wide = x.f_to_kind(Kind::Float)?;
        let normal = wide.f_mul(&self.scale(&wide)?)?;
        if self.offset != 0.0 {
            return Ok(normal.f_mul(&self.factor(Kind::Float)?)?.f_to_kind(kind)?);
        }
        Ok(normal.f_to_kind(kind)?.f_mul(&self.weight.as_kind(kind)?)?)
    }

    /// The gradient of `x` from that of the output; gathers the weight's.
    ///
    /// With `n = x · scale` and `g` the output's gradient times the weight:
    ///
    /// ```text
    /// ∇x = scale · (g − n · mean(g · n)),   ∇weight = Σ ∇y · n
    /// ```
    pub(crate) fn backward(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let wide = x.f_to_kind(Kind::Float)?;
        let scale = self.scale(&wide)?;
        let normal = wide.f_mul(&scale)?;
        self.weight.gather(|| {
            let rounded = normal.f_to_kind(kind)?.f_to_kind(Kind::Float)?;
            let products = gradient.f_to_kind(Kind::Float)?.f_mul(&rounded)?;
            let width = products.size().last().copied().unwrap_or(1);
            Ok(products.f_reshape([-1, width])?.f_sum_dim_intlist(0_i64, false, Kind::Float)?)
        })?;
        let gradient = gradient.f_mul(&self.factor(kind)?)?.f_to_kind(Kind::Float)?;
        let mean = gradient.f_mul(&normal)?.f_mean_dim(-1_i64, true, Kind::Float)?;
        let mut out = gradient.f_sub(&normal.f_mul(&mean)?)?;
        Ok(out.f_mul_(&scale)?.f_to_kind(kind)?)
    }

    /// What normal values are multiplied by.
    fn factor(&self, kind: Kind) -> Result<Tensor> {
        Ok(match self.offset {
            0.0 => self.weight.as_kind(kind)?,
            offset => self.weight.as_kind(Kind::Float)?.f_add_scalar(offset)?.f_to_kind(kind)?,
        })
    }

    /// `1 / √(mean(x²) + ε)`, one number a row.
    fn scale(&self, wide: &Tensor) -> Result<Tensor> {
        let mean = wide.f_square()?.f_mean_dim(-1_i64, true, Kind::Float)?;
        Ok(mean.f_add_scalar(self.epsilon)?.f_rsqrt()?)
    }
}
