//! Gram matrices `X·Xᵀ` of gradients, in f64, summed in one order whatever the machine.
//!
//! The product of two f32 is exact in f64, so only the order of the sums matters: it is fixed here
//! by lanes and tiles of a given size, which the compiler turns into whatever vectors there are.

use pulp::{Arch, Simd, WithSimd};

/// Partial sums of a dot product that run side by side.
const LANES: usize = 8;
/// Rows whose products with as many others are summed together.
const TILE: usize = 4;
/// Rows that are widened before their products are summed.
const ROWS: usize = 64;

/// `X·Xᵀ` of a row-major `[r, n]` matrix: `[r, r]`, upper triangle.
pub(crate) fn of_rows(x: &[f32], rank: usize, sums: &mut [f64]) {
    Arch::new().dispatch(OfRows { x, rank, sums });
}

struct OfRows<'a> {
    x: &'a [f32],
    rank: usize,
    sums: &'a mut [f64],
}

impl WithSimd for OfRows<'_> {
    type Output = ();

    // A closure would not be inlined where the instructions are chosen, and so not use them.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, rank, sums } = self;
        let columns = x.len() / rank.max(1);
        let row = |i: usize| x.get(i * columns..(i + 1) * columns).unwrap_or(&[]);
        for i in (0..rank).step_by(TILE) {
            let left = std::array::from_fn(|k| row((i + k).min(rank - 1)));
            for j in (i..rank).step_by(TILE) {
                let right = std::array::from_fn(|k| row((j + k).min(rank - 1)));
                let found = tile_of_rows::<S>(left, right);
                for (k, l) in pairs_in_tile(i, j, rank) {
                    sums[(i + k) * rank + j + l] = found[k][l];
                }
            }
        }
    }
}

/// `Xᵀ·X` of a row-major `[n, r]` matrix: `[r, r]`, upper triangle.
pub(crate) fn of_columns(x: &[f32], rank: usize, sums: &mut [f64]) {
    Arch::new().dispatch(OfColumns { x, rank, sums });
}

struct OfColumns<'a> {
    x: &'a [f32],
    rank: usize,
    sums: &'a mut [f64],
}

impl WithSimd for OfColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, rank, sums } = self;
        for i in (0..rank).step_by(LANES) {
            for j in (i..rank).step_by(LANES) {
                let found = tile_of_columns::<S>(x, rank, i, j);
                for k in 0..LANES.min(rank - i) {
                    for l in 0..LANES.min(rank - j) {
                        sums[(i + k) * rank + j + l] = found[k][l];
                    }
                }
            }
        }
    }
}

fn pairs_in_tile(i: usize, j: usize, rank: usize) -> impl Iterator<Item = (usize, usize)> {
    let (rows, columns) = (TILE.min(rank - i), TILE.min(rank - j));
    (0..rows).flat_map(move |k| (0..columns).map(move |l| (k, l)))
}

#[inline(always)]
fn tile_of_rows<S: Simd>(left: [&[f32]; TILE], right: [&[f32]; TILE]) -> [[f64; TILE]; TILE] {
    let mut sums = [[[0.0_f64; LANES]; TILE]; TILE];
    let (left_chunks, right_chunks) =
        (left.map(|row| row.as_chunks::<LANES>().0), right.map(|row| row.as_chunks::<LANES>().0));
    let count = left_chunks[0].len();
    // So that no bound is checked inside.
    let left_chunks = left_chunks.map(|row| &row[..count]);
    let right_chunks = right_chunks.map(|row| &row[..count]);
    for at in 0..count {
        let mut wide = [[0.0; LANES]; TILE];
        for (wide, chunks) in wide.iter_mut().zip(right_chunks) {
            widen(&chunks[at], wide);
        }
        for (sums, chunks) in sums.iter_mut().zip(left_chunks) {
            let mut own = [0.0; LANES];
            widen(&chunks[at], &mut own);
            for (sums, wide) in sums.iter_mut().zip(&wide) {
                for lane in 0..LANES {
                    sums[lane] = multiply_add::<S>(own[lane], wide[lane], sums[lane]);
                }
            }
        }
    }
    let mut found = [[0.0; TILE]; TILE];
    for k in 0..TILE {
        for l in 0..TILE {
            let (left, right) = (rest(left[k]), rest(right[l]));
            for lane in 0..LANES {
                sums[k][l][lane] += left[lane] * right[lane];
            }
            found[k][l] = sum_of_lanes(sums[k][l]);
        }
    }
    found
}

