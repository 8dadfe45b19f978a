//! `drop`: layers go, and nothing is done to the others.

use checkpoint::{Checkpoint, TensorView};
use selection::Plan;

use super::{Edits, Inputs, Opened, Place};
use crate::Result;

/// Needs nothing.
#[expect(clippy::unnecessary_wraps, reason = "it stands where opening may fail")]
pub(super) fn open(_: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    Ok(Box::new(Nothing))
}

/// No changes.
struct Nothing;

impl Opened for Nothing {
    fn edits<'a>(&'a self, _: &'a Checkpoint, _: &'a Plan) -> Box<dyn Edits + 'a> {
        Box::new(Self)
    }

    fn require_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

impl Edits for Nothing {
    fn change(&self, _: &Place) -> bool {
        false
    }

    fn write(
        &mut self,
        tensor: &TensorView<'_>,
        _: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        take(0, tensor.bytes())
    }
}
