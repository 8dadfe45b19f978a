//! The text model of Gemma 3 (arXiv 2503.19786): norms of queries and keys in place of Gemma 2's caps, and a rotation of
//! its own for layers with a window.

use serde_json::{Map, Value};

use super::{Described, Given, gemma2};
use crate::Result;
use crate::config::design::{Design, LayerKind, QkNorm};

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    let Given { keys, num_layers, head_dim } = given;
    let design = Design {
        qk_norm: Some(QkNorm::ByHead),
        attention_cap: gemma2::cap(given, "attn_logit_softcapping", None)?,
        logit_cap: gemma2::cap(given, "final_logit_softcapping", None)?,
        ..gemma2::design(given)?
    };
    let windows = keys.windows(*num_layers, Some(keys.window()?.unwrap_or(4096)), 0)?;
    let none = Map::new();
    let object = |value: Option<&'_ Value>| value.and_then(Value::as_object).cloned();
    let of_kind = |kind: &str| object(keys.get("rope_parameters").and_then(|all| all.get(kind)));
    let of_all = || object(keys.get("rope_scaling")).unwrap_or_else(|| none.clone());
    let (global, local) = (keys.positive("rope_theta")?, keys.positive("rope_local_base_freq")?);
    let ropes = vec![
        keys.rope_of(
            &of_kind("full_attention").unwrap_or_else(of_all),
            *head_dim,
            global.unwrap_or(1e6),
        )?,
        keys.rope_of(
            &of_kind("sliding_attention").unwrap_or_default(),
            *head_dim,
            local.unwrap_or(1e4),
        )?,
    ];
    let kind =
        |window: Option<usize>| LayerKind { window, rope: Some(usize::from(window.is_some())) };
    let layers = windows.into_iter().map(kind).collect();
    Ok(Described { design, layers, ropes, tied: true, epsilon: 1e-6 })
}
