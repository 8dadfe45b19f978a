//! What passes over the data say of each layer: the evidence that layers are chosen by.
//!
//! A selector never runs a model. It reads [`Evidence`], which holds what is there (a gradient record, means of
//! hidden states, sensitivities, the weights) and says by name what is missing. Evidence is made once, by the engine or by
//! another framework's hook, and serves every selector and every ratio.

mod error;
mod gradients;
mod hidden;
mod loss;
mod magnitudes;
mod runs;
mod seen;
mod sensitivity;

pub use error::EvidenceError;
pub use gradients::{GradientNorms, WeightNorms, require_single_precision, step_pairs};
pub use hidden::{HIDDEN, Hidden, HiddenMeans};
pub use loss::{GateSettings, LossProbe};
pub use magnitudes::magnitudes;
pub use runs::{RunErrors, RunSettings};
pub use seen::{Evidence, Need};
pub use sensitivity::{LayerSensitivity, SENSITIVITY, Sensitivity, WeightSensitivity};

/// What every function here returns.
pub type Result<T, E = EvidenceError> = std::result::Result<T, E>;
