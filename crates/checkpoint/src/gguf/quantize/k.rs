//! The K-quants: 256 values in parts that have a scale, and some a minimum, of their own, themselves quantised.
//!
//! Each part's scale and minimum are searched for among a few, by the weighted squared error. Which few, the weights and
//! the order of the sums are those of `quantize_row_q4_K_ref` and its like in ggml, so that the bytes are the same.

use std::array::from_fn;

use half::f16;

use super::lanes::{Lanes, columns};

/// A group of values that are all smaller is stored as zeros.
const ZERO: f32 = 1e-15;

/// Eight parts of 32 values in four bits.
pub(super) fn q4_k(block: &[f32], out: &mut Vec<u8>) {
    let levels = affine::<15>(block, &Search { first: -1.0, steps: 20 }, out);
    nibbles(&levels, out);
}

/// Eight parts of 32 values in five bits: a byte holds the fifth bits of the values at one place of the eight parts.
pub(super) fn q5_k(block: &[f32], out: &mut Vec<u8>) {
    let levels = affine::<31>(block, &Search { first: -0.5, steps: 15 }, out);
    let parts = || levels.iter().rev();
    out.extend((0..32).map(|at| parts().fold(0, |bits, part| (bits << 1) | (part[at] >> 4))));
    nibbles(&levels, out);
}

/// Sixteen parts of 16 values in six bits.
pub(super) fn q6_k(block: &[f32], out: &mut Vec<u8>) {
    let (first, second) = block.split_at(128);
    let halves = [symmetric(&columns(first)), symmetric(&columns(second))];
    let parts: [(f32, f32); 16] = from_fn(|part| {
        let Symmetric { scale, inverse } = halves[part / 8];
        (scale.0[part % 8], inverse.0[part % 8])
    });
    let farther = |most: f32, &(x, _): &(f32, f32)| if x.abs() > most.abs() { x } else { most };
    let largest = parts.iter().fold(0.0, farther);
    if largest.abs() < ZERO {
        out.extend([0; 210]);
        return;
    }
    let inverse_scale = -128.0 / largest;
    let scale = f16::from_f32(1.0 / inverse_scale);
    let scales = parts.map(|(scale, _)| nearest(inverse_scale * scale).min(127) as i8);
    let mut levels = [0; 256];
    for (part, levels) in levels.chunks_exact_mut(16).enumerate() {
        let (d, (_, inverse)) = (scale.to_f32() * f32::from(scales[part]), parts[part]);
        for (level, x) in levels.iter_mut().zip(&block[part * 16..]) {
            let found = if d == 0.0 { nearest(inverse * x) } else { nearest(x / d) };
            // A part of zeros keeps zeros, which is what ggml leaves there.
            let middle = if d == 0.0 && inverse == 0.0 { 0 } else { 32 };
            *level = (found.clamp(-32, 31) + middle) as u8;
        }
    }
    for half in levels.chunks_exact(128) {
        out.extend((0..64).map(|at| (half[at] & 15) | (half[at + 64] << 4)));
    }
    for half in levels.chunks_exact(128) {
        let two = |at: usize| half[at] >> 4;
        out.extend(
            (0..32).map(|at| {
                two(at) | (two(at + 32) << 2) | (two(at + 64) << 4) | (two(at + 96) << 6)
            }),
        );
    }
    out.extend(scales.map(i8::cast_unsigned));
    out.extend(scale.to_le_bytes());
}

/// To the nearest integer, half to even, for magnitudes below 2²²: the sum's last bit is worth one. What ggml makes of
/// larger ones is made of them here too.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    (((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32) - 0x0040_0000
}

/// Part by part, the levels' lower four bits: of two parts, the first in the lower halves of the bytes.
fn nibbles(levels: &[[u8; 32]; 8], out: &mut Vec<u8>) {
    for [low, high] in levels.as_chunks().0 {
        out.extend(low.iter().zip(high).map(|(low, high)| (low & 15) | (high << 4)));
    }
}

/// Which scales are tried for a part: those that give its range `MOST + first`, `MOST + first + 0.1` … levels.
struct Search {
    first: f32,
    steps: u8,
}

/// Writes the block's scales, `x = d·scale·level − m·min`, and returns the levels of its parts, from 0 to `MOST`.
fn affine<const MOST: u8>(block: &[f32], search: &Search, out: &mut Vec<u8>) -> [[u8; 32]; 8] {
    let fit = fit::<MOST>(&columns(block), search);
    let (scales, mins) = (fit.scale, fit.min.map(|min| -min));
    let largest = |of: Lanes| of.0.into_iter().fold(0.0, |most, x| if x > most { x } else { most });
    let in_six_bits = |of: Lanes| {
        let largest = largest(of);
        let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        let six_bits = of.0.map(|x| (nearest(inverse * x) as u8).min(63));
        (f16::from_f32(largest / 63.0), six_bits)
    };
    let ((d, scales), (m, mins)) = (in_six_bits(scales), in_six_bits(mins));
    out.extend(d.to_le_bytes());
    out.extend(m.to_le_bytes());
    // Four bytes of scales and four of minima, whose upper two bits are those of the other four's; then the lower four.
    out.extend((0..4).map(|part| scales[part] | ((scales[part + 4] >> 4) << 6)));
    out.extend((0..4).map(|part| mins[part] | ((mins[part + 4] >> 4) << 6)));
    out.extend((4..8).map(|part| (scales[part] & 15) | (mins[part] << 4)));

    from_fn(|part| {
        let d = d.to_f32() * f32::from(scales[part]);
        let m = m.to_f32() * f32::from(mins[part]);
        let (inverse, base) = (fit.inverse.0[part], fit.base.0[part]);
        from_fn(|at| {
            let x = block[part * 32 + at];
            let level = if d == 0.0 { nearest(inverse * (x - base)) } else { nearest((x + m) / d) };
            level.clamp(0, i32::from(MOST)) as u8
        })
    })
}

