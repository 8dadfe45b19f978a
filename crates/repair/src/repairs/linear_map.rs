//! `linear-map`: a map that stands in for a run of pruned layers (`ReplaceMe`, arXiv 2505.02819).

use checkpoint::{Checkpoint, Module, TensorView, narrow, widen};
use merge::premultiply;
use selection::Plan;

use super::{Edits, Inputs, Opened, Part, Place};
use crate::{LinearMaps, RepairError, Result};

/// Bytes of a repaired weight, as f32, that are computed at a time.
const PART_BYTES: usize = 32 << 20;

/// Needs the maps.
pub(super) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    let repair = inputs.plan.repair();
    let maps = LinearMaps::open(inputs.fitted.ok_or(RepairError::NoFit { repair })?)?;
    maps.require_fit(inputs.plan, inputs.source.config()?)?;
    Ok(Box::new(maps))
}

impl Opened for LinearMaps {
    fn edits<'a>(&'a self, _: &'a Checkpoint, _: &'a Plan) -> Box<dyn Edits + 'a> {
        Box::new(LinearMap { maps: self })
    }

    fn require_unchanged(&self) -> Result<()> {
        self.matrices_unchanged()
    }
}

/// Folds each run's map `T` into the layer before it, whose MLP's output it takes:
///
/// ```text
/// (m·T)ᵀ = Tᵀ·W_down·a,  so  W_down ← Tᵀ·W_down
/// ```
struct LinearMap<'a> {
    maps: &'a LinearMaps,
}

impl Edits for LinearMap<'_> {
    fn change(&self, Place { layer, module, part }: &Place) -> bool {
        *module == Module::DownProj
            && *part == Part::Weight
            && self.maps.receivers().any(|receiver| receiver == *layer)
    }

    fn write(
        &mut self,
        weight: &TensorView<'_>,
        Place { layer, .. }: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let map = self.maps.matrix(*layer)?;
        let (dtype, columns) =
            (weight.dtype()?, weight.shape().last().copied().unwrap_or(1).max(1));
        let values = widen(weight.bytes(), dtype);
        let rows = values.len() / columns;
        let together = (PART_BYTES / (size_of::<f32>() * columns)).max(1);
        for first in (0..rows).step_by(together) {
            let mut part = vec![0.0; together.min(rows - first) * columns];
            premultiply(&map, &values, columns, first, &mut part);
            take((first * columns * dtype.size()) as u64, &narrow(&part, dtype))?;
        }
        Ok(())
    }
}
