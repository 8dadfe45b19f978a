//! Granite 3: Llama with multipliers.

use super::{
    Architecture, common, number, of_llama, raw_number, require_no_window, require_scaling,
    require_usual_heads, rope,
};
use crate::ModelConfig;

/// Keys of config.json and llama.cpp's.
const SCALES: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];

pub(super) fn describe(config: &ModelConfig) -> Result<Architecture, String> {
    require_usual_heads(config)?;
    require_no_window(config)?;
    require_scaling(config, rope::is_llama)?;
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    keys.extend(of_llama(config));
    let scale = |key: &str| number(raw_number(config, key).unwrap_or(1.0));
    keys.extend(SCALES.map(|(ours, theirs)| (theirs, scale(ours))));
    Ok(Architecture { name: "granite", is_paired: true, keys, factors: rope::llama3(config) })
}
