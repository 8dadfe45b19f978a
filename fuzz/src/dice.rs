//! Seeded decisions.

use checkpoint::sha256_bytes;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Rolls the same for the same input.
pub(crate) struct Dice {
    rng: ChaCha8Rng,
}

impl Dice {
    /// For input `number` of a target under a seed.
    pub(crate) fn new(target: &str, seed: u64, number: u64) -> Self {
        let digest = sha256_bytes(format!("{target} {seed} {number}").as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&digest.as_bytes()[..32]);
        Self { rng: ChaCha8Rng::from_seed(bytes) }
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.rng.next_u64() % end as u64) as usize }
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        among.get(self.below(among.len()))
    }

    /// A count that is mostly small: 1, 10, … up to `most`.
    pub(crate) fn size(&mut self, most: usize) -> usize {
        let exponent = self.below(7) as u32;
        (10_usize.pow(exponent) + self.below(10)).min(most)
    }
}
