//! The formulas of method.md written out, to test and time the kernels against.

use ndarray::{Array2, Axis};

use crate::StepPair;

/// The simulated gradient `G = ∇B·∇A`, `[out, in]`, in f64.
fn simulated_gradient(pair: &StepPair<'_>) -> Array2<f64> {
    let (b, a) = (pair.b, pair.a);
    Array2::from_shape_fn((b.nrows(), a.ncols()), |(o, n)| {
        let (row, column) = (b.index_axis(Axis(0), o), a.index_axis(Axis(1), n));
        row.iter().zip(column).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    })
}

/// `F = (1/t) Σ_i G_i ∘ G_i`, with every `G_i` formed.
pub fn importance(steps: &[StepPair<'_>]) -> Vec<f32> {
    let sum = steps
        .iter()
        .map(|pair| simulated_gradient(pair).mapv(|g| g * g))
        .reduce(|sum, squares| sum + squares)
        .unwrap_or_default();
    sum.iter().map(|&f| (f / steps.len() as f64) as f32).collect()
}

/// `‖G‖²_F`, with `G` formed.
pub fn product_norm_squared(pair: &StepPair<'_>) -> f64 {
    simulated_gradient(pair).iter().map(|g| g * g).sum()
}
