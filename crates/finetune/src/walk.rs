//! Rows taken through the layers one layer at a time, so that a layer's weights are needed once for all rows.

use dataset::Example;
use tch::Tensor;

use crate::attention::Attention;
use crate::decoder::Shared;
use crate::layer::{Layer, Saved};
use crate::pack::Packed;
use crate::rope::Rotation;
use crate::{Model, Result};

/// Packs of rows, and what all layers share in a pass over each.
pub(crate) struct Walk<'a> {
    pub(crate) model: &'a Model,
    pub(crate) packs: Vec<Pack>,
}

/// One pack.
pub(crate) struct Pack {
    pub(crate) rows: Packed,
    /// Where its tokens stand that are not the first of a row: those have activations hundreds of times as
    /// large, which would drown all others.
    pub(crate) later: Tensor,
    /// Where the first tokens of its rows stand.
    pub(crate) first: Tensor,
    shared: Shared,
}

impl<'a> Walk<'a> {
    /// Packs rows, `batch_tokens` tokens together if a row is not longer.
    pub(crate) fn new(model: &'a Model, rows: &[&Example], batch_tokens: usize) -> Result<Self> {
        let mut packs = Vec::new();
        let mut rest = rows;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |row: &&&Example| {
                tokens += row.tokens.len();
                tokens <= batch_tokens
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (together, others) = rest.split_at(count);
            let rows = Packed::examples(together, model.device)?;
            let all = 0..rows.positions.len() as i64;
            let (first, later): (Vec<i64>, Vec<i64>) =
                all.partition(|&at| rows.positions[at as usize] == 0);
            let [first, later] =
                [first, later].map(|at| Tensor::f_from_slice(&at)?.f_to(model.device));
            let shared = model.prepare(&rows)?;
            packs.push(Pack { rows, later: later?, first: first?, shared });
            rest = others;
        }
        Ok(Self { model, packs })
    }

    /// Each pack's tokens before the first layer, `[n, hidden]`.
    pub(crate) fn embedded(&self) -> Result<Vec<Tensor>> {
        self.packs.iter().map(|pack| self.model.embed(&pack.rows)).collect()
    }

    /// How many tokens are not the first of their row.
    pub(crate) fn later_tokens(&self) -> usize {
        self.packs.iter().map(|pack| pack.later.numel()).sum()
    }

    /// A layer's output of one pack's states, and what its parts gave.
    pub(crate) fn through(
        &self,
        pack: &Pack,
        number: usize,
        layer: &Layer,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let attention = self.attention(pack, number);
        layer.forward(x, self.rotation(pack, number), |heads| attention.forward(heads))
    }

    /// How one pack's tokens attend in a layer.
    pub(crate) fn attention<'b>(&self, pack: &'b Pack, number: usize) -> &'b Attention {
        pack.shared.attention(self.model.config.layers[number])
    }

    /// How one pack's queries and keys are rotated in a layer, if they are.
    pub(crate) fn rotation<'b>(&self, pack: &'b Pack, number: usize) -> Option<&'b Rotation> {
        pack.shared.rotation(self.model.config.layers[number])
    }
}
