//! Llama 2 and 3, and what is built like them.

use super::{Described, Given};
use crate::Result;
use crate::config::design::Design;

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let design = given.with_biases(Design::default())?;
    given.described(design, given.keys.windows(given.num_layers, None, 0)?, 1e4)
}
