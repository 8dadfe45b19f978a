//! The loss of a model with some layers skipped.

use crate::Result;

/// Computes what is lost when layers are skipped, on rows held out of training.
///
/// The engine implements it by forward passes in which a skipped layer costs nothing; tests implement it by a
/// formula.
pub trait LossProbe {
    /// What is lost without the layers of `without`, which are ascending: smaller is better, and only the order
    /// of two answers means anything.
    ///
    /// # Errors
    ///
    /// If the passes fail.
    fn loss(&mut self, without: &[usize]) -> Result<f64>;
}
