//! The IGIA-Matrix of one weight (method.md §2), by blocks of rows.

use bytemuck::Zeroable;
use bytemuck::allocation::zeroed_vec;
use ndarray::{ArrayView, Axis, Dimension, s};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::{StepPair, stream};

/// Columns of a panel of `∇A`.
const WIDTH: usize = 32;
/// Rows whose sums are in registers together.
const HEIGHT: usize = 6;
/// A panel's line; a vector that lies across two lines of the cache takes twice as long to load.
#[derive(Debug, Clone, Copy, Zeroable)]
#[repr(align(64))]
struct Line([f32; WIDTH]);

/// Bytes of `∇B` that a thread works on at a time, in its second cache: each panel is loaded once
/// for all of these rows.
const BLOCK_BYTES: usize = 768 << 10;
/// Fewer rows than these are not worth loading a panel.
const LEAST_ROWS: usize = 16 * HEIGHT;
/// Panels that are laid out together.
const RUN: usize = 8;
/// Bytes from which on a result is not kept in the caches.
const STREAMED_BYTES: usize = 32 << 20;

/// Where [`ImportanceRows`] lays out gradients; kept from weight to weight, since memory taken anew
/// costs as much as filling it.
#[derive(Debug, Default)]
pub struct Panels(Vec<Line>);

/// The gradients of one linear weight, laid out so that any rows of its IGIA-Matrix are computed from
/// memory that lies in order.
#[derive(Debug, Clone)]
pub struct ImportanceRows<'a, 'b> {
    rows: usize,
    columns: usize,
    rank: usize,
    steps: &'a [StepPair<'b>],
    /// Panel by panel, the steps' `∇A` one below the other.
    panels: &'a [Line],
}

