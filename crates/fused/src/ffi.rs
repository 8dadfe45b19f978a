//! The C functions of `native/fused.cpp`, on tch's tensors.

use std::ffi::c_char;
use std::ptr;

use tch::Tensor;

use crate::{FusedError, Result};

/// Opaque: an `at::Tensor`.
#[repr(C)]
struct RawTensor([u8; 0]);

#[repr(C)]
struct RawShape {
    queries: *const RawTensor,
    keys: *const RawTensor,
    most_queries: i64,
    most_keys: i64,
    scale: f64,
    window: i64,
    mask: i64,
}

/// What a kernel attends to.
#[derive(Debug)]
pub(crate) struct Shape<'a> {
    /// Where each span's queries begin, and where the last one's end; the same of keys.
    pub(crate) queries: &'a Tensor,
    pub(crate) keys: &'a Tensor,
    /// The most of a span.
    pub(crate) most_queries: i64,
    pub(crate) most_keys: i64,
    pub(crate) scale: f64,
    pub(crate) window: Option<i64>,
    /// `ATen`'s `CustomMaskType`.
    pub(crate) mask: i64,
}

type Attention = unsafe extern "C" fn(
    *const RawTensor,
    *const RawTensor,
    *const RawTensor,
    *const RawShape,
    *mut *mut RawTensor,
) -> *mut c_char;

unsafe extern "C" {
    fn fused_flash_attention(
        q: *const RawTensor,
        k: *const RawTensor,
        v: *const RawTensor,
        shape: *const RawShape,
        out: *mut *mut RawTensor,
    ) -> *mut c_char;
    fn fused_efficient_attention(
        q: *const RawTensor,
        k: *const RawTensor,
        v: *const RawTensor,
        shape: *const RawShape,
        out: *mut *mut RawTensor,
    ) -> *mut c_char;
    fn fused_pin_memory(x: *const RawTensor, out: *mut *mut RawTensor) -> *mut c_char;
    fn fused_rms_norm_backward(
        gradient: *const RawTensor,
        x: *const RawTensor,
        scale: *const RawTensor,
        weight: *const RawTensor,
        out: *mut *mut RawTensor,
    ) -> *mut c_char;
}

/// The output, the logarithms of sums, and two more that the gradient wants.
pub(crate) fn flash(heads: [&Tensor; 3], shape: &Shape<'_>) -> Result<[Tensor; 4]> {
    attend(fused_flash_attention, heads, shape)
}

/// The same by another kernel.
pub(crate) fn efficient(heads: [&Tensor; 3], shape: &Shape<'_>) -> Result<[Tensor; 4]> {
    attend(fused_efficient_attention, heads, shape)
}

fn attend(kernel: Attention, heads: [&Tensor; 3], shape: &Shape<'_>) -> Result<[Tensor; 4]> {
    let [q, k, v] = heads.map(raw);
    let &Shape { queries, keys, most_queries, most_keys, scale, window, mask } = shape;
    let (queries, keys, window) = (raw(queries), raw(keys), window.unwrap_or(0));
    let shape = RawShape { queries, keys, most_queries, most_keys, scale, window, mask };
    let mut out = [ptr::null_mut(); 4];
    // SAFETY: all pointers are to what lives longer than the call, which only reads the tensors, and there is room for the
    // four that are written if it succeeds. What the spans name is there: `PackedAttention` has compared them.
    made(unsafe { kernel(q, k, v, &raw const shape, out.as_mut_ptr()) })?;
    require_made(&out)?;
    // SAFETY: each is new, and ours.
    Ok(out.map(|tensor| unsafe { owned(tensor) }))
}

pub(crate) fn rms_norm_backward(
    gradient: &Tensor,
    x: &Tensor,
    scale: &Tensor,
    weight: &Tensor,
) -> Result<Tensor> {
    let [gradient, x, scale, weight] = [gradient, x, scale, weight].map(raw);
    let mut out = ptr::null_mut();
    // SAFETY: as in `attend`; one is written.
    made(unsafe { fused_rms_norm_backward(gradient, x, scale, weight, &raw mut out) })?;
    require_made(&[out])?;
    // SAFETY: it is new, and ours.
    Ok(unsafe { owned(out) })
}

pub(crate) fn pin_memory(x: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: as in `attend`; one is written.
    made(unsafe { fused_pin_memory(raw(x), &raw mut out) })?;
    require_made(&[out])?;
    // SAFETY: it is new, and ours.
    Ok(unsafe { owned(out) })
}

fn made(error: *mut c_char) -> Result<()> {
    // SAFETY: what the functions of `native/` return is of `caught`, and used here alone.
    unsafe { caught::checked(error) }.map_err(FusedError::Refused)
}

/// An error that there was no memory to tell of looks like none.
fn require_made(tensors: &[*mut RawTensor]) -> Result<()> {
    match tensors.iter().any(|tensor| tensor.is_null()) {
        true => Err(FusedError::Refused("out of memory".into())),
        false => Ok(()),
    }
}

fn raw(tensor: &Tensor) -> *const RawTensor {
    tensor.as_ptr().cast()
}

/// # Safety
///
/// It was made by `new`, as tch makes its own, and nobody else has it.
unsafe fn owned(tensor: *mut RawTensor) -> Tensor {
    // SAFETY: the caller's promise; tch deletes it.
    unsafe { Tensor::from_ptr(tensor.cast()) }
}
