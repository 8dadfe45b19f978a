//! Phi-3 and Phi-4-mini: fused weights, and a part of each head rotated.

use super::{Described, Given};
use crate::Result;
use crate::config::design::{Design, LayerKind};

pub(super) fn describe(given: &Given<'_>) -> Result<Described> {
    given.require_silu()?;
    let Given { keys, num_layers, head_dim } = given;
    let windows = keys.windows(*num_layers, keys.window()?, 0)?;
    let share = given.rotated_share()?.unwrap_or(1.0);
    let dims = (*head_dim as f64 * share.min(1.0)) as usize;
    if dims == 0 || !dims.is_multiple_of(2) {
        return keys.fail(format!("`partial_rotary_factor` {share} of heads of {head_dim} leaves {dims} dimensions to rotate"));
    }
    let kind = |window| LayerKind { window, rope: Some(0) };
    Ok(Described {
        design: Design { is_fused: true, ..Design::default() },
        layers: windows.into_iter().map(kind).collect(),
        ropes: vec![keys.rope(dims, 1e4)?],
        tied: false,
        epsilon: 1e-5,
    })
}
