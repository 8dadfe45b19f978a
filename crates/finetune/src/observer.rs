//! Who watches passes over the model: states on the way up, gradients on the way down.

use checkpoint::Module;
use tch::Tensor;

use crate::Result;
use crate::pack::Packed;

/// A layer of a forward pass, once it is done.
pub(crate) struct LayerPass<'a> {
    /// The rows that pass.
    pub(crate) rows: &'a Packed,
    /// The layer's number.
    pub(crate) layer: usize,
    /// Its input, `[n, hidden]`, of the rows' tokens alone.
    pub(crate) input: &'a Tensor,
    /// Its output, likewise.
    pub(crate) output: &'a Tensor,
}

/// A layer of a backward pass, before its turn.
pub(crate) struct StateGradient<'a> {
    /// The layer's number.
    pub(crate) layer: usize,
    /// `∂L/∂x_{l+1}`, the gradient of its output, `[n, hidden]`, of the rows' tokens alone.
    pub(crate) gradient: &'a Tensor,
}

/// A linear weight in a backward pass: all that its gradient `∂L/∂W = δᵀX` is made of.
pub(crate) struct WeightPass<'a> {
    /// The number of its layer.
    pub(crate) layer: usize,
    /// Which of the layer's weights it is.
    pub(crate) module: Module,
    /// `W`, `[out, in]`, in its stored type.
    pub(crate) weight: &'a Tensor,
    /// `X`, what it was applied to, `[n, in]`. Tokens that fill up a pack may follow the rows'.
    pub(crate) input: &'a Tensor,
    /// `δ`, the gradient of what it gave, `[n, out]`; zero at filling tokens.
    pub(crate) gradient: &'a Tensor,
}

/// Watches passes. Whatever it does not ask for costs nothing.
pub(crate) trait Observer {
    /// Sees a layer of a forward pass.
    fn layer(&mut self, _: &LayerPass<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether the backward pass is to show gradients, and to go through every layer for it even where
    /// nothing trains.
    fn wants_gradients(&self) -> bool {
        false
    }

    /// Sees the gradient of a layer's output, if it wants gradients.
    fn state_gradient(&mut self, _: &StateGradient<'_>) -> Result<()> {
        Ok(())
    }

    /// Sees that a backward pass has gathered all that it adds to the gradients of a layer.
    fn gathered(&mut self, _layer: usize) -> Result<()> {
        Ok(())
    }

    /// Sees a linear weight of a backward pass, if it wants gradients.
    fn weight(&mut self, _: &WeightPass<'_>) -> Result<()> {
        Ok(())
    }
}

/// For passes that nobody watches.
pub(crate) struct Nobody;

impl Observer for Nobody {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keeps the states that layers give, with the graph they are in.
    #[derive(Default)]
    pub(crate) struct Outputs(pub(crate) Vec<Tensor>);

    impl Observer for Outputs {
        fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
            self.0.push(seen.output.shallow_clone());
            Ok(())
        }
    }
}
