//! Layer scores by Gram matrices (method.md §3): nothing of the weight's size is formed.

use ndarray::{ArrayRef2, ArrayView2};

use crate::ScoreError;

/// One linear weight's LoRA gradients at one step.
#[derive(Debug, Clone, Copy)]
pub struct StepPair<'a> {
    /// `∇B`, `[out, r]`.
    pub b: ArrayView2<'a, f32>,
    /// `∇A`, `[r, in]`.
    pub a: ArrayView2<'a, f32>,
}

/// What one linear weight adds to its layer's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightScores {
    /// `Σ_{o,n} F[o,n] = (1/t) Σ_i ‖G_i‖²_F`, the paper's criterion `igia`.
    pub igia: f64,
    /// `Σ_i ‖G_i‖_F`, the authors' code's criterion `igia-fro`.
    pub igia_fro: f64,
}

/// Both scores of one linear weight over its recorded steps.
///
/// # Errors
///
/// [`ScoreError::NoSteps`] if there are none; else as [`product_norm_squared`], with the step
/// (counted from 1) that it happened at.
pub fn weight_scores(steps: &[StepPair<'_>]) -> Result<WeightScores, ScoreError> {
    if steps.is_empty() {
        return Err(ScoreError::NoSteps);
    }
    let (mut squares, mut norms) = (0.0, 0.0);
    for (step, pair) in steps.iter().enumerate() {
        let squared = product_norm_squared(&pair.b, &pair.a).map_err(|error| match error {
            ScoreError::NotFinite { found, .. } => ScoreError::NotFinite { step: step + 1, found },
            other => other,
        })?;
        squares += squared;
        norms += squared.sqrt();
    }
    Ok(WeightScores { igia: squares / steps.len() as f64, igia_fro: norms })
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
    let (b, a) = (grad_b.mapv(f64::from), grad_a.mapv(f64::from));
    let found = (b.t().dot(&b) * a.dot(&a.t())).sum();
    if !found.is_finite() {
        return Err(ScoreError::NotFinite { step: 1, found });
    }
    Ok(found.max(0.0)) // Rounding can leave a true zero just below it.
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
            steps in (1..6_usize, 1..4_usize, 1..6_usize).prop_flat_map(|(out, rank, columns)| {
                prop::collection::vec((matrix(out, rank), matrix(rank, columns)), 1..4)
            })
        ) {
            let pairs: Vec<_> =
                steps.iter().map(|(b, a)| StepPair { b: b.view(), a: a.view() }).collect();
            let found = weight_scores(&pairs).unwrap();
            let expected = reference::weight_scores(&pairs);
            // The terms may cancel, so the bound is relative to the sum of their magnitudes.
            let scale: f64 = steps.iter().map(|(b, a)| {
                let norm = |m: &Array2<f32>| m.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
                norm(b) * norm(a)
            }).sum();
            prop_assert!((found.igia - expected.igia).abs() <= 1e-12 * scale);
            prop_assert!((found.igia_fro - expected.igia_fro).abs() <= 1e-6 * scale.sqrt().max(1e-6));
        }
    }

    #[test]
    fn names_the_step_that_is_not_finite() {
        let (b, good, bad) = (array![[1.0]], array![[1.0]], array![[f32::NAN]]);
        let pairs = [good, bad];
        let pairs: Vec<_> = pairs.iter().map(|a| StepPair { b: b.view(), a: a.view() }).collect();
        assert!(matches!(weight_scores(&pairs), Err(ScoreError::NotFinite { step: 2, .. })));
        assert_eq!(weight_scores(&[]), Err(ScoreError::NoSteps));
    }

    #[test]
    fn ranks_must_agree() {
        assert_eq!(
            product_norm_squared(&array![[1.0, 2.0]], &array![[1.0]]),
            Err(ScoreError::Rank { of_b: 2, of_a: 1 })
        );
    }
}
