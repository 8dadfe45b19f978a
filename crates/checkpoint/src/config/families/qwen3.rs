//! Qwen3: queries and keys normalised by head.

use super::{Described, Given, qwen2};
use crate::Result;
use crate::config::design::{Design, QkNorm};

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let design = Design { qk_norm: Some(QkNorm::ByHead), ..Design::default() };
    given.described(given.with_biases(design)?, qwen2::windows(given)?, 1e4)
}