impl<'a, 'b> ImportanceRows<'a, 'b> {
    /// Takes the gradients of every step; copies `∇A` into `memory`, `4·t·r·in` bytes.
    ///
    /// # Panics
    ///
    /// If there are no steps, or they disagree in shape or are empty: whoever read the record has
    /// refused it.
    pub fn new(steps: &'a [StepPair<'b>], memory: &'a mut Panels) -> Self {
        let Some(first) = steps.first() else { panic!("there are no steps") };
        let (rows, rank) = first.b.dim();
        let (of_a, columns) = first.a.dim();
        assert_eq!(rank, of_a, "A and B must have one rank");
        assert!(rows * rank * columns > 0, "gradients must not be empty");
        for pair in steps {
            assert_eq!((pair.b.dim(), pair.a.dim()), ((rows, rank), (rank, columns)));
        }
        let depth = steps.len() * rank;
        let size = columns.div_ceil(WIDTH) * depth;
        if memory.0.len() < size {
            memory.0 = Vec::new(); // The memory of both is not needed.
            memory.0 = zeroed_vec(size);
        }
        let panels = &mut memory.0[..size];
        // Several panels at a time, so that rows are read in runs longer than a panel is wide.
        panels.par_chunks_mut(RUN * depth).enumerate().for_each(|(run, panels)| {
            let first = run * RUN * WIDTH;
            let last = columns.min(first + RUN * WIDTH);
            for (step, pair) in steps.iter().enumerate() {
                let part = pair.a.slice(s![.., first..last]);
                for (k, row) in part.rows().into_iter().enumerate() {
                    let lines = panels[step * rank + k..].iter_mut().step_by(depth);
                    for (line, part) in lines.zip(row.axis_chunks_iter(Axis(0), WIDTH)) {
                        copy(&part, &mut line.0[..part.len()]);
                    }
                }
            }
        });
        Self { rows, columns, rank, steps, panels }
    }

    /// The rows from `first` on of `F = (1/t) Σ_i (∇B_i·∇A_i) ∘ (∇B_i·∇A_i)`, row-major, as many as
    /// `out` has room for.
    ///
    /// Products, squares and sums of a tile stay in registers through all steps. f32 throughout,
    /// each multiplication fused with its addition, in the order of the steps and of the rank: the
    /// bytes are the same at any thread count and on every processor. Time `O(t·r)` an element.
    /// Results of 32 MiB or more go past the caches wherever a vector's place is a multiple of its
    /// size, which in a [`Buffer`](crate::Buffer) with a multiple of 16 columns it always is.
    ///
    /// # Panics
    ///
    /// If `out` is not a number of whole rows, or reaches beyond the last.
    pub fn compute(&self, first: usize, out: &mut [f32]) {
        self.run::<false>(first, out);
    }

    /// Adds `Σ_i (∇B_i·∇A_i) ∘ (∇B_i·∇A_i)` to rows from `first` on. For steps that are too many to
    /// be laid out at once: begin with zeros, add each group of steps in order, then call
    /// [`mean_of_sums`]. The bits are those of [`ImportanceRows::compute`] with all steps.
    ///
    /// # Panics
    ///
    /// As [`ImportanceRows::compute`].
    pub fn add(&self, first: usize, out: &mut [f32]) {
        self.run::<true>(first, out);
    }

    fn run<const ADDED: bool>(&self, first: usize, out: &mut [f32]) {
        assert_eq!(out.len() % self.columns, 0, "whole rows are computed");
        let rows = out.len() / self.columns;
        assert!(first + rows <= self.rows, "beyond the last row");
        let stream = size_of_val(out) >= STREAMED_BYTES;
        let count = self.block_rows(rows);
        let blocks = out.par_chunks_mut(count * self.columns).enumerate();
        blocks.for_each_init(Vec::new, |factors, (number, out)| {
            let block = self.block::<ADDED>(first + number * count, factors, out, stream);
            Arch::new().dispatch(block);
        });
    }

    /// How many rows a thread works on at a time, such that the threads end together.
    fn block_rows(&self, rows: usize) -> usize {
        let most = BLOCK_BYTES / (size_of::<f32>() * self.steps.len() * self.rank);
        let blocks = rows.div_ceil(most.max(LEAST_ROWS));
        let blocks = blocks.next_multiple_of(rayon::current_num_threads());
        rows.div_ceil(blocks.max(1)).max(LEAST_ROWS).next_multiple_of(HEIGHT)
    }

    /// Some rows to be computed; `factors` is where their `∇B` is laid out.
    fn block<'c, const ADDED: bool>(
        &'c self,
        first: usize,
        factors: &'c mut Vec<f32>,
        out: &'c mut [f32],
        stream: bool,
    ) -> Block<'c, ADDED> {
        let count = out.len() / self.columns;
        let (rank, depth) = (self.rank, self.steps.len() * self.rank);
        // A last group with fewer rows is computed with whatever is there, and that is not kept.
        factors.resize(count.next_multiple_of(HEIGHT) * depth, 0.0);
        for (step, pair) in self.steps.iter().enumerate() {
            let part = pair.b.slice(s![first..first + count, ..]);
            let groups = factors.chunks_exact_mut(HEIGHT * depth);
            for (group, rows) in groups.zip(part.axis_chunks_iter(Axis(0), HEIGHT)) {
                let into = &mut group[step * HEIGHT * rank..][..rows.len()];
                copy(&rows, into);
            }
        }
        let steps = self.steps.len();
        Block { panels: self.panels, factors, columns: self.columns, rank, steps, stream, out }
    }
}

/// Copies an array, row-major, into as many places.
fn copy<D: Dimension>(from: &ArrayView<'_, f32, D>, into: &mut [f32]) {
    match from.as_slice() {
        Some(from) => into.copy_from_slice(from),
        None => into.iter_mut().zip(from).for_each(|(into, from)| *into = *from),
    }
}

/// Divides the sums over `steps` steps, which [`ImportanceRows::add`] has made, by their number.
pub fn mean_of_sums(sums: &mut [f32], steps: usize) {
    let mean = 1.0 / steps as f32;
    sums.par_chunks_mut(1 << 16).for_each(|part| part.iter_mut().for_each(|sum| *sum *= mean));
}

/// The IGIA-Matrix `F = (1/t) Σ_i (∇B_i·∇A_i) ∘ (∇B_i·∇A_i)`, `[out, in]` in row-major order.
///
/// No product is formed as a whole. f32 throughout; equal input gives equal bytes at any thread
/// count and on any processor. Time `O(t·r·out·in)`, memory that of `F` and of the steps' `∇A`.
///
/// # Panics
///
/// As [`ImportanceRows::new`].
pub fn importance(steps: &[StepPair<'_>]) -> Vec<f32> {
    let mut memory = Panels::default();
    let rows = ImportanceRows::new(steps, &mut memory);
    let mut found = vec![0.0; rows.rows * rows.columns];
    rows.compute(0, &mut found);
    found
}

/// Some rows of the IGIA-Matrix, to be computed with whatever vectors there are: the mean over all
/// steps or, if `ADDED`, the sum over these and what is there.
struct Block<'a, const ADDED: bool> {
    panels: &'a [Line],
    /// `∇B` of [`HEIGHT`] rows at a time: step by step, row-major.
    factors: &'a [f32],
    columns: usize,
    rank: usize,
    steps: usize,
    /// Whether the result is stored past the caches.
    stream: bool,
    out: &'a mut [f32],
}

