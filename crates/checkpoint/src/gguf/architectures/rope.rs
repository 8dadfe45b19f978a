//! Rotations: the keys and the factors of tensors.

use super::{Key, count, number};
use crate::config::yarn_attention;
use crate::gguf::writer::Metadata;
use crate::{ModelConfig, Rope, RopeScaling};

/// Whether it is none, or divides all frequencies alike.
pub(super) fn is_even(rope: &Rope) -> bool {
    matches!(rope.scaling, RopeScaling::Default | RopeScaling::Linear { .. })
}

/// Whether keys alone say it. What cosines and sines are multiplied by under YaRN llama.cpp works out by itself, and it knows
/// no ramp between parts of pairs.
pub(super) fn is_plain(rope: &Rope) -> bool {
    match &rope.scaling {
        RopeScaling::Yarn { factor, turns, .. } => {
            let usual = yarn_attention(*factor, 1.0);
            turns.is_truncated && (rope.attention_factor / usual - 1.0).abs() < 1e-6
        }
        _ => is_even(rope),
    }
}

/// The same, or Llama 3's, which takes a tensor.
pub(super) fn is_llama(rope: &Rope) -> bool {
    is_plain(rope) || matches!(rope.scaling, RopeScaling::Llama3 { .. })
}

/// The base of the rotation of all layers, or of those without a window.
pub(super) fn base(config: &ModelConfig) -> Key {
    let theta = config.ropes.first().map_or(1e4, |rope| rope.theta);
    ("rope.freq_base", number(theta))
}

/// By how much its frequencies are divided, if keys say it.
pub(super) fn scaling(config: &ModelConfig) -> Vec<Key> {
    match config.ropes.first().map(|rope| &rope.scaling) {
        Some(RopeScaling::Linear { factor }) => vec![
            ("rope.scaling.type", Metadata::Text("linear".into())),
            ("rope.scaling.factor", number(*factor)),
        ],
        Some(RopeScaling::Yarn { factor, original_context, turns, .. }) => {
            let betas = [
                ("rope.scaling.yarn_beta_fast", turns.beta_fast),
                ("rope.scaling.yarn_beta_slow", turns.beta_slow),
            ];
            let given = betas.into_iter().filter_map(|(key, beta)| Some((key, number(beta?))));
            let keys = [
                ("rope.scaling.type", Metadata::Text("yarn".into())),
                ("rope.scaling.factor", number(*factor)),
                ("rope.scaling.original_context_length", count(*original_context as usize)),
            ];
            keys.into_iter().chain(given).collect()
        }
        _ => Vec::new(),
    }
}

/// By what Llama 3.1 divides each pair's frequency.
pub(in crate::gguf) fn llama3(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
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
