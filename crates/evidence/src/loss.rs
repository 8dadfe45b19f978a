//! What a model says with some layers skipped.

use std::collections::BTreeMap;

use crate::{Result, RunErrors, RunSettings};

/// How gates of layers are trained ([`LossProbe::gates`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateSettings {
    /// Steps, each on a batch of rows.
    pub steps: usize,
    /// About how far a gate moves in a step.
    pub learning_rate: f64,
    /// `λ`, the weight of `Σ|s_l|`.
    pub penalty: f64,
}

/// Runs a model with layers skipped, on rows held out of training.
///
/// The engine implements it by passes in which a skipped layer costs nothing; tests implement it by a
/// formula. Layers to skip are given in ascending order.
pub trait LossProbe {
    /// What is lost without the layers of `without`: smaller is better, and only the order of two answers means
    /// anything.
    ///
    /// # Errors
    ///
    /// If the passes fail.
    fn loss(&mut self, without: &[usize]) -> Result<f64>;

    /// Says that the sets to come are mostly these layers and others, so that what they have in common may be computed
    /// once. No answer depends on it.
    fn begin_with(&mut self, _without: &[usize]) {}

    /// `mean ‖∂L/∂x_{l+1}‖` over tokens, the norm of the gradient of a layer's output by the mean token loss `L`, of
    /// every layer `l` but those of `without`.
    ///
    /// # Errors
    ///
    /// If the passes fail, or a gradient is not finite.
    fn state_gradients(&mut self, without: &[usize]) -> Result<BTreeMap<usize, f64>>;

    /// One scalar `s_l` a layer, trained from 1 on by `L + λ·Σ|s_l|` in a model whose layers are
    /// `x_{l+1} = x_l + s_l·f_l(x_l)`, with `L` the mean token loss of a batch; none is
    /// below 0. The same settings give the same gates.
    ///
    /// # Errors
    ///
    /// If the passes fail, or a gradient is not finite.
    fn gates(&mut self, settings: &GateSettings) -> Result<Vec<f64>>;

    /// What a linear map would leave of each run of layers that may go, in the dense model: the error of the map that
    /// is fitted for the run alone, on the first tokens of the rows.
    ///
    /// # Errors
    ///
    /// If the passes fail, there are no tokens, or states are not finite.
    fn run_errors(&mut self, settings: &RunSettings) -> Result<RunErrors>;
}
