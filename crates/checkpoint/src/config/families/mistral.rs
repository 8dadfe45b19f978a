//! Mistral: Llama with a sliding window.

use super::{Described, Given};
use crate::Result;
use crate::config::design::Design;

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let Given { keys, num_layers, .. } = given;
    let windows = keys.windows(*num_layers, keys.window()?, 0)?;
    given.described(given.with_biases(Design::default())?, windows, 1e4)
}
