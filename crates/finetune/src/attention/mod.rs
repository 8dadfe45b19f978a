//! Causal attention within each row of a pack, with grouped queries, and its gradient.
//!
//! Two ways compute the same: [`blocked`] products of small matrices, which are faster on a CPU than
//! libtorch's own attention, above all backwards; and libtorch's fused kernels ([`fused`]) on a GPU.

mod blocked;
mod fused;
mod layout;

use tch::{Device, Tensor};

use crate::Result;
use crate::pack::Packed;

pub(crate) use fused::attend_cached;
use layout::Layout;

/// How the rows of one pack attend, in layers of one window.
#[derive(Debug)]
pub(crate) enum Attention {
    Blocked(Layout),
    /// The rows' lengths, and what each row's queries see if that is not simply all before them.
    Fused(Vec<i64>, Vec<Option<Tensor>>),
}

/// Queries `[n, heads, head_dim]`, keys and values `[n, kv_heads, head_dim]`, each key-value head
/// serving `heads / kv_heads` query heads.
#[derive(Debug)]
pub(crate) struct Heads {
    pub(crate) queries: Tensor,
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl Attention {
    /// The way that suits the device.
    pub(crate) fn new(
        batch: &Packed,
        window: Option<usize>,
        heads: usize,
        device: Device,
    ) -> Result<Self> {
        match device {
            Device::Cpu => Self::blocked(batch, window, heads),
            _ => Self::fused(batch, window),
        }
    }

    fn blocked(batch: &Packed, window: Option<usize>, heads: usize) -> Result<Self> {
        Ok(Self::Blocked(Layout::new(batch, window, heads)?))
    }

    fn fused(batch: &Packed, window: Option<usize>) -> Result<Self> {
        Ok(Self::Fused(batch.lengths(), batch.masks(window)?))
    }

    /// `[n, heads · head_dim]`.
    pub(crate) fn forward(&self, heads: &Heads) -> Result<Tensor> {
        match self {
            Self::Blocked(layout) => blocked::forward(layout, heads),
            Self::Fused(lengths, masks) => fused::forward(heads, lengths, masks),
        }
    }

    /// The gradients of queries, keys and values from that of the output.
    pub(crate) fn backward(&self, heads: &Heads, gradient: &Tensor) -> Result<Heads> {
        match self {
            Self::Blocked(layout) => blocked::backward(layout, heads, gradient),
            Self::Fused(lengths, masks) => fused::backward(heads, lengths, masks, gradient),
        }
    }
}

#[cfg(test)]
mod tests {
    use dataset::{Example, Question};
    use tch::Kind;

    use super::*;
    use crate::bridge::values;

    /// Both ways, forward and backward, on rows that pad each other, a long row in several blocks
    /// and a row that branches, with and without a window.
    #[test]
    fn two_ways_agree() {
        tch::manual_seed(3);
        let _guard = tch::no_grad_guard();
        let row = |length: u32| Example::whole((0..length).collect(), vec![false; length as usize]);
        let rows = [row(3), row(5), row(5), row(1), row(700)];
        let question = Question {
            prompt: (0..9).collect(),
            choices: vec![vec![1, 2, 3], vec![4], vec![5, 6]],
            cut: 0,
            size_bytes: vec![1; 3],
            reply: vec![1],
            answer: 0,
        };
        let packs = [
            Packed::examples(&rows.each_ref(), Device::Cpu).unwrap(),
            Packed::questions(&[&question, &question], Device::Cpu).unwrap(),
        ];
        for (pack, window) in packs.iter().flat_map(|pack| [(pack, None), (pack, Some(4))]) {
            // Filling included.
            let tokens = pack.tokens.numel() as i64;
            let random = |heads: i64| {
                let size = [tokens, heads, 8];
                Tensor::randn(size, (Kind::Float, Device::Cpu))
            };
            let heads = Heads { queries: random(6), keys: random(2), values: random(2) };
            let gradient = random(6).reshape([tokens, 48]);
            let of = |attention: &Attention| {
                let back = attention.backward(&heads, &gradient).unwrap();
                let out = attention.forward(&heads).unwrap();
                [out, back.queries, back.keys, back.values].map(|x| values(&x).unwrap())
            };
            // 20 000 heads: so many that a long row's scores are cut into blocks.
            let blocked = of(&Attention::blocked(pack, window, 20_000).unwrap());
            let fused = of(&Attention::fused(pack, window).unwrap());
            for (blocked, fused) in blocked.iter().zip(&fused) {
                let apart = testkit::relative_deviation(blocked, fused);
                assert!(apart < 1e-5, "{window:?}: {apart}");
            }
        }
    }
}
