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

    /// In f32, rounded to `x`'s type before the weight as the families' reference code does; on a GPU by one kernel, which
    /// rounds once.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        if self.is_fused(x)? {
            return Ok(fused::rms_norm(x, &self.weight.value, self.epsilon)?.0);
        }
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
        if self.is_fused(x)? {
            let weight = &self.weight.value;
            let (_, scale) = fused::rms_norm(x, weight, self.epsilon)?;
            return Ok(fused::rms_norm_backward(gradient, x, &scale, weight)?);
        }
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

    /// Whether the GPU's kernels compute it: the weight is as it is stored, of `x`'s type, and does not train.
    fn is_fused(&self, x: &Tensor) -> Result<bool> {
        let is_plain = self.offset == 0.0 && !self.weight.trains();
        Ok(x.device().is_cuda() && is_plain && self.weight.value.f_kind()? == x.f_kind()?)
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

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::bridge::values;

    /// Against libtorch's gradients through plain operations; on a GPU, if there is one, its kernels as well.
    #[test]
    fn values_and_gradients_are_those_of_the_formula() {
        tch::manual_seed(5);
        let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let (x, weight, gradient) = (random([7, 48]), random([1, 48]).view([48]), random([7, 48]));
        let leaf = x.copy().set_requires_grad(true);
        let scale = (leaf.square().mean_dim(-1_i64, true, Kind::Float) + 1e-5).rsqrt();
        let expected = &leaf * &scale * &weight;
        (&expected * &gradient).sum(Kind::Float).backward();
        let expected = [expected, leaf.grad()].map(|x| values(&x).unwrap());
        let gpu = crate::usable_gpus().is_ok().then_some(Device::Cuda(0));
        for device in std::iter::once(Device::Cpu).chain(gpu) {
            for (kind, most) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.02)] {
                let there = |x: &Tensor| x.to_device(device).to_kind(kind);
                let weight = Parameter::frozen(there(&weight));
                let norm = Norm { weight, epsilon: 1e-5, offset: 0.0 };
                let found = [
                    norm.forward(&there(&x)).unwrap(),
                    norm.backward(&there(&x), &there(&gradient)).unwrap(),
                ];
                for (found, expected) in found.iter().zip(&expected) {
                    let apart = testkit::relative_deviation(&values(found).unwrap(), expected);
                    assert!(apart < most, "{device:?} {kind:?}: {apart}");
                }
            }
        }
    }
}
