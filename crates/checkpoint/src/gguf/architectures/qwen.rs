//! Qwen2 and Qwen3, one like the other here.

use super::{
    Architecture, common, given_head_width, require_no_further_bias, require_no_window,
    require_scaling, rope,
};
use crate::ModelConfig;

pub(super) fn describe(name: &'static str, config: &ModelConfig) -> Result<Architecture, String> {
    require_no_window(config)?;
    require_no_further_bias(config)?;
    require_scaling(config, rope::is_plain)?;
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    keys.extend(given_head_width(config));
    Ok(Architecture { name, is_paired: false, keys, factors: Vec::new() })
}
