//! Mistral: Llama with a sliding window.

use super::{Described, Given};
use crate::Result;
use crate::config::design::Design;

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let Given { keys, num_layers, .. } = given;
    // 4096 where it is not said, none where it is null.
    let window = match keys.raw.contains_key("sliding_window") {
        true => keys.window()?,
        false => Some(4096),
    };
    let windows = keys.windows(*num_layers, window, 0)?;
    given.described(given.with_biases(Design::default())?, windows, 1e4)
}
