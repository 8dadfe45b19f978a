//! Which rows each step trains on.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Draws batches of rows: every epoch all rows once, in an order of its own.
///
/// A batch depends only on the seed and the step, so a run can go on from any step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    rows: usize,
    batch: usize,
    seed: u64,
}

impl Sampler {
    /// Batches of `batch` rows out of `rows`; an epoch's last batch may be smaller.
    ///
    /// # Panics
    ///
    /// If either is zero.
    pub fn new(rows: usize, batch: usize, seed: u64) -> Self {
        assert!(rows > 0 && batch > 0, "there must be rows and batches");
        Self { rows, batch, seed }
    }

    /// How many steps an epoch takes.
    pub fn steps_per_epoch(&self) -> usize {
        self.rows.div_ceil(self.batch)
    }

    /// All rows in the order of an epoch, counted from 0.
    pub fn epoch(&self, epoch: usize) -> Vec<usize> {
        shuffled(self.rows, self.seed, epoch as u64)
    }

    /// The rows of a step, counted from 0.
    pub fn batch(&self, step: usize) -> Vec<usize> {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let order = self.epoch(epoch);
        let start = within * self.batch;
        order[start..self.rows.min(start + self.batch)].to_vec()
    }
}

/// Fisher and Yates' shuffle of `0..count`, from a stream of its own for each epoch.
fn shuffled(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        // The bias of taking the high part of a 64-bit product is below count / 2^64.
        let pick = ((u128::from(random.next_u64()) * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, pick);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_row_once() {
        let sampler = Sampler::new(10, 4, 7);
        assert_eq!(sampler.steps_per_epoch(), 3);
        let mut epochs = Vec::new();
        for epoch in 0..2 {
            let rows: Vec<usize> =
                (0..3).flat_map(|within| sampler.batch(epoch * 3 + within)).collect();
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            epochs.push(rows);
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_eq!(sampler.batch(1), Sampler::new(10, 4, 7).batch(1));
        assert_ne!(sampler.batch(0), Sampler::new(10, 4, 8).batch(0));
    }
}