impl<const ADDED: bool> WithSimd for Block<'_, ADDED> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums and products of a tile, a line of the panel and a factor must fit the registers.
        if S::REGISTER_COUNT >= 32 && WIDTH / S::F32_LANES >= 2 {
            self.compute::<S, HEIGHT, 2>(simd);
        } else if WIDTH / S::F32_LANES >= 2 {
            self.compute::<S, 2, 2>(simd);
        } else {
            self.compute::<S, 2, 1>(simd);
        }
    }
}

impl<const ADDED: bool> Block<'_, ADDED> {
    #[inline(always)]
    fn compute<S: Simd, const M: usize, const N: usize>(self, simd: S) {
        // The usual ranks are known when this is compiled, so that their loops can be unrolled.
        match self.rank {
            4 => self.compute_rank::<S, M, N, 4>(simd),
            8 => self.compute_rank::<S, M, N, 8>(simd),
            16 => self.compute_rank::<S, M, N, 16>(simd),
            _ => self.compute_rank::<S, M, N, 0>(simd),
        }
    }

    /// `R`: the rank, or 0 for any.
    #[inline(always)]
    fn compute_rank<S: Simd, const M: usize, const N: usize, const R: usize>(self, simd: S) {
        let Self { panels, factors, columns, rank, steps, stream, out } = self;
        let rank = if R == 0 { rank } else { R };
        let (depth, lanes) = (steps * rank, S::F32_LANES);
        let mean = simd.splat_f32s(1.0 / steps as f32);
        for (panel, lines) in panels.chunks_exact(depth).enumerate() {
            let first_column = panel * WIDTH;
            let width = WIDTH.min(columns - first_column);
            for (group, factors) in factors.chunks_exact(HEIGHT * depth).enumerate() {
                for row in (0..HEIGHT).step_by(M) {
                    for vector in (0..WIDTH / lanes).step_by(N) {
                        let from = vector * lanes;
                        let count = width.saturating_sub(from).min(N * lanes);
                        let place = |m: usize| {
                            let at = (group * HEIGHT + row + m) * columns + first_column + from;
                            at..at + count
                        };
                        let mut there = [[simd.splat_f32s(0.0); N]; M];
                        if ADDED {
                            for (m, there) in there.iter_mut().enumerate() {
                                let Some(out) = out.get(place(m)) else { continue };
                                bytemuck::cast_slice_mut(there)[..count].copy_from_slice(out);
                            }
                        }
                        let sums =
                            squares::<S, M, N>(simd, (lines, factors), rank, (row, vector), there);
                        for (m, sums) in sums.iter().enumerate() {
                            // Rows beyond the last are not kept.
                            let Some(out) = out.get_mut(place(m)) else { continue };
                            let mut found = *sums;
                            if !ADDED {
                                for sum in &mut found {
                                    *sum = simd.mul_f32s(*sum, mean);
                                }
                            }
                            if stream && count == N * lanes {
                                // SAFETY: each place is stored to once, and the fence below comes
                                // before this block's rows, borrowed by it, are given back.
                                unsafe { stream::store(simd, out, &found) }
                            } else {
                                let found: &[f32] = bytemuck::cast_slice(&found);
                                out.copy_from_slice(&found[..count]);
                            }
                        }
                    }
                }
            }
        }
        stream::fence();
    }
}

