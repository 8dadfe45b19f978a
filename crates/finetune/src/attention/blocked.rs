//! Attention as products of matrices, block by block.
//!
//! Products are in the compute type, the softmax is f32 within. Scores are rounded to the compute
//! type in between, which would cost precision where all keys share a large part; so each row's mean
//! key `k̄` is taken off first, which changes no probability (as in `SageAttention`, arXiv 2410.02367).
//! Nothing is kept for the backward pass: it computes the probabilities again.

use tch::{Kind, Tensor};

use super::layout::{Block, Group, Layout};
use super::{Heads, Scoring};
use crate::Result;

/// Attends; see [`super::Attention::forward`].
pub(crate) fn forward(layout: &Layout, heads: &Heads, scoring: Scoring) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(layout.groups.len());
    for group in &layout.groups {
        let own = Spread::new(group, heads, scoring)?;
        let blocks = group
            .blocks
            .iter()
            .map(|block| {
                let (probabilities, _) = own.probabilities(block)?;
                let output =
                    probabilities.f_bmm(&own.values.f_narrow(1, block.key, block.keys)?)?;
                own.by_query(&output, block)
            })
            .collect::<Result<Vec<_>>>()?;
        outputs.push(gather_queries(group, &joined(&blocks, 2)?, own.kv_heads)?);
    }
    let (tokens, heads, head_dim) = heads.queries.size3()?;
    Ok(joined(&outputs, 0)?.f_reshape([tokens, heads * head_dim])?)
}

/// Gradients; see [`super::Attention::backward`]. With `P` the probabilities, `s` the scale and
/// `∇O` the output's gradient:
///
/// ```text
/// ∇V = Pᵀ ∇O,   ∇P = ∇O Vᵀ,   ∇S = P ∘ (∇P − Σ_keys P ∘ ∇P),   ∇Q = s · ∇S K,   ∇K = s · ∇Sᵀ Q
/// ```
pub(crate) fn backward(
    layout: &Layout,
    heads: &Heads,
    gradient: &Tensor,
    scoring: Scoring,
) -> Result<Heads> {
    let kind = heads.queries.f_kind()?;
    let gradient = gradient.f_view_as(&heads.queries)?;
    let (mut of_queries, mut of_keys, mut of_values) = (Vec::new(), Vec::new(), Vec::new());
    for group in &layout.groups {
        let own = Spread::new(group, heads, scoring)?;
        let gradient = spread_queries(group, &gradient, own.kv_heads)?;
        let mut query_blocks = Vec::with_capacity(group.blocks.len());
        let (mut keys, mut values) = (Sum::new(&own.keys), Sum::new(&own.values));
        for block in &group.blocks {
            let of_block = |x: &Tensor| x.f_narrow(1, block.key, block.keys);
            let gradient = Spread::of_block(&gradient, block)?;
            let (probabilities, slope) = own.probabilities(block)?;
            values.add(&probabilities.f_transpose(1, 2)?.f_bmm(&gradient)?, block)?;
            let of_probabilities = gradient.f_bmm(&of_block(&own.values)?.f_transpose(1, 2)?)?;
            let mut of_scores = Tensor::f_internal_softmax_backward_data(
                &of_probabilities,
                &probabilities,
                -1,
                kind,
            )?;
            if let Some(slope) = slope {
                of_scores = of_scores.f_mul_(&slope)?;
            }
            let queries =
                of_scores.f_bmm(&of_block(&own.keys)?)?.f_mul_scalar_(own.scoring.scale)?;
            query_blocks.push(own.by_query(&queries, block)?);
            let mut of_keys =
                of_scores.f_transpose(1, 2)?.f_bmm(&Spread::of_block(&own.queries, block)?)?;
            keys.add(&of_keys.f_mul_scalar_(own.scoring.scale)?, block)?;
        }
        of_queries.push(gather_queries(group, &joined(&query_blocks, 2)?, own.kv_heads)?);
        of_keys.push(gather_keys(group, &keys.finish(kind)?, own.kv_heads)?);
        of_values.push(gather_keys(group, &values.finish(kind)?, own.kv_heads)?);
    }
    Ok(Heads {
        queries: joined(&of_queries, 0)?,
        keys: joined(&of_keys, 0)?,
        values: joined(&of_values, 0)?,
    })
}

/// A group's heads as batches of matrices: `batch = rows · kv_heads`, `shared` the query heads that
/// share a key-value head.
struct Spread {
    kv_heads: i64,
    /// `[batch, shared, width, head_dim]`.
    queries: Tensor,
    /// `[batch, width, head_dim]`.
    keys: Tensor,
    /// The keys less their mean; as they are where scores are capped, of which a part is not a part of the whole.
    centred_keys: Tensor,
    values: Tensor,
    scoring: Scoring,
}

impl Spread {
    fn new(group: &Group, heads: &Heads, scoring: Scoring) -> Result<Self> {
        let (_, kv_heads, _) = heads.keys.size3()?;
        let keys = spread_keys(group, &heads.keys)?;
        let centred_keys = if scoring.cap.is_some() {
            keys.shallow_clone()
        } else {
            let mean = keys.f_mean_dim(1_i64, true, Kind::Float)?.f_to_kind(keys.f_kind()?)?;
            keys.f_sub(&mean)?
        };
        Ok(Self {
            kv_heads,
            queries: spread_queries(group, &heads.queries, kv_heads)?,
            centred_keys,
            keys,
            values: spread_keys(group, &heads.values)?,
            scoring,
        })
    }