/// Of eight parts, the best `x ≈ scale·level + min`, and `level = inverse·(x − base)` that it was found by.
struct Fit {
    scale: Lanes,
    min: Lanes,
    inverse: Lanes,
    base: Lanes,
}

/// The least squares for each trial's levels, a large value and all if the part is large weighing more; the best trial.
fn fit<const MOST: u8>(columns: &[Lanes; 32], search: &Search) -> Fit {
    let most = f32::from(MOST);
    let level = |x: f32| (nearest(x) as f32).clamp(0.0, f32::from(MOST));
    let weights = weights(columns);
    let (mut low, mut high) = (columns[0], columns[0]);
    let (mut sum_w, mut sum_x) = (Lanes::default(), Lanes::default());
    for (&x, &w) in columns.iter().zip(&weights) {
        (low, high) = (low.min(x), high.max(x));
        sum_w += w;
        sum_x += w * x;
    }
    low = low.min(Lanes::default());
    let mut levels = [Lanes::default(); 32];
    let error = |levels: &[Lanes; 32], scale: Lanes, min: Lanes| {
        let mut sum = Lanes::default();
        for ((&x, &w), &l) in columns.iter().zip(&weights).zip(levels) {
            let difference = scale * l + min - x;
            sum += w * (difference * difference);
        }
        sum
    };

    let inverse = Lanes::all(most) / (high - low);
    let mut best = Fit { scale: Lanes::all(1.0) / inverse, min: low, inverse, base: low };
    for (l, &x) in levels.iter_mut().zip(columns) {
        *l = (inverse * (x - low)).map(level);
    }
    let mut least = error(&levels, best.scale, low);
    for step in 0..=search.steps {
        // ggml takes the range from the best minimum so far.
        let base = best.min;
        let inverse = Lanes::all(search.first + 0.1 * f32::from(step) + most) / (high - base);
        let [mut sum_l, mut sum_ll, mut sum_xl] = [Lanes::default(); 3];
        for ((&x, &w), l) in columns.iter().zip(&weights).zip(&mut levels) {
            *l = (inverse * (x - base)).map(level);
            let weighted = w * *l;
            sum_l += weighted;
            sum_ll += weighted * *l;
            sum_xl += weighted * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        let above = min.0.map(|min| min > 0.0);
        min.replace(above, Lanes::default());
        scale.replace(above, sum_xl / sum_ll);
        let error = error(&levels, scale, min);
        let better = from_fn(|part| determinant.0[part] > 0.0 && error.0[part] < least.0[part]);
        least.replace(better, error);
        best.replace(better, &Fit { scale, min, inverse, base });
    }
    let flat = from_fn(|part| low.0[part] == high.0[part]);
    best.replace(
        flat,
        &Fit { min: low, base: low, scale: Lanes::default(), inverse: Lanes::default() },
    );
    best
}

impl Fit {
    fn replace(&mut self, better: [bool; 8], other: &Self) {
        self.scale.replace(better, other.scale);
        self.min.replace(better, other.min);
        self.inverse.replace(better, other.inverse);
        self.base.replace(better, other.base);
    }
}

/// `√(mean x²) + |x|`, the mean over the part.
fn weights(columns: &[Lanes; 32]) -> [Lanes; 32] {
    let mut squares = Lanes::default();
    for &x in columns {
        squares += x * x;
    }
    let average = squares.map(|sum| (sum / 32.0).sqrt());
    columns.map(|x| average + x.map(f32::abs))
}

/// Of eight parts, the best `x ≈ scale·level` and `level = inverse·x` that it was found by; both 0 for a part of zeros.
#[derive(Clone, Copy)]
struct Symmetric {
    scale: Lanes,
    inverse: Lanes,
}

/// The least squares, weighted by `x²`, for levels that put the value of largest magnitude to −32.9, −32.8 … −31.1; the best
/// trial, which begins with −32.
fn symmetric(columns: &[Lanes; 16]) -> Symmetric {
    let level = |x: f32| (nearest(x) as f32).clamp(-32.0, 31.0);
    let sums = |inverse: Lanes| {
        let [mut sum_xl, mut sum_ll] = [Lanes::default(); 2];
        for &x in columns {
            let (w, l) = (x * x, (inverse * x).map(level));
            sum_xl += w * x * l;
            sum_ll += w * l * l;
        }
        (sum_xl, sum_ll)
    };
    let mut largest = Lanes::default();
    for &x in columns {
        let farther = from_fn(|part| x.0[part].abs() > largest.0[part].abs());
        largest.replace(farther, x);
    }
    let mut inverse = Lanes::all(-32.0) / largest;
    let (sum_xl, sum_ll) = sums(inverse);
    let mut scale = sum_xl / sum_ll;
    scale.replace(sum_ll.0.map(|sum| sum == 0.0), Lanes::default());
    let mut best = scale * sum_xl;
    for step in (-9..=9_i8).filter(|&step| step != 0) {
        let trial = Lanes::all(-(32.0 + 0.1 * f32::from(step))) / largest;
        let (sum_xl, sum_ll) = sums(trial);
        let (gain, needed) = (sum_xl * sum_xl, best * sum_ll);
        let better = from_fn(|part| sum_ll.0[part] > 0.0 && gain.0[part] > needed.0[part]);
        scale.replace(better, sum_xl / sum_ll);
        inverse.replace(better, trial);
        best.replace(better, scale * sum_xl);
    }
    let zero = largest.0.map(|x| x.abs() < ZERO);
    scale.replace(zero, Lanes::default());
    inverse.replace(zero, Lanes::default());
    Symmetric { scale, inverse }
}
