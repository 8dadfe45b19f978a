//! The most important elements in one pass: a sample says between which two scores the threshold
//! lies, and only what falls between them is looked at again. Exact, whatever the sample.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::Mask;

/// Scores that are looked at to guess where the threshold lies.
const SAMPLE: usize = 1 << 17;
/// How far from the guess it may lie, in standard deviations of the sample's rank; beyond that, once
/// in millions of weights, the guess is of no use.
const DEVIATIONS: f64 = 5.0;
/// Scores that a thread works on at a time; whole words of the mask.
const PART: usize = 1 << 20;
/// The most scores of a part that may be between the guesses.
const MOST_BETWEEN: usize = PART / 16;
/// Lanes of the loops that become vector instructions.
const LANES: usize = 16;

/// The mask of the `count` largest scores, of equal ones those that come first; `None` if a score is
/// not finite, if there are too few scores for a sample, or too many between the two guesses, as
/// where most of them are equal.
pub(crate) fn keep_top(scores: &[f32], count: usize) -> Option<Mask> {
    if scores.len() < 8 * SAMPLE || count == 0 || count == scores.len() {
        return None;
    }
    let (low, high) = guesses(scores, count);
    let mut words = vec![0_u64; scores.len().div_ceil(64)];
    let found: Vec<Part> = scores
        .par_chunks(PART)
        .zip(words.par_chunks_mut(PART / 64))
        .map(|(scores, words)| Arch::new().dispatch(Marking { scores, words, low, high }))
        .collect::<Option<_>>()?;
    let above: usize = found.iter().map(|part| part.above).sum();
    let between: usize = found.iter().map(|part| part.between.len()).sum();
    if above >= count || above + between < count {
        return None;
    }
    // What is left to choose, of those between.
    let mut ties = count - above;
    let mut orders: Vec<i32> =
        found.iter().flat_map(|part| part.between.iter().map(|&(_, order)| order)).collect();
    let (larger, &mut threshold, _) = orders.select_nth_unstable_by(ties - 1, |x, y| y.cmp(x));
    ties -= larger.iter().filter(|&&order| order > threshold).count();
    for (number, part) in found.iter().enumerate() {
        for &(at, order) in &part.between {
            if order < threshold || (order == threshold && ties == 0) {
                continue;
            }
            ties -= usize::from(order == threshold);
            let at = number * PART + at as usize;
            words[at / 64] |= 1 << (at % 64);
        }
    }
    Some(Mask::from_words(words, scores.len()))
}

/// A score's bits as a number that is ordered as the scores are.
#[inline(always)]
fn order(score: f32) -> i32 {
    let bits = score.to_bits() as i32;
    // Of negative numbers all bits but the sign are turned.
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// Orders between which the `count`-th largest very likely lies.
fn guesses(scores: &[f32], count: usize) -> (i32, i32) {
    // A fixed sequence of random places: rows and columns have patterns, which strides would meet.
    let mut state = 0_u64;
    let mut sample: Vec<i32> = (0..SAMPLE)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (u128::from(state >> 32) * scores.len() as u128) >> 32;
            order(scores[at as usize])
        })
        .collect();
    let share = count as f64 / scores.len() as f64;
    let deviation = (SAMPLE as f64 * share * (1.0 - share)).sqrt();
    let rank = SAMPLE as f64 * share;
    let mut at = |rank: f64| {
        let rank = (rank.max(0.0) as usize).min(SAMPLE - 1);
        *sample.select_nth_unstable_by(rank, |x, y| y.cmp(x)).1
    };
    (at(rank + DEVIATIONS * deviation), at(rank - DEVIATIONS * deviation))
}

/// What is found in one part.
struct Part {
    /// How many scores are above the higher guess; they are marked.
    above: usize,
    /// Those between the guesses: place in the part, and order.
    between: Vec<(u32, i32)>,
}

/// One part to be marked, with whatever vectors there are.
struct Marking<'a> {
    scores: &'a [f32],
    words: &'a mut [u64],
    low: i32,
    high: i32,
}

