//! Importance and weights to repaired weights: exact masks, merges, linear maps folded in.
//!
//! Kernels only. Weights are read and written in their stored type, computed with in f32 and
//! rounded once. Equal input gives equal bytes at any thread count and on any processor.

mod differences;
mod divide;
mod element;
mod mask;
mod premultiply;
pub mod reference;
mod same_sign;
mod sampled;
mod share;
mod top;
mod weighted;

pub use differences::add_differences;
pub use divide::divide;
pub use element::Element;
pub use mask::Mask;
pub use premultiply::premultiply;
pub use same_sign::{Donor, merge_part, merge_same_sign};
pub use share::keep_share_of;
pub use top::{Scores, keep_top, keep_top_of, kept_count};
pub use weighted::{WeightedDonor, WeightedReceiver, add_weighted};

/// The README's example runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