#[inline(always)]
fn widen(chunk: &[f32; LANES], wide: &mut [f64; LANES]) {
    for lane in 0..LANES {
        wide[lane] = f64::from(chunk[lane]);
    }
}

/// What does not fill the lanes, with zeros after it.
fn rest(row: &[f32]) -> [f64; LANES] {
    let mut wide = [0.0; LANES];
    for (wide, &value) in wide.iter_mut().zip(row.as_chunks::<LANES>().1) {
        *wide = f64::from(value);
    }
    wide
}

#[inline(always)]
fn tile_of_columns<S: Simd>(x: &[f32], rank: usize, i: usize, j: usize) -> [[f64; LANES]; LANES] {
    let mut sums = [[0.0_f64; LANES]; LANES];
    // Widened some rows at a time, to memory: a factor is then loaded into all lanes, which takes
    // less than spreading it from one register to another.
    let (mut left, mut right) = ([[0.0; LANES]; ROWS], [[0.0; LANES]; ROWS]);
    for rows in x.chunks(ROWS * rank) {
        let count = rows.len() / rank;
        for (row, wide) in rows.chunks_exact(rank).zip(&mut right) {
            part(row, j, wide);
        }
        if i != j {
            for (row, wide) in rows.chunks_exact(rank).zip(&mut left) {
                part(row, i, wide);
            }
        }
        let left = if i == j { &right } else { &left };
        for (left, right) in left[..count].iter().zip(&right) {
            for (&factor, sums) in left.iter().zip(&mut sums) {
                for lane in 0..LANES {
                    sums[lane] = multiply_add::<S>(factor, right[lane], sums[lane]);
                }
            }
        }
    }
    sums
}

/// The values from `first` on, with zeros beyond the last.
#[inline(always)]
fn part(row: &[f32], first: usize, wide: &mut [f64; LANES]) {
    match row[first..].first_chunk::<LANES>() {
        Some(whole) => widen(whole, wide),
        None => *wide = rest(&row[first..]),
    }
}

/// `x · y + sum` in one instruction where there is one: the product of two f32 is exact, so the bits
/// are the same.
#[inline(always)]
fn multiply_add<S: Simd>(x: f64, y: f64, sum: f64) -> f64 {
    if S::IS_SCALAR { x * y + sum } else { x.mul_add(y, sum) }
}

/// Pairs of lanes, then pairs of pairs.
#[inline(always)]
fn sum_of_lanes(lanes: [f64; LANES]) -> f64 {
    let pairs: [f64; LANES / 2] = std::array::from_fn(|i| lanes[2 * i] + lanes[2 * i + 1]);
    (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Whole numbers, so that every order of summation gives the same bits.
        #[test]
        fn agree_with_the_plain_sums(
            (rank, columns) in (1..21_usize, 1..70_usize), seed in any::<u32>(),
        ) {
            let value = |i: usize| {
                ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 28) as f32 - 7.0
            };
            let x: Vec<f32> = (0..rank * columns).map(value).collect();
            let transposed: Vec<f32> =
                (0..rank * columns).map(|at| x[at % rank * columns + at / rank]).collect();
            let (mut rows, mut columns_found) = (vec![0.0; rank * rank], vec![0.0; rank * rank]);
            of_rows(&x, rank, &mut rows);
            of_columns(&transposed, rank, &mut columns_found);
            for i in 0..rank {
                for j in i..rank {
                    let expected: f64 = (0..columns)
                        .map(|n| f64::from(x[i * columns + n]) * f64::from(x[j * columns + n]))
                        .sum();
                    prop_assert_eq!(rows[i * rank + j], expected);
                    prop_assert_eq!(columns_found[i * rank + j], expected);
                }
            }
        }
    }
}
