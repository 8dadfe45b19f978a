//! Attention by libtorch's fused kernels, row by row.

use tch::Tensor;

use super::{Heads, Scoring};
use crate::Result;

/// Attends; see [`super::Attention::forward`].
pub(crate) fn forward(
    heads: &Heads,
    lengths: &[i64],
    masks: &[Option<Tensor>],
    scoring: Scoring,
) -> Result<Tensor> {
    let Heads { queries, keys, values } = heads;
    let (tokens, heads, head_dim) = queries.size3()?;
    let (_, kv_heads, _) = keys.size3()?;
    let (keys, values) =
        (repeat_heads(keys, heads / kv_heads)?, repeat_heads(values, heads / kv_heads)?);
    // One split for all rows: its gradient is one concatenation, where slicing row by row would
    // fill a gradient of the whole pack for each.
    let split = |x: &Tensor| x.f_split_with_sizes(lengths, 0);
    let (queries, keys, values) = (split(queries)?, split(&keys)?, split(&values)?);
    let rows = queries
        .iter()
        .zip(keys.iter().zip(&values))
        .zip(masks)
        .map(|((query, (key, value)), mask)| one_row([query, key, value], mask.as_ref(), scoring))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&rows, 0)?.f_view([tokens, heads * head_dim])?)
}

/// Gradients; see [`super::Attention::backward`]. libtorch finds them, in a graph of this alone.
pub(crate) fn backward(
    heads: &Heads,
    (lengths, masks): (&[i64], &[Option<Tensor>]),
    gradient: &Tensor,
    scoring: Scoring,
) -> Result<Heads> {
    tch::with_grad(|| {
        let leaf = |x: &Tensor| x.f_detach()?.f_set_requires_grad(true);
        let heads = Heads {
            queries: leaf(&heads.queries)?,
            keys: leaf(&heads.keys)?,
            values: leaf(&heads.values)?,
        };
        let output = forward(&heads, lengths, masks, scoring)?;
        // The gradient of this sum by the output is `gradient`.
        let sum = output.f_mul(gradient)?.f_sum(tch::Kind::Float)?;
        let Heads { queries, keys, values } = &heads;
        let found = Tensor::f_run_backward(&[sum], &[queries, keys, values], false, false)?;
        let [queries, keys, values] = <[Tensor; 3]>::try_from(found)
            .map_err(|_| crate::FinetuneError::Settings("libtorch gave no gradients".into()))?;
        Ok(Heads { queries, keys, values })
    })
}

/// Attention of new tokens (`[m, heads, head_dim]`) to all keys so far (`[k, kv_heads, head_dim]`).
pub(crate) fn attend_cached(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
    scoring: Scoring,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = queries.size3()?;
    let (_, kv_heads, _) = keys.size3()?;
    let (keys, values) =
        (repeat_heads(keys, heads / kv_heads)?, repeat_heads(values, heads / kv_heads)?);
    let out = attend([queries, &keys, &values], mask, false, scoring)?;
    Ok(out.f_reshape([tokens, heads * head_dim])?)
}

fn one_row(row: [&Tensor; 3], mask: Option<&Tensor>, scoring: Scoring) -> Result<Tensor> {
    Ok(attend(row, mask, mask.is_none(), scoring)?.f_contiguous()?)
}

/// Queries, keys and values of as many heads, each `[tokens, heads, head_dim]`, to the output, the same.
fn attend(
    row: [&Tensor; 3],
    mask: Option<&Tensor>,
    is_causal: bool,
    scoring: Scoring,
) -> Result<Tensor> {
    let Scoring { scale, cap, .. } = scoring;
    let [queries, keys, values] = row.map(|x| x.f_transpose(0, 1)?.f_unsqueeze(0));
    let (queries, keys, values) = (queries?, keys?, values?);
    let out = match cap {
        None => Tensor::f_scaled_dot_product_attention(
            &queries, &keys, &values, mask, 0.0, is_causal, scale, false,
        )?,
        // No kernel has a cap.
        Some(cap) => {
            let scores = queries.f_mul_scalar(scale)?.f_matmul(&keys.f_transpose(-2, -1)?)?;
            let scores = scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?;
            let causal = match (mask, is_causal) {
                (Some(mask), _) => Some(mask.shallow_clone()),
                (None, true) => Some(scores.f_ones_like()?.f_tril(0)?.f_to_kind(tch::Kind::Bool)?),
                (None, false) => None,
            };
            let scores = match causal {
                Some(seen) => scores.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?,
                None => scores,
            };
            scores.f_softmax(-1, queries.f_kind()?)?.f_matmul(&values)?
        }
    };
    Ok(out.f_squeeze_dim(0)?.f_transpose(0, 1)?)
}

fn repeat_heads(x: &Tensor, times: i64) -> Result<Tensor> {
    if times == 1 {
        return Ok(x.shallow_clone());
    }
    let (tokens, heads, head_dim) = x.size3()?;
    Ok(x.f_unsqueeze(2)?.f_expand([tokens, heads, times, head_dim], false)?.f_reshape([
        tokens,
        heads * times,
        head_dim,
    ])?)
}
