//! Products with weights that stay in their stored type.
//!
//! Where that is not the type products run in, a weight is converted when its turn comes, some of
//! its rows at a time: none is held twice. The sums are those of the converted weight.

use tch::{Kind, Tensor};

use crate::Result;

/// Bytes of converted rows at a time: what the caches hold if few tokens use them, else so many that
/// the product is at its full rate.
const FEW_TOKENS_BYTES: i64 = 2 << 20;
pub(crate) const MANY_TOKENS_BYTES: i64 = 64 << 20;
/// Up to so many tokens reading the weight takes longer than multiplying by it.
const FEW_TOKENS: i64 = 64;

/// A weight, `[out, in]`, that products take as it is or some rows at a time.
pub(crate) trait Factor {
    /// Its rows and columns.
    fn size(&self) -> Result<(i64, i64)>;
    /// The weight as it is, if it is in the type that products run in.
    fn whole(&self, kind: Kind) -> Result<Option<&Tensor>>;
    /// `count` rows from `first` on, in the type that products run in.
    fn rows(&self, first: i64, count: i64, kind: Kind) -> Result<Tensor>;
    /// Rows of some numbers, `[n]`, in that type.
    fn select(&self, rows: &Tensor, kind: Kind) -> Result<Tensor>;
}

impl Factor for Tensor {
    fn size(&self) -> Result<(i64, i64)> {
        Ok(self.size2()?)
    }

    fn whole(&self, kind: Kind) -> Result<Option<&Tensor>> {
        Ok((self.f_kind()? == kind).then_some(self))
    }

    fn rows(&self, first: i64, count: i64, kind: Kind) -> Result<Tensor> {
        Ok(self.f_narrow(0, first, count)?.f_to_kind(kind)?)
    }

    fn select(&self, rows: &Tensor, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_embedding(self, rows, -1, false, false)?.f_to_kind(kind)?)
    }
}

/// `x Wᵀ + b`, `[n, out]`, of `x` `[n, in]`, the weight `[out, in]` in any type and the bias in `x`'s.
pub(crate) fn linear(x: &Tensor, weight: &dyn Factor, bias: Option<&Tensor>) -> Result<Tensor> {
    let kind = x.f_kind()?;
    if let Some(weight) = weight.whole(kind)? {
        return Ok(x.f_linear(weight, bias)?);
    }
    let ((tokens, _), (out, _)) = (x.size2()?, weight.size()?);
    let mut output = Tensor::f_empty([tokens, out], (kind, x.device()))?;
    for (first, rows) in blocks(tokens, weight, kind)? {
        let converted = weight.rows(first, rows, kind)?;
        let _ = x.f_mm_out(&output.f_narrow(1, first, rows)?, &converted.f_numpy_t()?)?;
    }
    if let Some(bias) = bias {
        output = output.f_add_(bias)?;
    }
    Ok(output)
}

/// `sum + g W`, `[n, in]`, of `g` `[n, out]` and the weight `[out, in]` in any type.
pub(crate) fn add_product(sum: Option<Tensor>, g: &Tensor, weight: &dyn Factor) -> Result<Tensor> {
    let kind = g.f_kind()?;
    let add = |sum: Option<Tensor>, g: &Tensor, weight: &Tensor| -> Result<Tensor> {
        Ok(match sum {
            Some(mut sum) => sum.f_addmm_(g, weight)?,
            None => g.f_mm(weight)?,
        })
    };
    if let Some(weight) = weight.whole(kind)? {
        return add(sum, g, weight);
    }
    let mut sum = sum;
    let (tokens, _) = g.size2()?;
    for (first, rows) in blocks(tokens, weight, kind)? {
        let converted = weight.rows(first, rows, kind)?;
        sum = Some(add(sum, &g.f_narrow(1, first, rows)?, &converted)?);
    }
    Ok(sum.unwrap_or_default())
}

/// The squared norm of each of a weight's rows, `[out]`, f32.
pub(crate) fn row_squares(weight: &dyn Factor) -> Result<Tensor> {
    let mut parts = Vec::new();
    for (first, rows) in blocks(FEW_TOKENS, weight, Kind::Float)? {
        let wide = weight.rows(first, rows, Kind::Float)?;
        parts.push(wide.f_square()?.f_sum_dim_intlist(1_i64, false, Kind::Float)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// First row and number of rows of each block that is converted at a time.
fn blocks(tokens: i64, weight: &dyn Factor, kind: Kind) -> Result<Vec<(i64, i64)>> {
    let (out, inner) = weight.size()?;
    let bytes = if tokens <= FEW_TOKENS { FEW_TOKENS_BYTES } else { MANY_TOKENS_BYTES };
    let most = (bytes / (inner * kind.elt_size_in_bytes() as i64)).max(1);
    Ok((0..out).step_by(most as usize).map(|first| (first, most.min(out - first))).collect())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::bridge::values;

    /// Against the product with the weight converted as a whole, with so few and so many tokens and
    /// rows that there is one block, and that there are several and a shorter last one.
    #[test]
    fn blocks_compute_what_the_whole_weight_does() {
        tch::manual_seed(3);
        for (tokens, out, inner) in [(1, 3, 5), (7, 700, 1024), (70, 2500, 8192)] {
            for (stored, kind) in [(Kind::BFloat16, Kind::Float), (Kind::Float, Kind::BFloat16)] {
                let random = |size: [i64; 2], kind| {
                    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
                };
                let weight = random([out, inner], stored);
                let (x, g) = (random([tokens, inner], kind), random([tokens, out], kind));
                let (bias, sum) = (random([1, out], kind), random([tokens, inner], kind));
                let whole = weight.to_kind(kind);
                let check = |found: Tensor, expected: Tensor| {
                    let (found, expected) = (values(&found).unwrap(), values(&expected).unwrap());
                    let apart = testkit::relative_deviation(&found, &expected);
                    // Blocks of bfloat16 sums are rounded in between.
                    let most = if kind == Kind::Float { 1e-5 } else { 0.02 };
                    assert!(apart < most, "{tokens} {out} {inner} {kind:?}: {apart}");
                };
                let bias = bias.view([out]);
                check(linear(&x, &weight, Some(&bias)).unwrap(), x.linear(&whole, Some(&bias)));
                check(add_product(None, &g, &weight).unwrap(), g.mm(&whole));
                let found = add_product(Some(sum.copy()), &g, &weight).unwrap();
                check(found, &sum + g.mm(&whole));
            }
        }
    }
}
