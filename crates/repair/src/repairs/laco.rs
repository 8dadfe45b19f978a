//! `laco`: what donors differ by from a receiver is added to it (`LaCo`, arXiv 2402.11187).

use checkpoint::{Checkpoint, TensorView, narrow};
use merge::add_differences;
use selection::Plan;

use super::{BLOCK, Edits, Inputs, Opened, Part, Place, donors, read_f32};
use crate::experts::Experts;
use crate::{RepairError, Result};

/// Needs nothing but the model.
///
/// # Errors
///
/// [`RepairError::StackedExperts`] if a layer that others are merged into has its experts in one tensor, which is not a matrix:
/// it would keep them and take over the router of others.
pub(super) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    let Inputs { source, plan, .. } = inputs;
    let outline = source.outline();
    if let Some(experts) = Experts::of(outline) {
        let stacked = source.weights().iter().find(|view| {
            let layer = outline.layer_tensor(view.name()).map(|tensor| tensor.layer);
            layer.is_some_and(|layer| !plan.donors_of(layer).is_empty())
                && experts.are_stacked_in(view)
        });
        if let Some(view) = stacked {
            return Err(RepairError::StackedExperts { name: view.name().to_owned() });
        }
    }
    Ok(Box::new(OfTheModel))
}

/// Nothing but the model is read.
struct OfTheModel;

impl Opened for OfTheModel {
    fn edits<'a>(&'a self, source: &'a Checkpoint, plan: &'a Plan) -> Box<dyn Edits + 'a> {
        Box::new(Laco { source, plan })
    }

    fn require_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// `W ← W + Σ_j (W_j − W)` over the layers merged into `W`'s. Norms and biases stay the receiver's.
struct Laco<'a> {
    source: &'a Checkpoint,
    plan: &'a Plan,
}

impl Edits for Laco<'_> {
    fn change(&self, place: &Place) -> bool {
        place.part == Part::Weight && !self.plan.donors_of(place.layer).is_empty()
    }

    fn write(
        &mut self,
        receiver: &TensorView<'_>,
        Place { layer, module, .. }: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let donors = donors(self.source, self.plan.donors_of(*layer), module, receiver)?;
        let (dtype, size) = (receiver.dtype()?, receiver.shape().iter().product::<usize>());
        for first in (0..size).step_by(BLOCK) {
            let count = BLOCK.min(size - first);
            let own = read_f32(receiver, first, count)?;
            let theirs = donors
                .iter()
                .map(|donor| read_f32(donor, first, count))
                .collect::<Result<Vec<_>>>()?;
            let theirs: Vec<&[f32]> = theirs.iter().map(Vec::as_slice).collect();
            let mut merged = vec![0.0; count];
            add_differences(&own, &theirs, &mut merged);
            take((first * dtype.size()) as u64, &narrow(&merged, dtype))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::{Module, tensor_name, widen};
    use selection::Repair;

    use crate::apply::tests::{changed_tensors, settings};
    use crate::{PruneSettings, apply};

    use super::*;

    /// A router would go with what is merged, and experts in one tensor stay.
    #[test]
    fn experts_in_one_tensor_are_refused() {
        for (family, refused) in [("gpt_oss", true), ("granitemoe", true), ("mixtral", false)] {
            let folder = testkit::temporary_folder();
            let model = folder.path().join("model");
            testkit::made_up_decoder(family, &model);
            let layers = Checkpoint::open(&model).unwrap().num_layers();
            let plan =
                Plan::new(layers, vec![2, 3], vec![], 0.2).with_repair(Repair::Laco).unwrap();
            let base = settings("tiny_llama", &folder.path().join("out"));
            let found = apply(&PruneSettings { model, plan, record: None, ..base }, &mut |_, _| {});
            match (found, refused) {
                (Err(RepairError::StackedExperts { name }), true) => {
                    assert!(name.starts_with("model.layers.1."), "{name}");
                }
                (found, _) => assert!(!refused && found.is_ok(), "{family}: {found:?}"),
            }
            assert_eq!(folder.path().join("out").exists(), !refused);
        }
    }

    /// In the stored type of each fixture, against plain loops in f64; nothing else changes.
    #[test]
    fn differences_are_added_to_the_layer_before() {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let folder = testkit::temporary_folder();
            let plan = Plan::new(6, vec![2, 3, 5], vec![], 0.2).with_repair(Repair::Laco).unwrap();
            let base = settings(name, &folder.path().join("out"));
            let settings = PruneSettings { plan, record: None, ..base };
            let report = apply(&settings, &mut |_, _| {}).unwrap();
            assert_eq!(report.repair, Repair::Laco);
            let source = Checkpoint::open(&settings.model).unwrap();
            let found = Checkpoint::open(&settings.target).unwrap();
            // Layers 1 and 4 of the source are 1 and 2 of the result.
            let mut expected_names = Vec::new();
            for (receiver, position, donors) in [(1, 1, &[2, 3][..]), (4, 2, &[5])] {
                for module in Module::SPLIT {
                    let of = |layer| source.tensor(&tensor_name(layer, module)).unwrap();
                    let own = of(receiver).to_f32().unwrap();
                    let mut sums: Vec<f64> = own.iter().copied().map(f64::from).collect();
                    for &donor in donors {
                        let theirs = of(donor).to_f32().unwrap();
                        for n in 0..own.len() {
                            sums[n] += f64::from(theirs[n]) - f64::from(own[n]);
                        }
                    }
                    let rounded: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
                    let dtype = of(receiver).dtype().unwrap();
                    let expected = widen(&narrow(&rounded, dtype), dtype);
                    let name = tensor_name(position, module);
                    assert_eq!(found.tensor(&name).unwrap().to_f32().unwrap(), expected, "{name}");
                    expected_names.push(name);
                }
            }
            expected_names.sort();
            assert_eq!(changed_tensors(&settings), expected_names);
        }
    }
}
