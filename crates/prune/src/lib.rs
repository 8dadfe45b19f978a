//! Scores to plan to pruned checkpoint, streamed tensor by tensor.
//!
//! [`score`] turns a gradient record into layer scores, [`Plan::from_scores`] decides which layers
//! are pruned and which of those are merged, and [`apply`] writes the pruned checkpoint. No
//! libtorch, and never more memory than one weight and its donors take.

mod apply;
mod error;
mod importance;
mod merging;
mod plan;
mod scores;

pub use apply::{PruneReport, PruneSettings, Size, apply};
pub use error::PruneError;
pub use plan::{Merge, Plan, PlanSettings, Share};
pub use scores::{Criterion, LayerScore, Scores, score, scores_of_norms};

/// What every function here returns.
pub type Result<T, E = PruneError> = std::result::Result<T, E>;
