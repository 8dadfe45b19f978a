//! Which elements of a gradient are the largest.

use tch::{Kind, Tensor};

use crate::Result;

/// Marks the `count` elements of a gradient `[n]` with the largest absolute values; of equal ones those with the lower
/// index. `count` is from 1 to `n`. The same on every device and with any number of threads.
pub(crate) fn largest(gradient: &Tensor, count: i64) -> Result<Tensor> {
    let size = gradient.f_abs()?;
    let all = size.numel() as i64;
    if count >= all {
        return Ok(size.f_ones_like()?.f_to_kind(Kind::Bool)?);
    }
    // A value, which is one whatever the order among equals.
    let (threshold, _) = size.f_kthvalue(all - count + 1, 0, false)?;
    let above = size.f_gt_tensor(&threshold)?;
    let equal = size.f_eq_tensor(&threshold)?;
    let left = above.f_sum(Kind::Int64)?.f_neg()?.f_add_scalar(count)?;
    let among = equal.f_cumsum(0, Kind::Int64)?.f_le_tensor(&left)?;
    Ok(above.f_logical_or(&equal.f_logical_and(&among)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(gradient: &[f32], count: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..gradient.len()).collect();
        order.sort_by(|&i, &j| gradient[j].abs().total_cmp(&gradient[i].abs()).then(i.cmp(&j)));
        let mut marks = vec![false; gradient.len()];
        for &at in &order[..count] {
            marks[at] = true;
        }
        marks
    }

    /// Against a sort, with few distinct values, so that the threshold is nearly always tied.
    #[test]
    fn agrees_with_a_sort() {
        tch::manual_seed(8);
        for size in [1, 2, 7, 300] {
            for levels in [1.0, 2.0, 50.0] {
                let at = (Kind::Float, tch::Device::Cpu);
                let gradient = (Tensor::randn([size], at) * levels).round();
                let values = crate::bridge::values(&gradient).unwrap();
                for count in [1, size.div_euclid(3).max(1), size] {
                    let found = largest(&gradient, count).unwrap();
                    let found = Vec::<bool>::try_from(found).unwrap();
                    assert_eq!(found, plain(&values, count as usize), "{size} {levels} {count}");
                }
            }
        }
    }

    /// As a fresh adapter's `A` has them.
    #[test]
    fn of_zeros_the_first_ones() {
        let zeros = Tensor::zeros([5], (Kind::Float, tch::Device::Cpu));
        let found = Vec::<bool>::try_from(largest(&zeros, 2).unwrap()).unwrap();
        assert_eq!(found, [true, true, false, false, false]);
    }
}
