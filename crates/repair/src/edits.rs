//! What a repair does to retained weights.

use checkpoint::{Module, TensorView};

use crate::Result;

/// Changes of linear weights, computed part by part.
pub(crate) trait Edits: Send {
    /// Whether a retained weight changes.
    fn change(&self, layer: usize, module: Module) -> bool;

    /// Hands on the bytes of a weight that changes, part by part, each with its offset.
    ///
    /// # Errors
    ///
    /// If what it is changed by cannot be used, or `take` fails.
    fn write(
        &mut self,
        weight: &TensorView<'_>,
        place: (usize, Module),
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()>;
}

/// No changes.
pub(crate) struct Nothing;

impl Edits for Nothing {
    fn change(&self, _: usize, _: Module) -> bool {
        false
    }

    fn write(
        &mut self,
        weight: &TensorView<'_>,
        _: (usize, Module),
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        take(0, weight.bytes())
    }
}
