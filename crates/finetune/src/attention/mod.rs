//! Causal attention within each row of a pack, with grouped queries, and its gradient.
//!
//! Three ways compute the same: [`blocked`] products of small matrices, which are faster on a CPU than
//! libtorch's own attention, above all backwards; on a GPU libtorch's kernels for rows end to end ([`PackedAttention`]), and
//! where these cannot, its kernels row by row ([`rows`]).

mod blocked;
mod layout;
mod rows;

use checkpoint::ModelConfig;
use fused::{Kernel, PackedAttention, Span};
use tch::{Device, Kind, Tensor};

use crate::pack::{Packed, PackedRow};
use crate::{FinetuneError, Result};

use layout::Layout;
pub(crate) use rows::attend_cached;

/// Keys of a pack whose rows branch, for each of its tokens: more would take too much memory.
const MOST_COPIES: usize = 8;

/// How the rows of one pack attend, in layers of one window.
#[derive(Debug)]
pub(crate) struct Attention {
    way: Way,
    scoring: Scoring,
}

#[derive(Debug)]
enum Way {
    Blocked(Layout),
    /// The spans of all rows, and which keys and values they are of, `[m]`; `None` for all in order.
    Packed(PackedAttention, Option<Tensor>),
    /// The rows' lengths, and what each row's queries see if that is not simply all before them.
    Rows(Vec<i64>, Vec<Option<Tensor>>),
}

/// What scores are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scoring {
    /// Heads of queries.
    pub(crate) heads: usize,
    /// Numbers of a head.
    pub(crate) head_dim: usize,
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
        let (heads, head_dim, cap) =
            (config.num_heads, config.head_dim, config.design.attention_cap);
        Self { heads, head_dim, scale, cap }
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

/// An output of attention, and what its gradient wants.
#[derive(Debug)]
pub(crate) struct Attended {
    /// `[n, heads · head_dim]`.
    pub(crate) output: Tensor,
    packed: Option<fused::Attended>,
}

impl From<Tensor> for Attended {
    fn from(output: Tensor) -> Self {
        Self { output, packed: None }
    }
}

impl Attention {
    /// The way that suits the device and the type of the heads.
    pub(crate) fn new(
        batch: &Packed,
        window: Option<usize>,
        scoring: Scoring,
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        if device == Device::Cpu {
            return Self::blocked(batch, window, scoring);
        }
        match kernel_of(scoring, (kind, device))? {
            Some(kernel) => match Self::packed(kernel, batch, (window, device), scoring)? {
                Some(packed) => Ok(packed),
                None => Self::rows(batch, window, scoring),
            },
            None => Self::rows(batch, window, scoring),
        }
    }

    /// For rows whose first keys are those of earlier passes, so many of each row; `None` if no kernel attends to all of them
    /// at once.
    pub(crate) fn continued(
        batch: &Packed,
        before: &[i64],
        window: Option<usize>,
        scoring: Scoring,
        (kind, device): (Kind, Device),
    ) -> Result<Option<Self>> {
        let Some(kernel) = kernel_of(scoring, (kind, device))? else { return Ok(None) };
        let span = |(row, &before): (&PackedRow, &i64)| Span {
            queries: row.length as usize,
            keys: (before + row.length) as usize,
        };
        let spans: Vec<Span> = batch.rows.iter().zip(before).map(span).collect();
        if !kernel.attends(&spans, window) {
            return Ok(None);
        }
        let packed = PackedAttention::new(kernel, &spans, scoring.scale, window, device)?;
        Ok(Some(Self { way: Way::Packed(packed, None), scoring }))
    }

    /// `None` if the kernel cannot, or would take too much memory.
    fn packed(
        kernel: Kernel,
        batch: &Packed,
        (window, device): (Option<usize>, Device),
        scoring: Scoring,
    ) -> Result<Option<Self>> {
        let (mut spans, mut keys, mut first) = (Vec::new(), Vec::new(), 0);
        for row in &batch.rows {
            for branch in row.spans() {
                // What all branches see, and what is its own.
                let seen = [first..first + branch.prompt, first + branch.first..first + branch.end];
                let (own, before) = (branch.end - branch.first, keys.len());
                keys.extend(seen.into_iter().flatten().map(|key| key as i64));
                spans.push(Span { queries: own, keys: keys.len() - before });
            }
            first += row.length as usize;
        }
        // Choices that share a long prompt would copy its keys too often.
        if !kernel.attends(&spans, window) || keys.len() > MOST_COPIES * first {
            return Ok(None);
        }
        // Every key once, and in order, where nothing branches.
        let keys = match keys.len() == first {
            true => None,
            false => Some(Tensor::f_from_slice(&keys)?.f_to_device(device)?),
        };
        let packed = PackedAttention::new(kernel, &spans, scoring.scale, window, device)?;
        Ok(Some(Self { way: Way::Packed(packed, keys), scoring }))
    }

    fn blocked(batch: &Packed, window: Option<usize>, scoring: Scoring) -> Result<Self> {
        let way = Way::Blocked(Layout::new(batch, window, scoring.heads)?);
        Ok(Self { way, scoring })
    }

