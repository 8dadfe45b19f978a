//! Qwen2 and 2.5: Llama with biases of queries, keys and values, and windows in the last layers.

use super::{Described, Given};
use crate::Result;
use crate::config::MOST_POSITIONS;
use crate::config::design::Design;

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let design = given.with_biases(Design::default())?;
    given.described(Design { qkv_bias: true, ..design }, windows(given)?, 1e4)
}

/// Those of Qwen: `use_sliding_window`, and `max_window_layers`, which counts the layers before them.
pub(super) fn windows(given: &Given<'_>) -> Result<Vec<Option<usize>>> {
    let Given { keys, num_layers, .. } = given;
    let window = match keys.flag("use_sliding_window", false)? {
        true if keys.raw.contains_key("sliding_window") => keys.window()?,
        true => Some(4096),
        false => None,
    };
    // 0 where every layer has a window, as after the first layers were pruned.
    let first = match keys.count_or_zero("max_window_layers")? {
        Some(first) => first.min(MOST_POSITIONS),
        None => *num_layers,
    };
    keys.windows(*num_layers, window, first)
}
