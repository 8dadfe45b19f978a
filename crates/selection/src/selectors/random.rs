//! `random`: lots, a control.

use evidence::{Evidence, Need};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::{Request, Result, Scores, Selection, Selector};

/// A choice by the seed, every set of layers alike. The guard does not bind it.
pub(crate) struct Random;

impl Selector for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn about(&self) -> &'static str {
        "a random choice by the seed, without the guard, a control"
    }

    fn needs(&self) -> &'static [Need] {
        &[]
    }

    fn is_guarded(&self) -> bool {
        false
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, _: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let mut random = ChaCha8Rng::seed_from_u64(request.seed);
        let mut order = request.candidates.clone();
        // Fisher and Yates's shuffle; a remainder of 64 bits is as good as even.
        for place in (1..order.len()).rev() {
            order.swap(place, (random.next_u64() % (place as u64 + 1)) as usize);
        }
        Ok(Selection { removed: request.first_of(order), scores: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Criterion, Keep, Share};

    #[test]
    fn every_layer_goes_as_often() {
        let criterion: Criterion = "random".parse().unwrap();
        let mut counts = [0; 10];
        for seed in 0..2000 {
            let request = criterion.request(10, Share::Layers(3), Keep::Guard, seed).unwrap();
            for layer in Random.select(&mut Evidence::default(), &request).unwrap().removed {
                counts[layer] += 1;
            }
        }
        // 600 each; five standard deviations of a binomial count are 102.
        assert!(counts.iter().all(|count| (498..=702).contains(count)), "{counts:?}");
    }
}