impl WithSimd for Marking<'_> {
    /// Nothing if a score is not finite or too many are between the guesses.
    type Output = Option<Part>;

    // A closure would not be inlined where the instructions are chosen, and so not use them.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<Part> {
        let Self { scores, words, low, high } = self;
        let mut between = Vec::with_capacity(MOST_BETWEEN + 64);
        let (mut at, mut above, mut infinite) = (0, 0, 0);
        for (scores, word) in scores.chunks(64).zip(words) {
            let mut padded = [0.0; 64];
            let (scores, real) = if let Some(whole) = scores.first_chunk::<64>() {
                (whole, u64::MAX)
            } else {
                padded[..scores.len()].copy_from_slice(scores);
                (&padded, (1 << scores.len()) - 1)
            };
            let (larger, not_less) = compare(scores, low, high, &mut infinite);
            *word = larger & real;
            above += word.count_ones() as usize;
            let mut left = not_less & !larger & real;
            while left != 0 {
                let lane = left.trailing_zeros();
                between.push((at + lane, order(scores[lane as usize])));
                left &= left - 1;
            }
            at += 64;
            if between.len() > MOST_BETWEEN {
                return None;
            }
        }
        (infinite == 0).then_some(Part { above, between })
    }
}

/// Of 64 scores, which are above `high` and which are not below `low`, a bit each.
#[inline(always)]
fn compare(scores: &[f32; 64], low: i32, high: i32, infinite: &mut u32) -> (u64, u64) {
    let (mut larger, mut not_less) = (0, 0);
    for (number, scores) in scores.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
        let (mut of_high, mut of_low, mut of_infinite) =
            ([0_u32; LANES], [0_u32; LANES], [0_u32; LANES]);
        for lane in 0..LANES {
            let (x, y) = (scores[lane], scores[lane + LANES]);
            let (of_x, of_y) = (order(x), order(y));
            of_high[lane] =
                u32::from(of_x > high) << lane | u32::from(of_y > high) << (lane + LANES);
            of_low[lane] =
                u32::from(of_x >= low) << lane | u32::from(of_y >= low) << (lane + LANES);
            of_infinite[lane] = u32::from(!x.is_finite()) | u32::from(!y.is_finite());
        }
        let join = |bits: [u32; LANES]| bits.iter().fold(0, |word, bits| word | bits);
        larger |= u64::from(join(of_high)) << (2 * LANES * number);
        not_less |= u64::from(join(of_low)) << (2 * LANES * number);
        *infinite |= join(of_infinite);
    }
    (larger, not_less)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// Scores enough for a sample, made of a few random bits each.
    fn scores(make: impl Fn(u32) -> f32) -> Vec<f32> {
        let size = 8 * SAMPLE as u32 + 77;
        (0..size)
            .map(|at| make(at.wrapping_mul(2_654_435_761) ^ at.wrapping_mul(40_503) >> 7))
            .collect()
    }

    #[test]
    fn agrees_with_reference() {
        let spread = scores(|random| (random >> 8) as f32 / 1e7 - 0.3);
        // One value in a thousand, so that there are ties at the threshold.
        let tied = scores(|random| (random >> 8) as f32 % 1000.0);
        for (scores, count) in [(&spread, 0.2), (&spread, 0.9), (&tied, 0.2), (&tied, 0.011)] {
            let count = (count * scores.len() as f64) as usize;
            let found = keep_top(scores, count).expect("the guesses are good");
            assert!(found == reference::keep_top(scores, count));
        }
    }

    #[test]
    fn what_it_cannot_do_it_leaves() {
        let mut equal = scores(|random| (random % 3) as f32);
        assert!(keep_top(&equal, equal.len() / 5).is_none());
        assert!(keep_top(&equal[..100], 20).is_none());
        let found = crate::keep_top(&equal, equal.len() / 5);
        assert!(found == reference::keep_top(&equal, equal.len() / 5));
        equal[12_345] = f32::NAN;
        assert!(keep_top(&equal, 9).is_none());
    }
}
