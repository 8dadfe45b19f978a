//! Forward passes that go on where an earlier one stopped, for generation.

use std::collections::{BTreeMap, btree_map};

use checkpoint::LayerKind;
use tch::{Kind, Tensor};

use crate::attention::{Attended, Attention, Heads, Scoring, attend_cached};
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

/// A layer's keys and values of several rows end to end, with those of new tokens behind each row's; the caches are parts of
/// them from then on.
fn extended_together(
    caches: &mut [&mut KvCache],
    layer: usize,
    new: &[i64],
    heads: &Heads,
) -> Result<Heads> {
    let together = |fresh: &Tensor, held: fn(&(Tensor, Tensor)) -> &Tensor| -> Result<Tensor> {
        let fresh = fresh.f_split_with_sizes(new, 0)?;
        let parts = caches.iter().zip(&fresh).flat_map(|(cache, fresh)| {
            cache.layers.get(layer).map(held).into_iter().chain(std::iter::once(fresh))
        });
        Ok(Tensor::f_cat(&parts.collect::<Vec<_>>(), 0)?)
    };
    let keys = together(&heads.keys, |(keys, _)| keys)?;
    let values = together(&heads.values, |(_, values)| values)?;
    let mut first = 0;
    for (cache, new) in caches.iter_mut().zip(new) {
        let held =
            cache.layers.get(layer).map_or(Ok(0), |(keys, _)| keys.size3().map(|of| of.0))?;
        let count = held + new;
        let own = (keys.f_narrow(0, first, count)?, values.f_narrow(0, first, count)?);
        match cache.layers.get_mut(layer) {
            Some(held) => *held = own,
            None => cache.layers.push(own),
        }
        first += count;
    }
    Ok(Heads { queries: heads.queries.shallow_clone(), keys, values })
}

impl Model {
    /// How rows attend to what is cached of them and themselves, all rows at once, by their layers' windows; `None` where
    /// each row is for itself.
    fn continued(
        &self,
        batch: &Packed,
        before: &[i64],
    ) -> Result<BTreeMap<Option<usize>, Option<Attention>>> {
        let (scoring, at) = (Scoring::of(&self.config), (self.kind, self.device));
        let mut found = BTreeMap::new();
        for &LayerKind { window, .. } in &self.config.layers {
            if let btree_map::Entry::Vacant(entry) = found.entry(window) {
                entry.insert(Attention::continued(batch, before, window, scoring, at)?);
            }
        }
        Ok(found)
    }

    /// As [`Model::hidden`] for rows of tokens that follow those in a cache each, which then holds them too.
    pub(crate) fn hidden_cached(
        &self,
        batch: &Packed,
        caches: &mut [&mut KvCache],
    ) -> Result<Tensor> {
        let (rotations, scoring) = (self.rotations(batch)?, Scoring::of(&self.config));
        let before: Vec<i64> = caches.iter().map(|cache| cache.len() as i64).collect();
        let (new, together) = (batch.lengths(), self.continued(batch, &before)?);
        let mut x = self.embed(batch)?;
        let mut passage = Passage::new(self, 0..self.layers.len());
        for number in 0..self.layers.len() {
            let layer = passage.next()?;
            let window = self.config.layers[number].window;
            let attention = |heads: &Heads| -> Result<Attended> {
                if let Some(Some(attention)) = together.get(&window) {
                    return attention.forward(&extended_together(caches, number, &new, heads)?);
                }
                let (mut first, mut outputs) = (0, Vec::with_capacity(caches.len()));
                for ((&new, cache), &before) in new.iter().zip(&mut *caches).zip(&before) {
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
