//! Attention by libtorch's fused kernels, row by row.

use tch::Tensor;

use super::Heads;
use crate::Result;

/// Attends; see [`super::Attention::forward`].
pub(crate) fn forward(heads: &Heads, lengths: &[i64], masks: &[Option<Tensor>]) -> Result<Tensor> {
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
        .map(|((query, (key, value)), mask)| one_row(query, key, value, mask.as_ref()))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&rows, 0)?.f_view([tokens, heads * head_dim])?)
}

/// Gradients; see [`super::Attention::backward`]. libtorch finds them, in a graph of this alone.
pub(crate) fn backward(
    heads: &Heads,
    lengths: &[i64],
    masks: &[Option<Tensor>],
    gradient: &Tensor,
) -> Result<Heads> {
    tch::with_grad(|| {
        let leaf = |x: &Tensor| x.f_detach()?.f_set_requires_grad(true);
        let heads = Heads {
            queries: leaf(&heads.queries)?,
            keys: leaf(&heads.keys)?,
            values: leaf(&heads.values)?,
        };
        let output = forward(&heads, lengths, masks)?;
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
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = queries.size3()?;
    let (_, kv_heads, _) = keys.size3()?;
    let (keys, values) =
        (repeat_heads(keys, heads / kv_heads)?, repeat_heads(values, heads / kv_heads)?);
    let by_head = |x: &Tensor| x.f_transpose(0, 1)?.f_unsqueeze(0);
    let out = Tensor::f_scaled_dot_product_attention(
        &by_head(queries)?,
        &by_head(&keys)?,
        &by_head(&values)?,
        mask,
        0.0,
        false,
        None,
        false,
    )?;
    Ok(out.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_reshape([tokens, heads * head_dim])?)
}

fn one_row(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let by_head = |x: &Tensor| x.f_transpose(0, 1)?.f_unsqueeze(0);
    let out = Tensor::f_scaled_dot_product_attention(
        &by_head(query)?,
        &by_head(key)?,
        &by_head(value)?,
        mask,
        0.0,
        mask.is_none(),
        None,
        false,
    )?;
    Ok(out.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_contiguous()?)
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
