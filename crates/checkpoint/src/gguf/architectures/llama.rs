//! Llama and Mistral.

use super::{
    Architecture, common, given_head_width, of_llama, require_no_window, require_scaling, rope,
};
use crate::ModelConfig;

pub(super) fn describe(config: &ModelConfig) -> Result<Architecture, String> {
    require_no_window(config)?;
    require_scaling(config, rope::is_llama)?;
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    keys.extend(given_head_width(config));
    keys.extend(of_llama(config));
    Ok(Architecture { name: "llama", is_paired: true, keys, factors: rope::llama3(config) })
}
