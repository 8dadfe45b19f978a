//! A plan carried out: retained layers repaired, the pruned checkpoint written tensor by tensor.
//!
//! [`apply`] writes the pruned checkpoint of a [`Plan`](selection::Plan). What is done to retained weights is a
//! repair, a file each in `repairs/`, streamed as the rest is: the same bytes at any thread count. No libtorch, and
//! never more memory than a weight and what changes it take.

mod apply;
mod error;
mod experts;
mod fitted;
mod importance;
mod line_search;
mod maps;
mod reconstructed;
mod repairs;
mod scales;
mod size;

pub use apply::{PruneReport, PruneSettings, apply};
pub use error::RepairError;
pub use fitted::FittedRun;
pub use line_search::{LineSearch, STEPS, TriedStep, line_search};
pub use maps::{LinearMaps, MapsHeader, MapsWriter};
pub use reconstructed::{Reconstructed, ReconstructedHeader, ReconstructedWriter, Retraining};
pub use scales::{Cut, Measured, Scales};
pub use size::Size;

/// What every function here returns.
pub type Result<T, E = RepairError> = std::result::Result<T, E>;
