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

    /// A layer's keys and values with those of new tokens behind them.
    fn extended(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(&Tensor, &Tensor)> {
        match self.layers.get_mut(layer) {
            Some(held) => {
                *held =
                    (Tensor::f_cat(&[&held.0, keys], 0)?, Tensor::f_cat(&[&held.1, values], 0)?);
            }
            // Copies: of several rows they are parts of one tensor.
            None => self.layers.push((keys.f_contiguous()?, values.f_contiguous()?)),
        }
        let (keys, values) = &self.layers[layer];
        Ok((keys, values))
    }
}

impl Model {
    /// As [`Model::hidden`] for rows of tokens that follow those in a cache each, which then holds them too.
    pub(crate) fn hidden_cached(
        &self,
        batch: &Packed,
        caches: &mut [&mut KvCache],
    ) -> Result<Tensor> {
        let (rotations, scoring) = (self.rotations(batch)?, Scoring::of(&self.config));
        let before: Vec<i64> = caches.iter().map(|cache| cache.len() as i64).collect();
        let mut x = self.embed(batch)?;
        let mut passage = Passage::new(self, 0..self.layers.len());
        for number in 0..self.layers.len() {
            let layer = passage.next()?;
            let attention = |heads: &Heads| {
                let (mut first, mut outputs) = (0, Vec::with_capacity(caches.len()));
                for ((new, cache), &before) in
                    batch.lengths().into_iter().zip(&mut *caches).zip(&before)
                {
                    let of_row = |x: &Tensor| x.f_narrow(0, first, new);
                    let queries = of_row(&heads.queries)?;
                    let (keys, values) =
                        cache.extended(number, &of_row(&heads.keys)?, &of_row(&heads.values)?)?;
                    let mask = self.cached_mask(before, new, number)?;
                    outputs.push(attend_cached(&queries, keys, values, mask.as_ref(), scoring)?);
                    first += new;
                }
                Ok(Tensor::f_cat(&outputs, 0)?.into())
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
