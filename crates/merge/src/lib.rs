//! Importance and weights to merged weights: exact masks and the same-sign merge.
//!
//! Kernels only. Weights come as f32 and go as f32; rounding to the stored type, once, is the
//! caller's. Equal input gives equal bytes at any thread count.

mod mask;
pub mod reference;
mod same_sign;

pub use mask::{keep_top, kept_count};
pub use same_sign::{Donor, merge_same_sign};

/// The README's example runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
