//! A plan carried out: retained layers repaired, the pruned checkpoint written tensor by tensor.
//!
//! [`apply`] writes the pruned checkpoint of a [`Plan`](selection::Plan). What is done to retained weights is a
//! repair, a file each: `same_sign.rs` merges the best elements of pruned layers into them, `linear_map.rs`
//! folds a linear map in that stands in for a run of pruned layers. No libtorch, and never more memory than a
//! weight and what changes it take.

mod apply;
mod edits;
mod error;
mod importance;
mod linear_map;
mod maps;
mod same_sign;
mod size;

pub use apply::{PruneReport, PruneSettings, apply};
pub use error::RepairError;
pub use maps::{FittedRun, LinearMaps, MapsHeader, MapsWriter};
pub use size::Size;

/// What every function here returns.
pub type Result<T, E = RepairError> = std::result::Result<T, E>;
