//! Causal attention within each row of a pack, with grouped queries, and its gradient.
//!
//! Two ways compute the same: [`blocked`] products of small matrices, which are faster on a CPU than
//! libtorch's own attention, above all backwards; and libtorch's fused kernels ([`fused`]) on a GPU.

mod blocked;
mod fused;
mod layout;

use checkpoint::ModelConfig;
use tch::{Device, Tensor};

use crate::Result;
use crate::pack::Packed;

pub(crate) use fused::attend_cached;
use layout::Layout;

/// How the rows of one pack attend, in layers of one window.
#[derive(Debug)]
pub(crate) struct Attention {
    way: Way,
    scoring: Scoring,
}

#[derive(Debug)]
enum Way {
    Blocked(Layout),
    /// The rows' lengths, and what each row's queries see if that is not simply all before them.
    Fused(Vec<i64>, Vec<Option<Tensor>>),
}

/// What scores are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scoring {
    /// Heads of queries.
    pub(crate) heads: usize,
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f64,
    /// `c`, where scores `s` are softened to `c · tanh(s / c)` (Gemma 2).
    pub(crate) cap: Option<f64>,
}

impl Scoring {
    /// As a model has it.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let scale = config.design.attention_scale;
        let scale = scale.unwrap_or_else(|| 1.0 / (config.head_dim as f64).sqrt());
        Self { heads: config.num_heads, scale, cap: config.design.attention_cap }
    }
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
        scoring: Scoring,
        device: Device,
    ) -> Result<Self> {
        match device {
            Device::Cpu => Self::blocked(batch, window, scoring),
            _ => Self::fused(batch, window, scoring),
        }
    }

    fn blocked(batch: &Packed, window: Option<usize>, scoring: Scoring) -> Result<Self> {
        let way = Way::Blocked(Layout::new(batch, window, scoring.heads)?);
        Ok(Self { way, scoring })
    }

    fn fused(batch: &Packed, window: Option<usize>, scoring: Scoring) -> Result<Self> {
        let way = Way::Fused(batch.lengths(), batch.masks(window)?);
        Ok(Self { way, scoring })
    }

    /// `[n, heads · head_dim]`.
    pub(crate) fn forward(&self, heads: &Heads) -> Result<Tensor> {
        match &self.way {
            Way::Blocked(layout) => blocked::forward(layout, heads, self.scoring),
            Way::Fused(lengths, masks) => fused::forward(heads, lengths, masks, self.scoring),
        }
    }

    /// The gradients of queries, keys and values from that of the output.
    pub(crate) fn backward(&self, heads: &Heads, gradient: &Tensor) -> Result<Heads> {
        match &self.way {
            Way::Blocked(layout) => blocked::backward(layout, heads, gradient, self.scoring),
            Way::Fused(lengths, masks) => {
                fused::backward(heads, (lengths, masks), gradient, self.scoring)
            }
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
    /// and a row that branches, with and without a window, and with capped scores.
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
        let cases = [(None, None), (Some(4), None), (None, Some(1.5))];
        for (pack, (window, cap)) in packs.iter().flat_map(|pack| cases.map(|case| (pack, case))) {
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
            let scoring = Scoring { heads: 20_000, scale: 0.4, cap };
            let blocked = of(&Attention::blocked(pack, window, scoring).unwrap());
            let fused = of(&Attention::fused(pack, window, scoring).unwrap());
            for (blocked, fused) in blocked.iter().zip(&fused) {
                let apart = testkit::relative_deviation(blocked, fused);
                assert!(apart < 1e-5, "{window:?} {cap:?}: {apart}");
            }
        }
    }
}
