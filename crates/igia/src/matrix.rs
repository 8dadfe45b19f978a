//! The IGIA-Matrix of one weight (method.md §2), by blocks of rows.

use rayon::prelude::*;

use crate::StepPair;

/// Columns that are worked on together: their products stay in registers over all steps.
const TILE: usize = 64;

/// The IGIA-Matrix `F = (1/t) Σ_i (∇B_i·∇A_i) ∘ (∇B_i·∇A_i)`, `[out, in]` in row-major order.
///
/// No product is formed as a whole: each tile of a row runs through all steps while its sums stay
/// at hand, so the memory is that of `F` alone. f32 throughout; equal input gives equal bytes at
/// any thread count. Time `O(t·r·out·in)`.
///
/// # Panics
///
/// If there are no steps, or they disagree in shape: whoever read the record has refused it.
pub fn importance(steps: &[StepPair<'_>]) -> Vec<f32> {
    let Some(first) = steps.first() else { panic!("there are no steps") };
    let (rows, rank) = first.b.dim();
    let (of_a, columns) = first.a.dim();
    assert_eq!(rank, of_a, "A and B must have one rank");
    let steps: Vec<_> = steps
        .iter()
        .map(|pair| {
            assert_eq!((pair.b.dim(), pair.a.dim()), ((rows, rank), (rank, columns)));
            (pair.b.as_standard_layout(), pair.a.as_standard_layout())
        })
        .collect();
    let steps: Vec<(&[f32], &[f32])> =
        steps.iter().filter_map(|(b, a)| Some((b.as_slice()?, a.as_slice()?))).collect();
    let mean = 1.0 / steps.len() as f32;
    let mut found = vec![0.0; rows * columns];
    found.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, sums)| {
        for (tile, sums) in sums.chunks_mut(TILE).enumerate() {
            for (b, a) in &steps {
                add_squares(&b[row * rank..][..rank], &a[tile * TILE..], columns, sums);
            }
            for sum in sums {
                *sum *= mean;
            }
        }
    });
    found
}

/// Adds `(Σ_r b[r]·a[r, n])²` to `sums[n]` for the columns of one tile.
fn add_squares(b: &[f32], a: &[f32], columns: usize, sums: &mut [f32]) {
    let mut products = [0.0; TILE];
    let products = &mut products[..sums.len()];
    for (r, &factor) in b.iter().enumerate() {
        for (product, &value) in products.iter_mut().zip(&a[r * columns..]) {
            *product += factor * value;
        }
    }
    for (sum, &product) in sums.iter_mut().zip(&*products) {
        *sum += product * product;
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        // Whole numbers, so that every order of summation gives the same bits.
        #[test]
        fn agrees_with_reference(
            (out, rank, columns, steps) in (1..5_usize, 1..4_usize, 1..140_usize, 1..4_usize),
            seed in any::<u32>(),
        ) {
            let value = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 29;
            let matrix = |rows, columns, salt| Array2::from_shape_fn((rows, columns), |(i, j)| {
                value(salt + i * columns + j) as f32 - 3.0
            });
            let pairs: Vec<_> = (0..steps)
                .map(|step| (matrix(out, rank, step), matrix(rank, columns, step + 7)))
                .collect();
            let pairs: Vec<_> =
                pairs.iter().map(|(b, a)| StepPair { b: b.view(), a: a.view() }).collect();
            let found = importance(&pairs);
            let expected = reference::importance(&pairs);
            for (x, y) in found.iter().zip(&expected) {
                prop_assert!((x - y).abs() <= 1e-6 * y, "{x} is not {y}");
            }
        }

        // Law: scaling all gradients by a power of two scales the importance by its fourth power.
        #[test]
        fn scales_exactly(values in prop::collection::vec(-2.0_f32..2.0, 6)) {
            let b = Array2::from_shape_vec((3, 1), values[..3].to_vec()).unwrap();
            let a = Array2::from_shape_vec((1, 3), values[3..].to_vec()).unwrap();
            let (b2, a2) = (&b * 2.0, &a * 2.0);
            let one = importance(&[StepPair { b: b.view(), a: a.view() }]);
            let two = importance(&[StepPair { b: b2.view(), a: a2.view() }]);
            prop_assert!(one.iter().zip(&two).all(|(x, y)| x * 16.0 == *y));
        }
    }
}
