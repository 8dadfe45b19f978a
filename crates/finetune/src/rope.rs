//! Rotary position embeddings (Su et al., `RoFormer`, arXiv 2104.09864), in the half-split layout of
//! Hugging Face checkpoints.

use checkpoint::{ModelConfig, Rope, RopeScaling};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Cosines and sines of the tokens at hand, `[n, 1, head_dim]` each.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// The rotation of each of `positions`.
    pub(crate) fn new(
        config: &ModelConfig,
        positions: &[i64],
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        let frequencies = frequencies(&config.rope, config.head_dim);
        // Angles and their cosines in f32, as transformers has them, whatever computes.
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&position| {
                let angle = move |&frequency: &f32| position as f32 * frequency;
                frequencies.iter().map(angle).chain(frequencies.iter().map(angle))
            })
            .collect();
        let angles = Tensor::f_from_slice(&angles)?
            .f_view([positions.len() as i64, 1, config.head_dim as i64])?
            .f_to_device(device)?;
        Ok(Self { cos: angles.f_cos()?.f_to_kind(kind)?, sin: angles.f_sin()?.f_to_kind(kind)? })
    }

    /// Rotates `[n, heads, head_dim]`: `x·cos + rotate_half(x)·sin`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let halves = x.f_chunk(2, -1)?;
        let [first, second] = halves.as_slice() else { return Ok(x.shallow_clone()) };
        let turned = Tensor::f_cat(&[&second.f_neg()?, first], -1)?;
        Ok(x.f_mul(&self.cos)?.f_add(&turned.f_mul(&self.sin)?)?)
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
