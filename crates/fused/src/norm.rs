//! Root-mean-square normalisation in one kernel (Zhang and Sennrich, arXiv 1910.07467).

use tch::Tensor;

use crate::{Result, ffi};

/// `x · scale · weight` over the last dimension, rounded once, and `scale = 1 / √(mean(x²) + ε)`, f32; `x` and the weight are
/// of one type.
///
/// # Errors
///
/// If the kernel refuses: shapes that do not fit, another type.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let width = weight.numel() as i64;
    Ok(x.f_internal_fused_rms_norm([width].as_slice(), Some(weight), epsilon)?)
}

/// The gradient of `x` from that of [`rms_norm`]'s output, and its second result:
///
/// ```text
/// ∇x = scale · (g − n · mean(g · n)),   n = x · scale,   g = ∇y · weight
/// ```
///
/// # Errors
///
/// As [`rms_norm`]; on a CPU.
pub fn rms_norm_backward(
    gradient: &Tensor,
    x: &Tensor,
    scale: &Tensor,
    weight: &Tensor,
) -> Result<Tensor> {
    ffi::rms_norm_backward(gradient, x, scale, weight)
}
