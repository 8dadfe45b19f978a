//! Layer scores by Gram matrices (method.md §3): nothing of the weight's size is formed.

use ndarray::{ArrayRef2, ArrayView2};

use crate::{ScoreError, gram};

/// One linear weight's LoRA gradients at one step.
#[derive(Debug, Clone, Copy)]
pub struct StepPair<'a> {
    /// `∇B`, `[out, r]`.
    pub b: ArrayView2<'a, f32>,
    /// `∇A`, `[r, in]`.
    pub a: ArrayView2<'a, f32>,
}

/// What one linear weight adds to its layer's score, by criterion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightScores {
    /// `Σ_{o,n} F[o,n] = (1/t) Σ_i ‖G_i‖²_F`, the paper's criterion.
    pub igia: f64,
    /// `Σ_i ‖G_i‖_F`, the authors' code's.
    pub igia_fro: f64,
}

impl WeightScores {
    /// The scores from each step's `‖G_i‖²_F`; zero if there are no steps.
    pub fn of_steps(squares: &[f64]) -> Self {
        Self {
            igia: squares.iter().sum::<f64>() / squares.len().max(1) as f64,
            igia_fro: squares.iter().map(|square| square.sqrt()).sum(),
        }
    }
}

/// The sum of the squared entries of the simulated gradient `G = ∇B·∇A`, without forming `G`.
///
/// What one step of one linear weight adds to its layer's `igia` score (method.md §3):
///
/// ```text
/// ‖G‖²_F = tr( (∇Bᵀ·∇B) · (∇A·∇Aᵀ) )
/// ```
///
/// # Shapes
///
/// - `grad_b`: `[out, r]`, gradient of the mean token loss by LoRA's `B`
/// - `grad_a`: `[r, in]`, gradient of the mean token loss by LoRA's `A`
///
/// Both f32; the sums run in f64. Time `O(r²·(out + in))`, where forming `G` takes
/// `O(r·out·in)` and as much memory as the weight.
///
/// # Errors
///
/// [`ScoreError::Rank`] if the inner dimensions differ; [`ScoreError::NotFinite`] if a gradient
/// holds an infinity or NaN.
///
/// # Examples
///
/// ```
/// use gradpruner_igia::product_norm_squared;
/// use ndarray::array;
///
/// let (b, a) = (array![[1.0], [2.0]], array![[3.0, 4.0]]);
/// assert_eq!(product_norm_squared(&b, &a)?, 125.0); // (1 + 4)·(9 + 16)
/// # Ok::<(), gradpruner_igia::ScoreError>(())
/// ```
pub fn product_norm_squared(
    grad_b: &ArrayRef2<f32>,
    grad_a: &ArrayRef2<f32>,
) -> Result<f64, ScoreError> {
    let (of_b, of_a) = (grad_b.ncols(), grad_a.nrows());
    if of_b != of_a {
        return Err(ScoreError::Rank { of_b, of_a });
    }
    let (b, a) = (grad_b.as_standard_layout(), grad_a.as_standard_layout());
    let mut grams = vec![0.0; 2 * of_a * of_a];
    let (of_columns, of_rows) = grams.split_at_mut(of_a * of_a);
    gram::of_columns(b.as_slice().unwrap_or(&[]), of_a, of_columns);
    gram::of_rows(a.as_slice().unwrap_or(&[]), of_a, of_rows);
    // Both are symmetric and only their upper halves are there.
    let found: f64 = (0..of_a)
        .flat_map(|i| (i..of_a).map(move |j| (i, j)))
        .map(|(i, j)| {
            let product = of_columns[i * of_a + j] * of_rows[i * of_a + j];
            if i == j { product } else { 2.0 * product }
        })
        .sum();
    if !found.is_finite() {
        return Err(ScoreError::NotFinite { found });
    }
    Ok(found.max(0.0)) // Rounding can leave a true zero just below it.
}

/// What no entry of `G = ∇B·∇A` exceeds, nor any sum of some of its products:
/// `r · max|∇B| · max|∇A|`. Shapes as in [`product_norm_squared`].
pub fn product_bound(grad_b: &ArrayRef2<f32>, grad_a: &ArrayRef2<f32>) -> f64 {
    let largest = |matrix: &ArrayRef2<f32>| {
        // Magnitudes are ordered as their bits are; maxima of integers become vector instructions.
        let bits = matrix.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
        f64::from(f32::from_bits(bits))
    };
    grad_a.nrows() as f64 * largest(grad_b) * largest(grad_a)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Array2<f32>> {
        prop::collection::vec(-4.0_f32..4.0, rows * columns)
            .prop_map(move |values| Array2::from_shape_vec((rows, columns), values).unwrap())
    }

    proptest! {
        #[test]
        fn agrees_with_reference(
            (b, a) in (1..40_usize, 1..12_usize, 1..40_usize)
                .prop_flat_map(|(out, rank, columns)| (matrix(out, rank), matrix(rank, columns)))
        ) {
            let bound = product_bound(&b, &a);
            prop_assert!(b.dot(&a).iter().all(|&entry| f64::from(entry).abs() <= bound * 1.001));
            let found = product_norm_squared(&b, &a).unwrap();
            let expected = reference::product_norm_squared(&StepPair { b: b.view(), a: a.view() });
            // The terms may cancel, so the bound is relative to the sum of their magnitudes.
            let norm = |m: &Array2<f32>| m.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            prop_assert!((found - expected).abs() <= 1e-12 * norm(&b) * norm(&a));
        }
    }

    #[test]
    fn criteria_of_two_steps() {
        let found = WeightScores::of_steps(&[16.0, 4.0]);
        assert_eq!((found.igia, found.igia_fro), (10.0, 6.0));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let (b, bad) = (array![[1.0]], array![[f32::NAN]]);
        let found = product_norm_squared(&b, &bad);
        assert!(matches!(found, Err(ScoreError::NotFinite { .. })));
    }

    #[test]
    fn ranks_must_agree() {
        assert_eq!(
            product_norm_squared(&array![[1.0, 2.0]], &array![[1.0]]),
            Err(ScoreError::Rank { of_b: 2, of_a: 1 })
        );
    }
}
