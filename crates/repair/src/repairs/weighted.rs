//! `weighted`: as `same-sign`, each element by its share of importance and all by one step (method.md §8).

use checkpoint::{Checkpoint, Record, TensorView, narrow};
use merge::{WeightedDonor, WeightedReceiver, add_weighted};
use selection::Plan;

use super::{BLOCK, ByRecord, Edits, Inputs, Opened, Part, Place, is_wanted, read_f32};
use crate::Result;
use crate::importance::{self, Recorded, Room};

/// Needs the record.
pub(super) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    ByRecord::open(inputs, |source, record, plan| Box::new(Weighted::new(source, record, plan)))
}

/// Adds the layers that a plan wants merged to those before them:
///
/// ```text
/// W' = W + η Σ_j S_j ∘ F_j / (F_j + F) ∘ W_j ∘ [ W ∘ W_j > 0 ]
/// ```
struct Weighted<'a> {
    source: &'a Checkpoint,
    record: &'a Record,
    plan: &'a Plan,
    /// `η`.
    step: f64,
    /// Elements of a weight whose importance is held at a time, on either side.
    part: usize,
    own: Room,
    theirs: Room,
}

impl<'a> Weighted<'a> {
    fn new(source: &'a Checkpoint, record: &'a Record, plan: &'a Plan) -> Self {
        let (step, own, theirs) = (plan.step().unwrap_or(0.0), Room::new(), Room::new());
        Self { source, record, plan, step, part: BLOCK, own, theirs }
    }
}

