//! OLMo 2.

use super::{
    Architecture, common, given_head_width, require_no_further_bias, require_scaling,
    require_usual_heads, rope,
};
use crate::ModelConfig;

pub(super) fn describe(config: &ModelConfig) -> Result<Architecture, String> {
    require_usual_heads(config)?;
    require_no_further_bias(config)?;
    require_scaling(config, rope::is_plain)?;
    if config.tied_head {
        return Err(
            "llama.cpp wants a head of its own from an OLMo 2 model (`tie_word_embeddings`)".into(),
        );
    }
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    keys.extend(given_head_width(config));
    Ok(Architecture { name: "olmo2", is_paired: false, keys, factors: Vec::new() })
}
