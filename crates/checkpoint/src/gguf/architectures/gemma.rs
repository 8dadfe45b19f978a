//! Gemma 2 and the text model of Gemma 3.

use super::{
    Architecture, Key, common, count, head_width, number, require_no_further_bias, require_scaling,
    rope,
};
use crate::gguf::writer::Metadata;
use crate::{ModelConfig, RopeScaling};

pub(super) fn describe_2(config: &ModelConfig) -> Result<Architecture, String> {
    require_no_further_bias(config)?;
    require_scaling(config, rope::is_even)?;
    require_usual_scale(config, 46)?;
    if !config.tied_head {
        return Err(
            "llama.cpp has no head of its own for a Gemma 2 model (`tie_word_embeddings`)".into()
        );
    }
    let (Some(attention), Some(logits)) = (config.design.attention_cap, config.design.logit_cap)
    else {
        return Err(
            "llama.cpp softens the scores and logits of every Gemma 2 model, and here `attn_logit_softcapping` or \
             `final_logit_softcapping` is null"
                .into(),
        );
    };
    let mut keys = common(config);
    // 10000 is what it takes where the key is missing.
    keys.extend(Some(rope::base(config)).filter(|(_, base)| *base != number(1e4)));
    keys.extend(rope::scaling(config));
    keys.extend(head_width(config));
    keys.push(("attn_logit_softcapping", number(attention)));
    keys.push(("final_logit_softcapping", number(logits)));
    // And of windows, 4096.
    let window = config.layers.iter().find_map(|kind| kind.window);
    keys.push(("attention.sliding_window", count(window.unwrap_or(4096))));
    keys.extend(pattern(config, 2));
    Ok(Architecture { name: "gemma2", is_paired: false, keys, factors: Vec::new() })
}

pub(super) fn describe_3(config: &ModelConfig) -> Result<Architecture, String> {
    require_no_further_bias(config)?;
    require_scaling(config, rope::is_even)?;
    require_usual_scale(config, 62)?;
    if config.design.attention_cap.is_some() {
        return Err(
            "llama.cpp does not soften the scores of a Gemma 3 model (`attn_logit_softcapping`)"
                .into(),
        );
    }
    let mut keys = common(config);
    keys.push(rope::base(config));
    keys.extend(rope::scaling(config));
    keys.extend(head_width(config));
    keys.extend(config.design.logit_cap.map(|cap| ("final_logit_softcapping", number(cap))));
    // Without this key, no layer has a window.
    if let Some(window) = config.layers.iter().find_map(|kind| kind.window) {
        keys.push(("attention.sliding_window", count(window)));
        keys.extend(pattern(config, 6));
        if let Some(local) = config.ropes.get(1) {
            if local.scaling != RopeScaling::Default {
                return Err(
                    "llama.cpp does not stretch the rotation of layers with a window".into()
                );
            }
            keys.push(("rope.freq_base_swa", number(local.theta)));
        }
    }
    Ok(Architecture { name: "gemma3", is_paired: false, keys, factors: Vec::new() })
}

/// Which layers have a window, where it is not all but every `period`th.
///
/// Releases of llama.cpp that do not read this key take it for that.
fn pattern(config: &ModelConfig, period: usize) -> Option<Key> {
    let found: Vec<bool> = config.layers.iter().map(|kind| kind.window.is_some()).collect();
    let is_usual = |(layer, &has): (usize, &bool)| has == ((layer + 1) % period != 0);
    if found.iter().enumerate().all(is_usual) {
        return None;
    }
    tracing::warn!(
        "the layers with a sliding window are no longer all but every {period}th, so that the file lists them; \
         the llama.cpp of llama-cpp-python 0.3.36 reads the list, and programs that do not read it compute another model"
    );
    Some(("attention.sliding_window_pattern", Metadata::Bools(found)))
}

/// Refuses scores that are scaled otherwise than llama.cpp does, which tells the 27B model, whose scale is another, by its
/// number of layers.
fn require_usual_scale(config: &ModelConfig, layers_of_27b: usize) -> Result<(), String> {
    let ModelConfig { num_layers, hidden_size, num_heads, head_dim, .. } = *config;
    let width = if num_layers == layers_of_27b { hidden_size / num_heads } else { head_dim };
    let scalar = config.design.attention_scale.map_or(head_dim as f64, |scale| scale.powi(-2));
    if (scalar - width as f64).abs() <= 1e-6 * scalar {
        return Ok(());
    }
    Err(format!(
        "llama.cpp takes {width} for the `query_pre_attn_scalar` of such a model of {num_layers} layers, and it is \
         {scalar:.0}; the 27B models, told by their {layers_of_27b} layers, cannot be pruned for it"
    ))
}
