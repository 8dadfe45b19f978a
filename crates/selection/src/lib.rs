//! Evidence to a plan: which layers of a model are pruned.
//!
//! A [`Selector`] is one rule, a file in `selectors/` with its equation and its source; [`SELECTORS`] lists them
//! for the command line, the docs and comparisons. [`Criterion`] is one of them by name: it scores layers
//! ([`Scores`], `scores.json`) and selects those to go ([`Selection`]), of which [`Plan`] (`plan.json`) is made.
//! No libtorch, and no model is run: what needs losses asks a [`LossProbe`](evidence::LossProbe).

mod criterion;
mod density;
mod error;
mod keep;
mod plan;
mod refine;
mod repair;
mod scores;
mod selector;
mod selectors;
mod share;
mod tuned;

pub use criterion::Criterion;
pub use density::Density;
pub use error::SelectionError;
pub use keep::Keep;
pub use plan::{Merge, Plan, PlanSettings};
pub use refine::{Refine, swap};
pub use repair::{Repair, RepairNeed};
pub use scores::{LayerScore, Scores};
pub use selector::{Request, Selection, Selector};
pub use selectors::SELECTORS;
pub use share::Share;
pub use tuned::{beside_cuts, lora_layers_auto};

/// What every function here returns.
pub type Result<T, E = SelectionError> = std::result::Result<T, E>;
