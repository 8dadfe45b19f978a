//! SmolLM3: Llama with layers that are not rotated.

use serde_json::Value;

use super::{Described, Given};
use crate::Result;
use crate::config::design::{Design, LayerKind};

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let Given { keys, num_layers, .. } = given;
    // With an entry for each layer, 0 where it is not rotated.
    let listed = keys.get("no_rope_layers").and_then(Value::as_array);
    let rotated: Vec<bool> = match listed {
        Some(flags) if flags.len() == *num_layers => {
            flags.iter().map(|flag| flag.as_u64() != Some(0)).collect()
        }
        _ => return keys.fail(format!("`no_rope_layers` must have {num_layers} entries")),
    };
    let window = match keys.flag("use_sliding_window", false)? {
        true => keys.window()?,
        false => None,
    };
    let windows = match keys.get("layer_types") {
        Some(_) => keys.windows(*num_layers, window, 0)?,
        // Those that are not rotated have one.
        None => rotated.iter().map(|rotated| window.filter(|_| !rotated)).collect(),
    };
    let design = given.with_biases(Design::default())?;
    let described = given.described(design, windows, 2e6)?;
    let turned = described.layers.iter().zip(&rotated);
    let layers = turned
        .map(|(kind, rotated)| LayerKind { rope: kind.rope.filter(|_| *rotated), ..*kind })
        .collect();
    Ok(Described { layers, tied: true, ..described })
}
