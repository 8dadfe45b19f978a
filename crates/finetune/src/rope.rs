//! Rotary position embeddings (Su et al., `RoFormer`, arXiv 2104.09864), in the half-split layout of
//! Hugging Face checkpoints.

use checkpoint::{Rope, RopeScaling};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::pack::Packed;

/// The rotations of the tokens at hand.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// How many of a head's dimensions are rotated.
    dims: i64,
    /// `[n, 1, dims]`.
    cos: Tensor,
    /// `[n, 1, dims / 2]`, and the same negated.
    sin: Tensor,
    minus_sin: Tensor,
}

impl Rotation {
    /// The rotation of each token of a pack.
    pub(crate) fn new(rope: &Rope, batch: &Packed, kind: Kind, device: Device) -> Result<Self> {
        let positions = &batch.positions;
        // Tokens behind the last row are of none.
        let longest = positions[..batch.num_tokens()].iter().max().map_or(0, |last| last + 1);
        let frequencies = frequencies(rope, longest as usize);
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
        let scaled = |x: Tensor| -> Result<Tensor> {
            Ok(match rope.attention_factor {
                1.0 => x.f_to_kind(kind)?,
                factor => x.f_mul_scalar(factor)?.f_to_kind(kind)?,
            })
        };
        let (cos, sin) = (scaled(angles.f_cos()?)?, scaled(angles.f_sin()?)?);
        let cos = Tensor::f_cat(&[&cos, &cos], -1)?;
        Ok(Self { dims: rope.dims as i64, cos, minus_sin: sin.f_neg()?, sin })
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
        let all = x.size().last().copied().unwrap_or(0);
        let half = self.dims / 2;
        let turned = x.f_narrow(-1, 0, self.dims)?;
        let (first, second) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
        let out = turned.f_mul(&self.cos)?;
        let _ = out.f_narrow(-1, 0, half)?.f_addcmul_(&second, of_second)?;
        let _ = out.f_narrow(-1, half, half)?.f_addcmul_(&first, of_first)?;
        match all - self.dims {
            0 => Ok(out),
            left => Ok(Tensor::f_cat(&[out, x.f_narrow(-1, self.dims, left)?], -1)?),
        }
    }
}

/// The longest row before all of a row is rotated otherwise, if there is one.
pub(crate) fn turns_after(rope: &Rope) -> Option<usize> {
    match rope.scaling {
        RopeScaling::Long { original_context, .. } => Some(original_context),
        _ => None,
    }
}

/// Radians a position, for each pair of dimensions: `theta^(−2i / dims)`, scaled; `longest` is the length of the longest
/// row.
fn frequencies(rope: &Rope, longest: usize) -> Vec<f32> {
    (0..rope.dims / 2)
        .map(|pair| {
            // In f32, as transformers computes them.
            let exponent = (2 * pair) as f32 / rope.dims as f32;
            let base = (rope.theta as f32).powf(exponent);
            match &rope.scaling {
                RopeScaling::Long { short, long, original_context } => {
                    let factors = if longest > *original_context { long } else { short };
                    1.0 / (factors[pair] as f32 * base)
                }
                &RopeScaling::Yarn { factor, low, high, .. } => {
                    let (low, high) = (low as f32, high as f32);
                    let ramp = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    let (kept, divided) = (1.0 / base, 1.0 / (factor as f32 * base));
                    divided * ramp + kept * (1.0 - ramp)
                }
                scaling => scaled(1.0 / base, scaling),
            }
        })
        .collect()
}

fn scaled(plain: f32, scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::Default | RopeScaling::Yarn { .. } | RopeScaling::Long { .. } => plain,
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