impl Edits for Weighted<'_> {
    fn change(&self, place: &Place) -> bool {
        let receives = !self.plan.donors_of(place.layer).is_empty();
        place.part == Part::Weight && self.step > 0.0 && receives && is_wanted(self.record, place)
    }

    fn write(
        &mut self,
        receiver: &TensorView<'_>,
        Place { layer, module, .. }: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Self { source, record, plan, step, part, own, theirs } = self;
        let is_transposed = source.outline().stores_transposed();
        let layers = plan.donors_of(*layer);
        let mut donors = Vec::new();
        for (&donor, weight) in layers.iter().zip(super::donors(source, layers, module, receiver)?)
        {
            let recorded = || Recorded::of(record, donor, module, is_transposed);
            let kept = importance::kept(recorded()?, plan.density, theirs)?;
            donors.push((weight, recorded()?, kept));
        }
        let recorded = Recorded::of(record, *layer, module, is_transposed)?;
        let (dtype, columns) = (receiver.dtype()?, recorded.columns);
        let together = (*part / columns).max(1);
        for first_row in (0..recorded.rows).step_by(together) {
            let rows = together.min(recorded.rows - first_row);
            let (first, count) = (first_row * columns, rows * columns);
            let weight = read_f32(receiver, first, count)?;
            let mut sums: Vec<f64> = weight.iter().copied().map(f64::from).collect();
            let importance = own.rows(&recorded, first_row, rows)?;
            let receiver = WeightedReceiver { first, weight: &weight, importance };
            for (donor, recorded, kept) in &donors {
                let weight = read_f32(donor, first, count)?;
                let importance = theirs.rows(recorded, first_row, rows)?;
                let donor = WeightedDonor { weight: &weight, importance, kept };
                add_weighted(&receiver, &donor, *step, &mut sums);
            }
            let merged: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
            take((first * dtype.size()) as u64, &narrow(&merged, dtype))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::{Module, tensor_name};
    use selection::{Merge, Repair};

    use crate::apply::tests::{changed_tensors, settings};
    use crate::{PruneSettings, apply};

    use super::*;

    fn plan() -> Plan {
        let merge = |into, from: &[usize]| Merge { into, from: from.to_vec() };
        let merges = vec![merge(1, &[2, 3]), merge(4, &[5])];
        Plan::new(6, vec![2, 3, 5], merges, 0.3).with_repair(Repair::Weighted).unwrap()
    }

    /// Importance by plain loops in f64.
    fn importance_of(record: &Record, layer: usize, module: Module) -> Vec<f64> {
        let mut sums = Vec::new();
        for step in 0..record.num_steps() {
            let pair = record.gradients(step, layer, &module.into()).unwrap();
            let (rows, rank, columns) = (pair.b.nrows(), pair.b.ncols(), pair.a.ncols());
            sums.resize(rows * columns, 0.0);
            for o in 0..rows {
                for n in 0..columns {
                    let product = |k: usize| f64::from(pair.b[[o, k]]) * f64::from(pair.a[[k, n]]);
                    let gradient: f64 = (0..rank).map(product).sum();
                    sums[o * columns + n] += gradient * gradient / record.num_steps() as f64;
                }
            }
        }
        sums
    }

    #[test]
    fn donors_are_added_by_their_share() {
        let folder = testkit::temporary_folder();
        for step in [0.25, 1.0] {
            let target = folder.path().join(format!("{step}"));
            let base = settings("tiny_llama", &target);
            let settings = PruneSettings { plan: plan().with_step(step).unwrap(), ..base };
            apply(&settings, &mut |_, _| {}).unwrap();
            let source = Checkpoint::open(&settings.model).unwrap();
            let found = Checkpoint::open(&settings.target).unwrap();
            let record = Record::open(settings.record.as_ref().unwrap()).unwrap();
            let mut expected_names = Vec::new();
            for (receiver, position, donors) in [(1, 1, &[2, 3][..]), (4, 2, &[5])] {
                for module in Module::SPLIT {
                    let values = |layer| {
                        source.tensor(&tensor_name(layer, module)).unwrap().to_f32().unwrap()
                    };
                    let own = values(receiver);
                    let own_importance = importance_of(&record, receiver, module);
                    let mut sums: Vec<f64> = own.iter().copied().map(f64::from).collect();
                    for &donor in donors {
                        let theirs = values(donor);
                        let importance = importance_of(&record, donor, module);
                        let mut order: Vec<usize> = (0..own.len()).collect();
                        order.sort_by(|&i, &j| {
                            importance[j].total_cmp(&importance[i]).then(i.cmp(&j))
                        });
                        for &n in &order[..(0.3 * own.len() as f64) as usize] {
                            if own[n] * theirs[n] > 0.0 {
                                let share = importance[n] / (importance[n] + own_importance[n]);
                                sums[n] += step * share * f64::from(theirs[n]);
                            }
                        }
                    }
                    let name = tensor_name(position, module);
                    let expected: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
                    let found = found.tensor(&name).unwrap().to_f32().unwrap();
                    let apart = testkit::relative_deviation(&found, &expected);
                    assert!(apart < 1e-5, "{name}: {apart}");
                    expected_names.push(name);
                }
            }
            expected_names.sort();
            assert_eq!(changed_tensors(&settings), expected_names);
        }
    }

    /// A step of 0 refuses the repair: what is written is what `drop` writes.
    #[test]
    fn a_step_of_nothing_changes_nothing() {
        let folder = testkit::temporary_folder();
        let base = settings("tiny_llama", &folder.path().join("out"));
        let settings = PruneSettings { plan: plan().with_step(0.0).unwrap(), ..base };
        assert_eq!(apply(&settings, &mut |_, _| {}).unwrap().step, Some(0.0));
        assert!(changed_tensors(&settings).is_empty());
    }

    /// However much is held at a time, the bytes are the same.
    #[test]
    fn parts_do_not_matter() {
        let base = settings("tiny_llama", &std::env::temp_dir());
        let source = Checkpoint::open(&base.model).unwrap();
        let record = Record::open(base.record.as_ref().unwrap()).unwrap();
        let plan = plan();
        let place = Place { layer: 1, module: Module::GateProj.into(), part: Part::Weight };
        let view = source.tensor(&tensor_name(1, Module::GateProj)).unwrap();
        let rooms = Room::of_all_sizes().into_iter().zip(Room::of_all_sizes());
        let all: Vec<Vec<u8>> = rooms
            .zip([BLOCK, 1000, 1])
            .map(|((own, theirs), part)| {
                let mut edits =
                    Weighted { part, own, theirs, ..Weighted::new(&source, &record, &plan) };
                let mut bytes = Vec::new();
                let mut take = |offset: u64, part: &[u8]| {
                    assert_eq!(offset, bytes.len() as u64);
                    bytes.extend_from_slice(part);
                    Ok(())
                };
                edits.write(&view, &place, &mut take).unwrap();
                bytes
            })
            .collect();
        assert_eq!(all[0].len(), view.bytes().len());
        assert!(all[0] != view.bytes() && all[0] == all[1] && all[1] == all[2]);
    }
}
