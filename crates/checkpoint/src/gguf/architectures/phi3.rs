//! Phi-3 and Phi-4-mini.

use super::{
    Architecture, common, count, number, raw_number, require_scaling, require_usual_heads, rope,
};
use crate::{ModelConfig, RopeScaling};

pub(super) fn describe(config: &ModelConfig) -> Result<Architecture, String> {
    require_usual_heads(config)?;
    require_scaling(config, |rope| {
        rope::is_even(rope) || matches!(rope.scaling, RopeScaling::Long { .. })
    })?;
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    // llama.cpp reads the window, warns and attends to all tokens.
    let window = config.layers.iter().find_map(|kind| kind.window);
    keys.push(("attention.sliding_window", count(window.unwrap_or(0))));
    let mut factors = Vec::new();
    let mut original = raw_number(config, "original_max_position_embeddings")
        .map_or(config.max_positions, |positions| positions as usize);
    if let Some(rope) = config.ropes.first() {
        keys.push(("rope.dimension_count", count(rope.dims)));
        if let RopeScaling::Long { short, long, original_context } = &rope.scaling {
            original = *original_context;
            keys.push(("rope.scaling.attn_factor", number(rope.attention_factor)));
            let narrowed = |list: &[f64]| list.iter().map(|&factor| factor as f32).collect();
            factors.push(("rope_factors_long.weight", narrowed(long)));
            factors.push(("rope_factors_short.weight", narrowed(short)));
        }
    }
    keys.push(("rope.scaling.original_context_length", count(original)));
    Ok(Architecture { name: "phi3", is_paired: false, keys, factors })
}
