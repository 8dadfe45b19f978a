//! Importance of layers and of weights from LoRA gradients: arithmetic only.
//!
//! The first optimizer steps of a LoRA fine-tune leave, for each linear weight `W` (`out × in`)
//! and step `i`, the gradients `∇A_i` (`r × in`) and `∇B_i` (`out × r`). Their product
//! `G_i = ∇B_i·∇A_i` stands in for the gradient of `W` (GradPruner, arXiv 2601.19503):
//!
//! - [`importance`]: the IGIA-Matrix `F = mean_i G_i ∘ G_i`, every weight's importance, and
//!   [`ImportanceRows`], some rows of it;
//! - [`product_norm_squared`]: `‖G_i‖²`, without forming it, and [`WeightScores`], sums of these.

mod buffer;
mod error;
mod gram;
mod matrix;
pub mod reference;
mod score;
mod stream;

pub use buffer::Buffer;
pub use error::ScoreError;
pub use matrix::{ImportanceRows, Panels, importance, mean_of_sums};
pub use score::{StepPair, WeightScores, product_bound, product_norm_squared};
