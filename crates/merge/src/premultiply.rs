//! A linear map folded into the weight before it: `W' = Tᵀ·W` (method.md §8).

use pulp::Arch;
use rayon::prelude::*;

/// Columns that are summed side by side.
const COLUMNS: usize = 16;
/// Rows that are.
const ROWS: usize = 2;
/// Rows that a thread computes at a time.
const BLOCK: usize = 32;

/// Rows `first..` of `Tᵀ·W`, as many as `out` holds:
///
/// ```text
/// W'[i, j] = Σ_k T[k, i] · W[k, j]
/// ```
///
/// # Shapes
///
/// - `map`: `T`, `[d, d]`, row-major
/// - `weight`: `W`, `[d, columns]`, row-major
/// - `out`: some rows of `W'`, `[rows, columns]`
///
/// The products are exact in f64 and summed there in the order of `k`, so that the result is the same bits at any
/// thread count and on any processor; it is rounded to f32 once.
///
/// # Panics
///
/// If the shapes disagree.
pub fn premultiply(map: &[f32], weight: &[f32], columns: usize, first: usize, out: &mut [f32]) {
    let inner = weight.len() / columns;
    assert_eq!(weight.len(), inner * columns, "whole rows of the weight");
    assert_eq!(map.len(), inner * inner, "a square map as wide as the weight is high");
    assert_eq!(out.len() % columns, 0, "whole rows of the result");
    assert!(first + out.len() / columns <= inner, "rows that the result has");
    out.par_chunks_mut(BLOCK * columns).enumerate().for_each(|(block, out)| {
        let first = first + block * BLOCK;
        for from in (0..columns).step_by(COLUMNS) {
            let count = COLUMNS.min(columns - from);
            let mut panel = vec![[0.0; COLUMNS]; inner];
            for (wide, row) in panel.iter_mut().zip(weight.chunks(columns)) {
                for (wide, &value) in wide.iter_mut().zip(&row[from..from + count]) {
                    *wide = f64::from(value);
                }
            }
            for (pair, out) in out.chunks_mut(ROWS * columns).enumerate() {
                let row = first + pair * ROWS;
                let rows = out.len() / columns;
                let sums = Arch::new().dispatch(Tile { map, panel: &panel, row, rows });
                for (sums, out) in sums.iter().zip(out.chunks_mut(columns)) {
                    for (&sum, out) in sums.iter().zip(&mut out[from..from + count]) {
                        *out = sum as f32;
                    }
                }
            }
        }
    });
}

/// Some rows and columns of the result.
struct Tile<'a> {
    map: &'a [f32],
    panel: &'a [[f64; COLUMNS]],
    row: usize,
    rows: usize,
}

impl pulp::WithSimd for Tile<'_> {
    type Output = [[f64; COLUMNS]; ROWS];

    // Plain loops, which become vector instructions where they are chosen.
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        let Self { map, panel, row, rows } = self;
        let inner = panel.len();
        let mut sums = [[0.0; COLUMNS]; ROWS];
        for (wide, map) in panel.iter().zip(map.chunks_exact(inner)) {
            for at in 0..ROWS {
                // Of a last row that stands alone the other's sum is not used.
                let factor = f64::from(map[if at < rows { row + at } else { row }]);
                for column in 0..COLUMNS {
                    // Exact, so it does not matter whether the addition is fused with it.
                    sums[at][column] += factor * wide[column];
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        #[test]
        fn agrees_with_reference_to_the_bit(
            (map, weight, columns, first, count) in (1..70_usize, 1..40_usize)
                .prop_flat_map(|(inner, columns)| {
                    let values = |count| prop::collection::vec(-2.0_f32..2.0, count);
                    (values(inner * inner), values(inner * columns), Just(columns), 0..inner)
                })
                .prop_flat_map(|(map, weight, columns, first)| {
                    let rows = weight.len() / columns - first;
                    (Just(map), Just(weight), Just(columns), Just(first), 0..=rows)
                }),
        ) {
            let mut found = vec![0.0; count * columns];
            premultiply(&map, &weight, columns, first, &mut found);
            let expected = reference::premultiply(&map, &weight, columns);
            prop_assert_eq!(&found[..], &expected[first * columns..][..count * columns]);
        }
    }

    #[test]
    fn the_identity_changes_nothing() {
        let inner = 33;
        let map: Vec<f32> =
            (0..inner * inner).map(|at| f32::from(u8::from(at % (inner + 1) == 0))).collect();
        let weight: Vec<f32> = (0..inner * 19).map(|at| (at as f32).sin()).collect();
        let mut found = vec![0.0; weight.len()];
        premultiply(&map, &weight, 19, 0, &mut found);
        assert_eq!(found, weight);
    }
}
