//! Granite 3: Llama with multipliers.

use super::{Described, Given};
use crate::Result;
use crate::config::design::Design;

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let number =
        |key: &str| Ok::<_, crate::CheckpointError>(given.keys.positive(key)?.unwrap_or(1.0));
    let design = Design {
        embedding_scale: number("embedding_multiplier")?,
        residual_scale: number("residual_multiplier")?,
        attention_scale: Some(number("attention_multiplier")?),
        logit_scale: 1.0 / number("logits_scaling")?,
        ..Design::default()
    };
    given.described(given.with_biases(design)?, given.without_windows(), 1e4)
}
