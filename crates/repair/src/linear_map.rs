//! `linear-map`: a map that stands in for a run of pruned layers (`ReplaceMe`, arXiv 2505.02819).

use checkpoint::{Module, TensorView, narrow, widen};
use merge::premultiply;

use crate::edits::Edits;
use crate::{LinearMaps, Result};

/// Bytes of a repaired weight, as f32, that are computed at a time.
const PART_BYTES: usize = 32 << 20;

/// Folds each run's map `T` into the layer before it, whose MLP's output it takes:
///
/// ```text
/// (m·T)ᵀ = Tᵀ·W_down·a,  so  W_down ← Tᵀ·W_down
/// ```
pub(crate) struct LinearMap<'a> {
    pub(crate) maps: &'a LinearMaps,
}

impl Edits for LinearMap<'_> {
    fn change(&self, layer: usize, module: Module) -> bool {
        module == Module::DownProj && self.maps.receivers().any(|receiver| receiver == layer)
    }

    fn write(
        &mut self,
        weight: &TensorView<'_>,
        (layer, _): (usize, Module),
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let map = self.maps.matrix(layer)?;
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
