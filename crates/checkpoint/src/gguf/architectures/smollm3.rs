//! SmolLM3: Llama of which llama.cpp leaves every fourth layer unrotated.

use super::{
    Architecture, common, given_head_width, of_llama, require_no_further_bias, require_no_window,
    require_scaling, rope,
};
use crate::ModelConfig;

/// llama.cpp's period, which no key changes.
const PERIOD: usize = 4;

pub(super) fn describe(config: &ModelConfig) -> Result<Architecture, String> {
    require_no_window(config)?;
    require_no_further_bias(config)?;
    require_scaling(config, rope::is_plain)?;
    let is_usual = |(layer, rotated): (usize, bool)| rotated == ((layer + 1) % PERIOD != 0);
    let mut rotated = config.layers.iter().map(|kind| kind.rope.is_some()).enumerate();
    if let Some((layer, rotated)) = rotated.find(|&layer| !is_usual(layer)) {
        let found = if rotated { "is" } else { "is not" };
        return Err(format!(
            "llama.cpp rotates all but every fourth layer of a SmolLM3 model, and layer {layer} {found} rotated here \
             (`no_rope_layers`); a pruned model stays so if each run of removed layers has a multiple of four"
        ));
    }
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    keys.extend(given_head_width(config));
    keys.extend(of_llama(config));
    Ok(Architecture { name: "smollm3", is_paired: true, keys, factors: Vec::new() })
}
