//! How large each layer's weights are.

use std::collections::BTreeMap;

use checkpoint::{Checkpoint, LinearView, ModuleName};
use rayon::prelude::*;

use crate::Result;

/// Elements that are widened at a time.
const PART: usize = 1 << 16;

/// `‖W‖₁`, the sum of the magnitudes of its elements, of every linear weight of every layer.
///
/// Read from the mapped file, a part of each weight at a time; the sums run in f64, in an order that does not
/// depend on the number of threads.
///
/// # Errors
///
/// If a weight is missing or its elements are no floats.
pub fn magnitudes(model: &Checkpoint) -> Result<BTreeMap<(usize, ModuleName), f64>> {
    model
        .linears()
        .map(|(layer, module, LinearView { view, .. })| {
            let dtype = view.dtype()?;
            let sums: Vec<f64> = view
                .bytes()
                .par_chunks(PART * dtype.size())
                .map(|part| checkpoint::widen(part, dtype).iter().map(|x| f64::from(x.abs())).sum())
                .collect();
            Ok(((layer, module), sums.iter().sum()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use checkpoint::Module;

    use super::*;

    /// Against a plain loop over the weights as f32.
    #[test]
    fn sums_of_magnitudes() {
        for name in testkit::GOLDEN {
            let model = Checkpoint::open(&testkit::fixture(&format!("{name}/model"))).unwrap();
            let found = magnitudes(&model).unwrap();
            assert_eq!(found.len(), model.num_layers() * Module::SPLIT.len());
            for ((layer, module), found) in &found {
                let weight = model.linear(*layer, module).unwrap().view.to_f32().unwrap();
                let mut expected = 0.0;
                for x in weight {
                    expected += f64::from(x.abs());
                }
                assert!((found / expected - 1.0).abs() < 1e-12, "{name} {layer} {module}");
            }
        }
    }
}
