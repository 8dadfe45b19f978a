//! Where a cut model's layers come from, and by how much its stream is smaller there.

use checkpoint::Module;

use crate::lora::Lora;
use crate::{Model, RunScale};

/// Where a cut model's layers come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Origin<'a> {
    /// For each of its layers, the layer of the dense model it was, ascending.
    pub layers: &'a [usize],
    /// By how much the stream is smaller behind each run of layers that is gone, if that was repaired by scales, else none.
    pub scales: &'a [RunScale],
}

impl Origin<'_> {
    /// By how much the stream is smaller before a layer of the dense model: the product of the `α` of all runs before it
    /// that are gone.
    pub(crate) fn smaller_before(&self, layer: usize) -> f64 {
        let before = self.scales.iter().filter(|scale| *scale.run.end() < layer);
        before.map(|scale| scale.factor).product()
    }

    /// By what the adapter of a layer of the dense model is divided in the cut one: what `o_proj` and `down_proj` add to
    /// the stream is smaller as the stream is; what the others see has been through a norm.
    pub(crate) fn divisor(&self, layer: usize, module: Module) -> f64 {
        match module {
            Module::OProj | Module::DownProj => self.smaller_before(layer),
            _ => 1.0,
        }
    }

    /// Puts the dense model's adapters on a cut one, by other handles on the same matrices.
    pub(crate) fn share_adapters(&self, dense: &Model, cut: &mut Model) {
        for (layer, &number) in cut.layers.iter_mut().zip(self.layers) {
            for (&module, linear) in &mut layer.linears {
                let of = dense.layers[number].linears[&module].lora.as_ref();
                linear.lora = of.map(Lora::share).map(|lora| {
                    let scale = lora.scale / self.divisor(number, module);
                    Lora { scale, ..lora }
                });
            }
        }
    }

    /// The first scale that is none of a run of layers that are gone, of so many layers, or is not a positive number.
    pub(crate) fn unfit_scale(&self, num_layers: usize) -> Option<&RunScale> {
        self.scales.iter().find(|RunScale { run, factor }| {
            let stays = self.layers.iter().any(|layer| run.contains(layer));
            stays || *run.end() >= num_layers || !(factor.is_finite() && *factor > 0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cut_makes_smaller() {
        let scale = |run, factor| RunScale { run, factor };
        let scales = [scale(0..=0, 1.5), scale(3..=4, 2.0), scale(7..=7, 0.25)];
        let origin = Origin { layers: &[1, 2, 5, 6], scales: &scales };
        let smaller = [1.0, 1.5, 1.5, 1.5, 1.5, 3.0, 3.0, 3.0, 0.75];
        for (layer, smaller) in smaller.into_iter().enumerate() {
            assert_eq!(origin.smaller_before(layer), smaller);
            for module in Module::SPLIT {
                let adds = module == Module::OProj || module == Module::DownProj;
                assert_eq!(origin.divisor(layer, module), if adds { smaller } else { 1.0 });
            }
        }
        assert_eq!(origin.unfit_scale(8), None);
        assert_eq!(origin.unfit_scale(7), Some(&scales[2]));
        for (run, factor) in [(2..=4, 1.0), (3..=4, 0.0), (3..=4, -1.0), (3..=4, f64::NAN)] {
            let scales = [scale(run, factor)];
            assert!(Origin { scales: &scales, ..origin }.unfit_scale(8).is_some(), "{scales:?}");
        }
    }
}