    /// A block's queries of all heads that share keys, `[batch, shared · queries, head_dim]`.
    fn of_block(x: &Tensor, block: &Block) -> Result<Tensor> {
        let (batch, shared, _, head_dim) = x.size4()?;
        let own = x.f_narrow(2, block.query, block.queries)?;
        Ok(own.f_reshape([batch, shared * block.queries, head_dim])?)
    }

    /// The reverse, `[batch, shared, queries, head_dim]`.
    fn by_query(&self, x: &Tensor, block: &Block) -> Result<Tensor> {
        let (batch, shared, _, head_dim) = self.queries.size4()?;
        Ok(x.f_view([batch, shared, block.queries, head_dim])?)
    }

    /// `softmax(s · Q (K − k̄)ᵀ)` over the keys each query sees, `[batch, shared · queries, keys]`; if scores are capped,
    /// by how much each grows with what it was before.
    fn probabilities(&self, block: &Block) -> Result<(Tensor, Option<Tensor>)> {
        let (batch, shared, _, _) = self.queries.size4()?;
        let kind = self.queries.f_kind()?;
        let Scoring { scale, cap, .. } = self.scoring;
        let queries = Self::of_block(&self.queries, block)?.f_mul_scalar(scale)?;
        let keys = self.centred_keys.f_narrow(1, block.key, block.keys)?;
        let mut scores = queries.f_bmm(&keys.f_transpose(1, 2)?)?;
        let mut slope = None;
        if let Some(cap) = cap {
            let soft = scores.f_div_scalar_(cap)?.f_tanh_()?;
            slope = Some(soft.f_square()?.f_neg_()?.f_add_scalar_(1.0)?);
            scores = soft.f_mul_scalar(cap)?;
        }
        if let Some((from, hidden)) = &block.hidden {
            let by_head = scores.f_view([batch, shared, block.queries, block.keys])?;
            let _ = by_head.f_narrow(3, *from, block.keys - from)?.f_add_(hidden)?;
        }
        Ok((scores.f_softmax(-1, kind)?, slope))
    }
}

/// What blocks add to a gradient of all keys; f32 if there are several.
struct Sum {
    size: Vec<i64>,
    sum: Option<Tensor>,
}

impl Sum {
    fn new(like: &Tensor) -> Self {
        Self { size: like.size(), sum: None }
    }

    fn add(&mut self, part: &Tensor, block: &Block) -> Result<()> {
        if part.size() == self.size && self.sum.is_none() {
            self.sum = Some(part.shallow_clone());
            return Ok(());
        }
        let sum = match self.sum.take() {
            Some(sum) => sum.f_to_kind(Kind::Float)?,
            None => Tensor::f_zeros(self.size.as_slice(), (Kind::Float, part.device()))?,
        };
        let _ = sum.f_narrow(1, block.key, block.keys)?.f_add_(part)?;
        self.sum = Some(sum);
        Ok(())
    }

    fn finish(self, kind: Kind) -> Result<Tensor> {
        Ok(self.sum.unwrap_or_default().f_to_kind(kind)?)
    }
}

/// `[n, heads, head_dim]` to `[rows, width, heads, head_dim]` of a group, padded with zeros.
fn padded(group: &Group, x: &Tensor) -> Result<Tensor> {
    let (_, heads, head_dim) = x.size3()?;
    let own = x.f_narrow(0, group.first, group.tokens)?;
    let own = match &group.places {
        Some(places) => {
            Tensor::f_zeros([group.rows * group.width, heads, head_dim], (x.f_kind()?, x.device()))?
                .f_index_copy_(0, places, &own)?
        }
        None => own,
    };
    Ok(own.f_reshape([group.rows, group.width, heads, head_dim])?)
}

/// The reverse.
fn gathered(group: &Group, x: &Tensor) -> Result<Tensor> {
    let (_, _, heads, head_dim) = x.size4()?;
    let flat = x.f_reshape([group.rows * group.width, heads, head_dim])?;
    match &group.places {
        Some(places) => Ok(flat.f_index_select(0, places)?),
        None => Ok(flat),
    }
}

fn spread_queries(group: &Group, x: &Tensor, kv_heads: i64) -> Result<Tensor> {
    let x = padded(group, x)?;
    let (rows, width, heads, head_dim) = x.size4()?;
    let shared = heads / kv_heads;
    let by_head = x.f_view([rows, width, kv_heads, shared, head_dim])?;
    Ok(by_head.f_permute([0, 2, 3, 1, 4])?.f_reshape([rows * kv_heads, shared, width, head_dim])?)
}

fn gather_queries(group: &Group, x: &Tensor, kv_heads: i64) -> Result<Tensor> {
    let (_, shared, width, head_dim) = x.size4()?;
    let by_token = x
        .f_view([group.rows, kv_heads, shared, width, head_dim])?
        .f_permute([0, 3, 1, 2, 4])?
        .f_reshape([group.rows, width, kv_heads * shared, head_dim])?;
    gathered(group, &by_token)
}

fn spread_keys(group: &Group, x: &Tensor) -> Result<Tensor> {
    let x = padded(group, x)?;
    let (rows, width, kv_heads, head_dim) = x.size4()?;
    Ok(x.f_transpose(1, 2)?.f_reshape([rows * kv_heads, width, head_dim])?)
}

fn gather_keys(group: &Group, x: &Tensor, kv_heads: i64) -> Result<Tensor> {
    let (_, width, head_dim) = x.size3()?;
    let by_token = x.f_view([group.rows, kv_heads, width, head_dim])?.f_transpose(1, 2)?;
    gathered(group, &by_token)
}

/// One after the other; a single one is not copied.
fn joined(parts: &[Tensor], dim: i64) -> Result<Tensor> {
    match parts {
        [one] => Ok(one.shallow_clone()),
        parts => Ok(Tensor::f_cat(parts, dim)?),
    }
}