    /// Those of some places, where not simply all are wanted.
    fn placed(all: [&Tensor; 2], places: Option<&Tensor>) -> Result<[Tensor; 2]> {
        let [keys, values] = all;
        match places {
            None => Ok([keys.shallow_clone(), values.shallow_clone()]),
            Some(places) => {
                Ok([keys.f_index_select(0, places)?, values.f_index_select(0, places)?])
            }
        }
    }

    fn rows(batch: &Packed, window: Option<usize>, scoring: Scoring) -> Result<Self> {
        let way = Way::Rows(batch.lengths(), batch.masks(window)?);
        Ok(Self { way, scoring })
    }

    pub(crate) fn forward(&self, heads: &Heads) -> Result<Attended> {
        match &self.way {
            Way::Blocked(layout) => Ok(blocked::forward(layout, heads, self.scoring)?.into()),
            Way::Packed(packed, places) => {
                let [keys, values] = Self::placed([&heads.keys, &heads.values], places.as_ref())?;
                let attended = packed.forward(&heads.queries, &keys, &values)?;
                let (tokens, heads, head_dim) = attended.output.size3()?;
                let output = attended.output.f_reshape([tokens, heads * head_dim])?;
                Ok(Attended { output, packed: Some(attended) })
            }
            Way::Rows(lengths, masks) => {
                Ok(rows::forward(heads, lengths, masks, self.scoring)?.into())
            }
        }
    }

    /// The gradients of queries, keys and values from that of the output, `[n, heads · head_dim]`.
    pub(crate) fn backward(
        &self,
        heads: &Heads,
        attended: &Attended,
        gradient: &Tensor,
    ) -> Result<Heads> {
        match (&self.way, &attended.packed) {
            (Way::Blocked(layout), _) => blocked::backward(layout, heads, gradient, self.scoring),
            (Way::Packed(packed, places), Some(attended)) => {
                let queries = &heads.queries;
                let [keys, values] = Self::placed([&heads.keys, &heads.values], places.as_ref())?;
                let gradient = gradient.f_reshape(queries.size().as_slice())?;
                let [queries, keys, values] =
                    packed.backward([queries, &keys, &values], attended, &gradient)?;
                let Some(places) = places else {
                    return Ok(Heads { queries, keys, values });
                };
                let sums = |of: &Tensor, x: &Tensor| of.f_zeros_like()?.f_index_add_(0, places, x);
                let (keys, values) = (sums(&heads.keys, &keys)?, sums(&heads.values, &values)?);
                Ok(Heads { queries, keys, values })
            }
            (Way::Packed(..), None) => {
                Err(FinetuneError::Torch("attention has no state for its gradient".into()))
            }
            (Way::Rows(lengths, masks), _) => {
                rows::backward(heads, (lengths, masks), gradient, self.scoring)
            }
        }
    }
}

/// What attends to packed rows at once, if something does.
fn kernel_of(scoring: Scoring, (kind, device): (Kind, Device)) -> Result<Option<Kernel>> {
    // These kernels have no cap.
    if scoring.cap.is_some() {
        return Ok(None);
    }
    Ok(Kernel::of(scoring.head_dim as i64, kind, device)?)
}

#[cfg(test)]
mod tests {
    use dataset::{Example, Question};
    use tch::Kind;

    use super::*;
    use crate::bridge::values;

    /// All ways, forward and backward, on rows that pad each other, a long row in several blocks
    /// and a row that branches, with and without a window, and with capped scores. Packed rows take a GPU.
    #[test]
    fn all_ways_agree() {
        let gpu = crate::usable_gpus().is_ok().then_some(Device::Cuda(0));
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
            let of = |attention: &Attention, heads: &Heads, gradient: &Tensor| {
                let attended = attention.forward(heads).unwrap();
                let back = attention.backward(heads, &attended, gradient).unwrap();
                let found = [attended.output, back.queries, back.keys, back.values];
                found.map(|x| values(&x).unwrap())
            };
            // 20 000 heads: so many that a long row's scores are cut into blocks.
            let scoring = Scoring { heads: 20_000, head_dim: 8, scale: 0.4, cap };
            let agree = |found: [Vec<f32>; 4], most: f64| {
                let blocked = Attention::blocked(pack, window, scoring).unwrap();
                for (own, found) in of(&blocked, &heads, &gradient).iter().zip(&found) {
                    let apart = testkit::relative_deviation(found, own);
                    assert!(apart < most, "{window:?} {cap:?}: {apart}");
                }
            };
            agree(of(&Attention::rows(pack, window, scoring).unwrap(), &heads, &gradient), 1e-5);
            let Some(gpu) = gpu.filter(|_| cap.is_none()) else { continue };
            for (kernel, kind, most) in
                [(Kernel::Efficient, Kind::Float, 1e-5), (Kernel::Flash, Kind::BFloat16, 0.02)]
            {
                let there = |x: &Tensor| x.to_device(gpu).to_kind(kind);
                let Heads { queries, keys, values } = &heads;
                let [queries, keys, values] = [queries, keys, values].map(there);
                let heads = Heads { queries, keys, values };
                let packed = Attention::packed(kernel, pack, (window, gpu), scoring).unwrap();
                let Some(packed) = packed else { continue };
                agree(of(&packed, &heads, &there(&gradient)), most);
            }
        }
    }
}
