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

/// `F = (1/t) Σ_i G_i ∘ G_i`, element by element, each product fused with its addition.
pub fn importance(steps: &[StepPair<'_>]) -> Vec<f32> {
    let Some(first) = steps.first() else { return Vec::new() };
    let (rows, columns) = (first.b.nrows(), first.a.ncols());
    let mean = 1.0 / steps.len() as f32;
    let element = |n: usize| {
        let sum = steps.iter().fold(0.0, |sum: f32, pair| {
            let (row, column) = (pair.b.row(n / columns), pair.a.column(n % columns));
            let product = row.iter().zip(column).fold(0.0, |sum: f32, (&b, &a)| b.mul_add(a, sum));
            product.mul_add(product, sum)
        });
        sum * mean
    };
    (0..rows * columns).map(element).collect()
}

/// `‖G‖²_F`, with `G` formed.
pub fn product_norm_squared(pair: &StepPair<'_>) -> f64 {
    simulated_gradient(pair).iter().map(|g| g * g).sum()
}
