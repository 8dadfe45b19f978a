//! Gemma 2 (arXiv 2408.00118): norms on either side, soft caps, every other layer with a window.

use super::{Described, Given};
use crate::Result;
use crate::config::design::{Activation, Design, Norms};

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    let Given { keys, num_layers, .. } = given;
    let design = Design {
        attention_cap: cap(given, "attn_logit_softcapping", Some(50.0))?,
        logit_cap: cap(given, "final_logit_softcapping", Some(30.0))?,
        ..design(given)?
    };
    let windows = keys.windows(*num_layers, Some(keys.window()?.unwrap_or(4096)), 0)?;
    Ok(Described { tied: true, ..given.described(design, windows, 1e4)? })
}

/// What Gemma 2 and 3 have in common.
pub(super) fn design(given: &Given<'_>) -> Result<Design> {
    let keys = &given.keys;
    keys.require_activation("hidden_activation", &["gelu_pytorch_tanh"])?;
    if keys.flag("use_bidirectional_attention", false)? {
        return keys.untrained(
            "`use_bidirectional_attention` is true; only causal attention is supported",
        );
    }
    let scalar = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    let hidden = keys.count("hidden_size", crate::MOST_WIDTH)? as f64;
    let design = Design {
        norms: Norms::Around,
        norm_offset: 1.0,
        activation: Activation::GeluTanh,
        attention_scale: Some(1.0 / scalar.sqrt()),
        embedding_scale: hidden.sqrt(),
        ..Design::default()
    };
    Ok(Design { mlp_bias: false, ..given.with_biases(design)? })
}

/// A soft cap: a number, or null for none; `default` if the key is missing.
pub(super) fn cap(given: &Given<'_>, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    match given.keys.raw.contains_key(key) {
        true => given.keys.positive(key),
        false => Ok(default),
    }
}
