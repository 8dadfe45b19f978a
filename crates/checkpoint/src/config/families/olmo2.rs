//! OLMo 2 (arXiv 2501.00656): what attention and the MLP give is normalised, and so are queries and keys, all heads
//! together.

use super::{Described, Given};
use crate::Result;
use crate::config::design::{Design, Norms, QkNorm};

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let design = Design { norms: Norms::After, qk_norm: Some(QkNorm::Whole), ..Design::default() };
    let design = Design { mlp_bias: false, ..given.with_biases(design)? };
    Ok(Described { epsilon: 1e-5, ..given.described(design, given.without_windows(), 1e4)? })
}
