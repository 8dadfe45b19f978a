//! Rotations: the keys and the factors of tensors.

use super::{Key, number};
use crate::gguf::writer::Metadata;
use crate::{ModelConfig, RopeScaling};

/// Whether keys alone say it.
pub(super) fn is_plain(scaling: &RopeScaling) -> bool {
    matches!(scaling, RopeScaling::Default | RopeScaling::Linear { .. })
}

/// The same, or Llama 3's, which takes a tensor.
pub(super) fn is_llama(scaling: &RopeScaling) -> bool {
    is_plain(scaling) || matches!(scaling, RopeScaling::Llama3 { .. })
}

/// The base of the rotation of all layers, or of those without a window.
pub(super) fn base(config: &ModelConfig) -> Key {
    let theta = config.ropes.first().map_or(1e4, |rope| rope.theta);
    ("rope.freq_base", number(theta))
}

/// By how much all its frequencies are divided, if they are.
pub(super) fn linear(config: &ModelConfig) -> Vec<Key> {
    match config.ropes.first().map(|rope| &rope.scaling) {
        Some(RopeScaling::Linear { factor }) => vec![
            ("rope.scaling.type", Metadata::Text("linear".into())),
            ("rope.scaling.factor", number(*factor)),
        ],
        _ => Vec::new(),
    }
}

/// By what Llama 3.1 divides each pair's frequency.
pub(super) fn llama3(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let Some(rope) = config.ropes.first() else { return Vec::new() };
    let &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } =
        &rope.scaling
    else {
        return Vec::new();
    };
    let (longest, shortest) =
        (original_context / low_freq_factor, original_context / high_freq_factor);
    let of_pair = |pair: usize| {
        let frequency = 1.0 / rope.theta.powf((2 * pair) as f64 / rope.dims as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < shortest {
            1.0
        } else if wavelength > longest {
            factor as f32
        } else {
            let smooth = (original_context / wavelength - low_freq_factor)
                / (high_freq_factor - low_freq_factor);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        }
    };
    vec![("rope_freqs.weight", (0..rope.dims / 2).map(of_pair).collect())]
}