/// Adds the squares of `M` rows and `N` vectors of columns, over all steps.
#[inline(always)]
fn squares<S: Simd, const M: usize, const N: usize>(
    simd: S,
    (lines, factors): (&[Line], &[f32]),
    rank: usize,
    (row, vector): (usize, usize),
    mut sums: [[S::f32s; N]; M],
) -> [[S::f32s; N]; M] {
    let zero = simd.splat_f32s(0.0);
    for (lines, factors) in lines.chunks_exact(rank).zip(factors.chunks_exact(HEIGHT * rank)) {
        let factors = &factors[row * rank..(row + M) * rank];
        let mut products = [[zero; N]; M];
        // The first product is no addition to zero: that would take a copy of the zero.
        let (line, _) = S::as_simd_f32s(&lines[0].0);
        for m in 0..M {
            let factor = simd.splat_f32s(factors[m * rank]);
            for n in 0..N {
                products[m][n] = simd.mul_f32s(factor, line[vector + n]);
            }
        }
        for k in 1..rank {
            let (line, _) = S::as_simd_f32s(&lines[k].0);
            for m in 0..M {
                let factor = simd.splat_f32s(factors[m * rank + k]);
                for n in 0..N {
                    products[m][n] = simd.mul_add_f32s(factor, line[vector + n], products[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                sums[m][n] = simd.mul_add_f32s(products[m][n], products[m][n], sums[m][n]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;
    use crate::{Buffer, reference};

    fn matrix(rows: usize, columns: usize, salt: u32) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            let mixed = ((i * columns + j) as u32).wrapping_add(salt).wrapping_mul(2_654_435_761);
            (mixed >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
    }

    proptest! {
        // To the bit: against the formula with fused multiplications in the same order, with every
        // kind of vector there is here, and for rows computed a few at a time.
        #[test]
        fn agrees_with_reference(
            (out, rank, columns, steps) in (1..40_usize, 1..10_usize, 1..140_usize, 1..4_usize),
            salt in any::<u32>(), split in 0..40_usize,
        ) {
            let pairs: Vec<_> = (0..steps as u32)
                .map(|step| {
                    let salt = salt.wrapping_add(step * 1000);
                    (matrix(out, rank, salt), matrix(rank, columns, salt ^ 0x77))
                })
                .collect();
            let pairs: Vec<_> =
                pairs.iter().map(|(b, a)| StepPair { b: b.view(), a: a.view() }).collect();
            let expected = reference::importance(&pairs);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&importance(&pairs)), bits(&expected));

            let mut memory = Panels::default();
            let rows = ImportanceRows::new(&pairs, &mut memory);
            let mut found = Buffer::zeroed(expected.len()).unwrap();
            let (upper, lower) = found.split_at_mut(split.min(out) * columns);
            rows.compute(0, upper);
            rows.compute(split.min(out), lower);
            prop_assert_eq!(bits(&found), bits(&expected));

            for case in 0..6 {
                let (vectors, stream) = (["scalar", "narrower", "widest"][case / 2], case % 2 == 1);
                found.fill(f32::NAN);
                let mut factors = Vec::new();
                let block = rows.block::<false>(0, &mut factors, &mut found, stream);
                match vectors {
                    "scalar" => Simd::vectorize(Scalar::new(), block),
                    "narrower" => narrower(block),
                    _ => Arch::new().dispatch(block),
                }
                prop_assert_eq!(bits(&found), bits(&expected), "{} {}", vectors, stream);
            }

            // Some steps after the others.
            found.fill(0.0);
            for pairs in pairs.chunks(2) {
                ImportanceRows::new(pairs, &mut memory).add(0, &mut found);
            }
            mean_of_sums(&mut found, steps);
            prop_assert_eq!(bits(&found), bits(&expected));
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

    /// With AVX2 where there is AVX-512, else with what there is.
    fn narrower(block: Block<'_, false>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, block);
        }
        Arch::new().dispatch(block);
    }

    #[test]
    fn agrees_with_the_formula_in_f64() {
        let pairs: Vec<_> =
            (0..3).map(|step| (matrix(7, 4, step), matrix(4, 50, step + 9))).collect();
        let pairs: Vec<_> =
            pairs.iter().map(|(b, a)| StepPair { b: b.view(), a: a.view() }).collect();
        for (n, found) in importance(&pairs).into_iter().enumerate() {
            let squares = pairs.iter().map(|pair| {
                let (b, a) = (pair.b.row(n / 50), pair.a.column(n % 50));
                let product: f64 =
                    b.iter().zip(a).map(|(&b, &a)| f64::from(b) * f64::from(a)).sum();
                product * product
            });
            let expected = squares.sum::<f64>() / 3.0;
            assert!((f64::from(found) - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }
}
