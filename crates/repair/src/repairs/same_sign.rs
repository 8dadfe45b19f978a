//! `same-sign`: donors into a receiver, a weight at a time, a block of it in memory (method.md §5, §6).

use checkpoint::{Checkpoint, Dtype, ModuleName, Record, TensorReader, TensorView, narrow};
use half::{bf16, f16};
use merge::{Donor, Element, Mask, merge_part};

use selection::Plan;

use super::{BLOCK, ByRecord, Edits, Inputs, Opened, Part, Place, is_wanted, read_f32};
use crate::Result;
use crate::importance::{self, Recorded, Room};

/// Needs the record.
pub(super) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    ByRecord::open(inputs, |source, record, plan| Box::new(SameSign::new(source, record, plan)))
}

/// Merges the layers that a plan wants merged into those before them.
struct SameSign<'a> {
    source: &'a Checkpoint,
    record: &'a Record,
    plan: &'a Plan,
    room: Room,
}

impl<'a> SameSign<'a> {
    fn new(source: &'a Checkpoint, record: &'a Record, plan: &'a Plan) -> Self {
        Self { source, record, plan, room: Room::new() }
    }

    /// Which elements of a donor are kept: its most important ones (method.md §5).
    fn kept(&mut self, donor: usize, module: &ModuleName) -> Result<Mask> {
        let is_transposed = self.source.outline().stores_transposed();
        let recorded = Recorded::of(self.record, donor, module, is_transposed)?;
        importance::kept(recorded, self.plan.density, &mut self.room)
    }
}

impl Edits for SameSign<'_> {
    fn change(&self, place: &Place) -> bool {
        let receives = !self.plan.donors_of(place.layer).is_empty();
        place.part == Part::Weight && receives && is_wanted(self.record, place)
    }

    fn write(
        &mut self,
        receiver: &TensorView<'_>,
        Place { layer, module, .. }: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (source, plan) = (self.source, self.plan);
        let layers = plan.donors_of(*layer);
        let mut donors = Vec::new();
        for (&donor, weight) in layers.iter().zip(super::donors(source, layers, module, receiver)?)
        {
            donors.push((weight, self.kept(donor, module)?));
        }
        let one_type =
            donors.iter().all(|(weight, _)| weight.stored_dtype() == receiver.stored_dtype());
        match receiver.dtype()? {
            dtype if !one_type => merge_mixed(receiver, dtype, &donors, take),
            Dtype::F32 => merge_stored::<f32>(receiver, &donors, take),
            Dtype::F16 => merge_stored::<f16>(receiver, &donors, take),
            Dtype::BF16 => merge_stored::<bf16>(receiver, &donors, take),
        }
    }
}

/// A donor's weight and what of it is kept.
type Giving<'a> = (TensorView<'a>, Mask);

