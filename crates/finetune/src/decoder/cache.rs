//! Forward passes that go on where an earlier one stopped, for generation.

use tch::{Kind, Tensor};

use crate::attention::{Heads, Scoring, attend_cached};
use crate::offload::Passage;
use crate::pack::Packed;
use crate::{Model, Result};

/// Keys and values of the tokens so far, for one row.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| keys.size().first().map_or(0, |&n| n as usize))
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

impl Model {
    /// As [`Model::hidden`] for tokens that follow those in `cache`, which then holds them too.
    pub(crate) fn hidden_cached(&self, batch: &Packed, cache: &mut KvCache) -> Result<Tensor> {
        let (rotations, scoring) = (self.rotations(batch)?, Scoring::of(&self.config));
        let before = cache.len() as i64;
        let mut x = self.embed(batch)?;
        let mut passage = Passage::new(self, 0..self.layers.len());
        for number in 0..self.layers.len() {
            let layer = passage.next()?;
            let mask = self.cached_mask(before, batch.num_tokens() as i64, number)?;
            let attention = |heads: &Heads| {
                let Heads { queries, keys, values } = heads;
                let all = match cache.layers.get(number) {
                    Some((old_keys, old_values)) => (
                        Tensor::f_cat(&[old_keys, keys], 0)?,
                        Tensor::f_cat(&[old_values, values], 0)?,
                    ),
                    None => (keys.shallow_clone(), values.shallow_clone()),
                };
                let out = attend_cached(queries, &all.0, &all.1, mask.as_ref(), scoring)?;
                match cache.layers.get_mut(number) {
                    Some(held) => *held = all,
                    None => cache.layers.push(all),
                }
                Ok(out)
            };
            let rotation = self.config.layers[number].rope.map(|rope| &rotations[rope]);
            x = layer.forward(&x, rotation, attention)?.0;
        }
        Ok(x)
    }

    /// What `new` tokens after `before` cached ones see; nothing to say for one without a window.
    fn cached_mask(&self, before: i64, new: i64, layer: usize) -> Result<Option<Tensor>> {
        let window = self.config.layers[layer].window.map_or(i64::MAX, |window| window as i64);
        if new == 1 && before < window {
            return Ok(None);
        }
        let at = (Kind::Int64, self.device);
        let queries = Tensor::f_arange_start(before, before + new, at)?.f_unsqueeze(1)?;
        let distance = queries.f_sub(&Tensor::f_arange(before + new, at)?)?;
        Ok(Some(distance.f_ge(0)?.f_logical_and(&distance.f_lt(window)?)?))
    }
}
