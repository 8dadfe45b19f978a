//! The elements of a weight that are kept, by their importance, in bounded memory.

use std::sync::{Mutex, PoisonError};

use checkpoint::{ModuleName, Record, RecordedPair};
use evidence::{require_single_precision, step_pairs};
use igia::{Buffer, ImportanceRows, Panels, mean_of_sums};
use merge::{Mask, Scores, keep_share_of, keep_top, keep_top_of, kept_count};
use ndarray::{CowArray, Ix2};
use selection::Density;

use crate::{RepairError, Result};

/// Memory for importance; kept from weight to weight, since memory taken anew costs as much as the
/// work.
pub(crate) struct Room {
    /// Bytes of importance that are held; a larger weight's is computed anew for each pass over it.
    held_bytes: usize,
    /// Bytes of a larger weight's importance that are computed at a time.
    part_bytes: usize,
    /// Bytes of gradients that are laid out at a time, or one step's: more steps are added in groups.
    gradient_bytes: usize,
    importance: Buffer,
    panels: Panels,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self {
            held_bytes: 224 << 20,
            part_bytes: 128 << 20,
            gradient_bytes: 48 << 20,
            importance: Buffer::default(),
            panels: Panels::default(),
        }
    }

    /// As it is, and for weights and records that do not fit it.
    #[cfg(test)]
    pub(crate) fn of_all_sizes() -> [Self; 3] {
        let small = Self { held_bytes: 0, part_bytes: 0, ..Self::new() };
        let smaller = Self { held_bytes: 0, part_bytes: 0, gradient_bytes: 0, ..Self::new() };
        [Self::new(), small, smaller]
    }

    /// Importance of some rows of a weight, row-major.
    pub(crate) fn rows(
        &mut self,
        weight: &Recorded<'_>,
        first: usize,
        rows: usize,
    ) -> Result<&[f32]> {
        let size = rows * weight.columns;
        if self.importance.len() < size {
            self.importance = Buffer::default(); // The memory of both is not needed.
            self.importance = Buffer::zeroed(size).map_err(RepairError::Memory)?;
        }
        let out = &mut self.importance[..size];
        let steps = weight.record.num_steps();
        let together = (self.gradient_bytes / weight.step_bytes).max(1);
        if together < steps {
            out.fill(0.0);
        }
        for begin in (0..steps).step_by(together) {
            let gradients = (begin..steps.min(begin + together))
                .map(|step| weight.gradients(step))
                .collect::<Result<Vec<_>>>()?;
            let pairs = step_pairs(&gradients);
            let rows = ImportanceRows::new(&pairs, &mut self.panels);
            match together < steps {
                true => rows.add(first, out),
                false => rows.compute(first, out),
            }
        }
        if together < steps {
            mean_of_sums(out, steps);
        }
        Ok(out)
    }
}

/// Marks the most important elements of a weight, as many as the density says or as it takes (method.md §5).
pub(crate) fn kept(weight: Recorded<'_>, density: Density, room: &mut Room) -> Result<Mask> {
    let Recorded { rows, columns, .. } = weight;
    if size_of::<f32>() * rows * columns > room.held_bytes {
        let parts = Parts { weight, room: Mutex::new(room) };
        return match density {
            Density::Share(share) => keep_top_of(&parts, kept_count(share, rows * columns)),
            Density::Auto(share) => keep_share_of(&parts, share),
        };
    }
    let all = room.rows(&weight, 0, rows)?;
    Ok(match density {
        Density::Share(share) => keep_top(all, kept_count(share, rows * columns)),
        Density::Auto(share) => {
            let Ok(mask) = keep_share_of(all, share);
            mask
        }
    })
}

/// A weight whose gradients are recorded.
pub(crate) struct Recorded<'a> {
    record: &'a Record,
    layer: usize,
    module: ModuleName,
    /// Whether the model stores it as `[in, out]`: rows and columns are those that are stored.
    is_transposed: bool,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Bytes of one step's gradients as f32.
    step_bytes: usize,
}

impl<'a> Recorded<'a> {
    /// Looks whether importance can be computed of its gradients.
    pub(crate) fn of(
        record: &'a Record,
        layer: usize,
        module: &ModuleName,
        is_transposed: bool,
    ) -> Result<Self> {
        require_single_precision(record, layer, module)?;
        let (out, rank, inner) = {
            let first = record.gradients(0, layer, module)?;
            (first.b.nrows(), first.b.ncols(), first.a.ncols())
        };
        let (rows, columns) = if is_transposed { (inner, out) } else { (out, inner) };
        let step_bytes = size_of::<f32>() * rank * (rows + columns);
        let module = module.clone();
        Ok(Self { record, layer, module, is_transposed, rows, columns, step_bytes })
    }

    /// The two factors of a step's gradient as the weight is stored: `Gᵀ = Aᵀ·Bᵀ`.
    fn gradients(&self, step: usize) -> Result<RecordedPair<'a>> {
        let RecordedPair { a, b } = self.record.gradients(step, self.layer, &self.module)?;
        Ok(match self.is_transposed {
            true => {
                let turned = |matrix: CowArray<'a, f32, Ix2>| {
                    CowArray::from(matrix.t().as_standard_layout().into_owned())
                };
                RecordedPair { a: turned(b), b: turned(a) }
            }
            false => RecordedPair { a, b },
        })
    }
}

/// Importance that is computed when it is asked for.
struct Parts<'a> {
    weight: Recorded<'a>,
    room: Mutex<&'a mut Room>,
}

impl Scores for Parts<'_> {
    type Error = RepairError;

    fn count(&self) -> usize {
        self.weight.rows * self.weight.columns
    }

    fn parts(&self, see: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()> {
        let Recorded { rows, columns, .. } = self.weight;
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        // Parts begin at multiples of 64 elements, whatever the columns.
        let together = (room.part_bytes / (size_of::<f32>() * columns)).max(1).next_multiple_of(64);
        for first in (0..rows).step_by(together) {
            let part = room.rows(&self.weight, first, together.min(rows - first))?;
            let Ok(()) = part.parts(&|at, part| see(first * columns + at, part));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Module;

    use super::*;

    /// However much of the importance is held, the fewest elements with the share are those that a sort finds.
    #[test]
    fn a_density_of_its_own_for_every_weight() {
        let record = Record::open(&testkit::fixture("tiny_llama/record")).unwrap();
        let mut counts = Vec::new();
        for module in Module::SPLIT {
            let steps = 0..record.num_steps();
            let gradients: Vec<_> =
                steps.map(|step| record.gradients(step, 3, &module.into()).unwrap()).collect();
            let scores = igia::importance(&step_pairs(&gradients));
            // Sums of f32s are rounded in either order, but here no share falls between two roundings.
            let expected = merge::reference::keep_share(&scores, 0.8);
            for mut room in Room::of_all_sizes() {
                let recorded = Recorded::of(&record, 3, &module.into(), false).unwrap();
                let found = kept(recorded, Density::AUTO, &mut room).unwrap();
                assert_eq!(found, expected, "{module}");
            }
            counts.push(expected.count() as f64 / expected.len() as f64);
        }
        assert!(counts.iter().all(|share| (0.01..0.6).contains(share)), "{counts:?}");
        assert!(counts.iter().any(|share| (share - counts[0]).abs() > 0.01), "{counts:?}");
    }
}