/// Merges weights of one stored type, a block at a time.
fn merge_stored<E: Element + bytemuck::Pod>(
    receiver: &TensorView<'_>,
    donors: &[Giving<'_>],
    take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let own = receiver.reader()?;
    let theirs: Vec<TensorReader> =
        donors.iter().map(|(weight, _)| weight.reader()).collect::<Result<_, _>>()?;
    let size = receiver.shape().iter().product::<usize>();
    let mut blocks = vec![vec![E::default(); BLOCK.min(size)]; donors.len() + 2];
    for first in (0..size).step_by(BLOCK) {
        let count = BLOCK.min(size - first);
        let offset = (first * size_of::<E>()) as u64;
        let mut parts = blocks.iter_mut().map(|block| &mut block[..count]);
        let (Some(merged), Some(receiver)) = (parts.next(), parts.next()) else { break };
        own.read(offset, bytemuck::cast_slice_mut(receiver))?;
        let mut giving = Vec::new();
        for ((weight, reader), (_, kept)) in parts.zip(&theirs).zip(donors) {
            reader.read(offset, bytemuck::cast_slice_mut(weight))?;
            giving.push(Donor { weight, kept });
        }
        merge_part(first, receiver, &giving, merged);
        take(offset, bytemuck::cast_slice(merged))?;
    }
    Ok(())
}

/// Merges weights of several stored types, as f32.
fn merge_mixed(
    receiver: &TensorView<'_>,
    dtype: Dtype,
    donors: &[Giving<'_>],
    take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = receiver.shape().iter().product::<usize>();
    for first in (0..size).step_by(BLOCK) {
        let count = BLOCK.min(size - first);
        let own = read_f32(receiver, first, count)?;
        let theirs = donors
            .iter()
            .map(|(weight, _)| read_f32(weight, first, count))
            .collect::<Result<Vec<_>>>()?;
        let giving: Vec<Donor<'_, f32>> =
            theirs.iter().zip(donors).map(|(weight, (_, kept))| Donor { weight, kept }).collect();
        let mut merged = vec![0.0; count];
        merge_part(first, &own, &giving, &mut merged);
        take((first * dtype.size()) as u64, &narrow(&merged, dtype))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use checkpoint::{CheckpointWriter, Module, TensorSpec, tensor_name};
    use evidence::step_pairs;

    use super::*;

    #[test]
    fn golden_importance_and_masks() {
        for name in testkit::GOLDEN {
            let at = |file: &str| testkit::fixture(&format!("{name}/{file}"));
            let record = Record::open(&at("record")).unwrap();
            let file = at("igia.safetensors");
            for tensor in testkit::tensor_names(&file) {
                let (layer, module) = place(&tensor);
                let steps = 0..record.num_steps();
                let gradients: Vec<_> =
                    steps.map(|step| record.gradients(step, layer, &module).unwrap()).collect();
                let found = igia::importance(&step_pairs(&gradients));
                let (_, expected) = testkit::tensor_f32(&file, &tensor);
                assert!(testkit::relative_deviation(&found, &expected) < 1e-5, "{name} {tensor}");
            }
            let source = Checkpoint::open(&at("model")).unwrap();
            let plan = Plan::read(&at("plan.json")).unwrap();
            let mut merging = SameSign::new(&source, &record, &plan);
            let file = at("masks.safetensors");
            for tensor in testkit::tensor_names(&file) {
                let (layer, module) = place(&tensor);
                let (_, expected) = testkit::tensor_bytes(&file, &tensor);
                for room in Room::of_all_sizes() {
                    merging.room = room;
                    let found = merging.kept(layer, &module).unwrap();
                    assert!(found.iter().map(u8::from).eq(expected.clone()), "{name} {tensor}");
                }
            }
        }
    }

    /// Donors stored in another type than their receiver, against the plain formula in f32.
    #[test]
    fn weights_of_several_types_meet_as_f32() {
        let folder = testkit::temporary_folder();
        let at = |file: &str| testkit::fixture(&format!("tiny_llama/{file}"));
        let whole = Checkpoint::open(&at("model")).unwrap();
        let plan = Plan::read(&at("plan.json")).unwrap();
        let (receiver, module) = (plan.merges[0].into, Module::UpProj);
        let short: Vec<String> =
            plan.donors().iter().map(|&donor| tensor_name(donor, module)).collect();
        let dtype_of = |view: &TensorView<'_>| match short.contains(&view.name().to_owned()) {
            true => Dtype::F16,
            false => Dtype::F32,
        };
        let spec =
            |view: TensorView<'_>| TensorSpec::new(view.name(), dtype_of(&view), view.shape());
        let specs = whole.weights().iter().map(spec).collect();
        let writer = CheckpointWriter::create(folder.path(), specs, u64::MAX).unwrap();
        for view in whole.weights().iter() {
            let bytes = narrow(&view.to_f32().unwrap(), dtype_of(&view));
            writer.write(view.name(), &bytes).unwrap();
        }
        writer.finish().unwrap();
        fs_err::copy(at("model/config.json"), folder.path().join("config.json")).unwrap();

        let (mixed, record) =
            (Checkpoint::open(folder.path()).unwrap(), Record::open(&at("record")).unwrap());
        let mut merging = SameSign::new(&mixed, &record, &plan);
        let view = mixed.tensor(&tensor_name(receiver, module)).unwrap();
        let mut found = vec![0; view.bytes().len()];
        let mut take = |offset: u64, part: &[u8]| {
            found[offset as usize..][..part.len()].copy_from_slice(part);
            Ok(())
        };
        let place = Place { layer: receiver, module: module.into(), part: Part::Weight };
        merging.write(&view, &place, &mut take).unwrap();
        let donors: Vec<(Vec<f32>, Mask)> = plan
            .donors_of(receiver)
            .iter()
            .map(|&donor| {
                let weight = mixed.tensor(&tensor_name(donor, module)).unwrap();
                (weight.to_f32().unwrap(), merging.kept(donor, &module.into()).unwrap())
            })
            .collect();
        let donors: Vec<Donor<'_, f32>> =
            donors.iter().map(|(weight, kept)| Donor { weight, kept }).collect();
        let expected = merge::reference::merge_same_sign(&view.to_f32().unwrap(), &donors);
        assert_eq!(found, narrow(&expected, Dtype::F32));
    }

    fn place(tensor: &str) -> (usize, ModuleName) {
        let (layer, module) = tensor.strip_prefix("layers.").unwrap().split_once('.').unwrap();
        (layer.parse().unwrap(), module.into())
    }
}
