//! Rotary position embeddings (Su et al., `RoFormer`, arXiv 2104.09864), in the half-split layout of
//! Hugging Face checkpoints.

use checkpoint::{ModelConfig, Rope, RopeScaling};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// The rotations of the tokens at hand.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// `[n, 1, head_dim]`.
    cos: Tensor,
    /// `[n, 1, head_dim / 2]`, and the same negated.
    sin: Tensor,
    minus_sin: Tensor,
}

impl Rotation {
    /// The rotation of each of `positions`.
    pub(crate) fn new(
        config: &ModelConfig,
        positions: &[i64],
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let frequencies = frequencies(&config.rope, config.head_dim);
        // Angles and their cosines in f32, as transformers has them, whatever computes.
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&position| {
                frequencies.iter().map(move |frequency| position as f32 * frequency)
            })
            .collect();
        let angles = Tensor::f_from_slice(&angles)?
            .f_view([positions.len() as i64, 1, frequencies.len() as i64])?
            .f_to_device(device)?;
        let (cos, sin) = (angles.f_cos()?.f_to_kind(kind)?, angles.f_sin()?.f_to_kind(kind)?);
        Ok(Self { cos: Tensor::f_cat(&[&cos, &cos], -1)?, minus_sin: sin.f_neg()?, sin })
    }

    /// Rotates `[n, heads, head_dim]`: `x·cos + rotate_half(x)·sin`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.turn(x, &self.minus_sin, &self.sin)
    }

    /// The gradient of what was rotated from that of the result: rotated back.
    pub(crate) fn backward(&self, gradient: &Tensor) -> Result<Tensor> {
        self.turn(gradient, &self.sin, &self.minus_sin)
    }

    fn turn(&self, x: &Tensor, of_second: &Tensor, of_first: &Tensor) -> Result<Tensor> {
        let half = x.size().last().copied().unwrap_or(0) / 2;
        let (first, second) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
        let out = x.f_mul(&self.cos)?;
        let _ = out.f_narrow(-1, 0, half)?.f_addcmul_(&second, of_second)?;
        let _ = out.f_narrow(-1, half, half)?.f_addcmul_(&first, of_first)?;
        Ok(out)
    }
}

/// Radians a position, for each pair of a head's dimensions: `theta^(−2i / head_dim)`, scaled.
fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair| {
            // In f32, as transformers computes them.
            let exponent = (2 * pair) as f32 / head_dim as f32;
            let plain = 1.0 / (rope.theta as f32).powf(exponent);
            scaled(plain, rope.scaling)
        })
        .collect()
}

fn scaled(plain: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::Default => plain,
        RopeScaling::Linear { factor } => plain / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let (factor, low, high) =
                (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            let context = original_context as f32;
            let wavelength = 2.0 * std::f32::consts::PI / plain;
            if wavelength < context / high {
                plain
            } else if wavelength > context / low {
                plain / factor
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 - smooth) * plain / factor + smooth * plain
            }
        }
    }
}
