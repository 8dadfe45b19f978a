//! The most important elements in one pass: a sample says between which two scores the threshold
//! lies, and only what falls between them is looked at again. Exact, whatever the sample.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
#[cfg(target_arch = "x86_64")]
use {pulp::x86::V4, std::any::TypeId};

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
/// Buckets of the scores between.
const BUCKETS: usize = 1 << 12;
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
    let (threshold, mut ties) = threshold(&found, (low, high), count - above);
    let equal = |part: &Part| part.between.iter().filter(|place| place.1 == threshold).count();
    let equal: Vec<usize> = found.par_iter().map(equal).collect();
    // Equal scores go to the first parts.
    let ties: Vec<usize> = equal
        .into_iter()
        .map(|equal| {
            let taken = equal.min(ties);
            ties -= taken;
            taken
        })
        .collect();
    let parts = words.par_chunks_mut(PART / 64).zip(&found).zip(ties);
    parts.for_each(|((words, part), mut ties)| {
        for &(at, order) in &part.between {
            if order < threshold || (order == threshold && ties == 0) {
                continue;
            }
            ties -= usize::from(order == threshold);
            words[at as usize / 64] |= 1 << (at % 64);
        }
    });
    Some(Mask::from_words(words, scores.len()))
}

/// The `count`-th largest order of those between the guesses, and how many that equal it are kept.
fn threshold(parts: &[Part], (low, high): (i32, i32), count: usize) -> (i32, usize) {
    // A histogram says in which bucket it is, so that few are put in order.
    let shift = (high.abs_diff(low) / BUCKETS as u32 + 1).next_power_of_two().trailing_zeros();
    let bucket = |order: i32| (order.abs_diff(low) >> shift) as usize;
    let histogram = parts.par_iter().map(|part| {
        let mut counts = vec![0_usize; BUCKETS + 1];
        part.between.iter().for_each(|&(_, order)| counts[bucket(order)] += 1);
        counts
    });
    let counts = histogram.reduce(
        || vec![0; BUCKETS + 1],
        |mut sums, counts| {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            sums
        },
    );
    let (mut chosen, mut left) = (BUCKETS, count);
    while counts[chosen] < left {
        left -= counts[chosen];
        chosen -= 1;
    }
    let orders = parts.par_iter().flat_map_iter(|part| part.between.iter().map(|place| place.1));
    let mut orders: Vec<i32> = orders.filter(|&order| bucket(order) == chosen).collect();
    let (larger, &mut threshold, _) = orders.select_nth_unstable_by(left - 1, |x, y| y.cmp(x));
    (threshold, left - larger.iter().filter(|&&order| order > threshold).count())
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
    let mut sample: Vec<i32> = (0..SAMPLE)
        .into_par_iter()
        .with_min_len(SAMPLE / 16)
        .map(|number| {
            let at = (u128::from(random(number as u64)) * scores.len() as u128) >> 64;
            order(scores[at as usize])
        })
        .collect();
    let share = count as f64 / scores.len() as f64;
    let deviation = (SAMPLE as f64 * share * (1.0 - share)).sqrt();
    let place = |rank: f64| (rank.max(0.0) as usize).min(SAMPLE - 1);
    let rank = SAMPLE as f64 * share;
    let (of_low, of_high) =
        (place(rank + DEVIATIONS * deviation), place(rank - DEVIATIONS * deviation));
    let (larger, &mut low, _) = sample.select_nth_unstable_by(of_low, |x, y| y.cmp(x));
    if of_high >= larger.len() {
        return (low, low);
    }
    (low, *larger.select_nth_unstable_by(of_high, |x, y| y.cmp(x)).1)
}

/// The `at`-th of a fixed sequence of random numbers (`SplitMix64`).
fn random(at: u64) -> u64 {
    let mut x = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
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
        #[cfg(target_arch = "x86_64")]
        let wide = (TypeId::of::<S>() == TypeId::of::<V4>()).then(V4::try_new).flatten();
        let mut between = Vec::with_capacity(MOST_BETWEEN + 64);
        let (mut at, mut above, mut largest) = (0, 0, [0; LANES]);
        for (scores, word) in scores.chunks(64).zip(words) {
            let mut padded = [0.0; 64];
            let (scores, real) = if let Some(whole) = scores.first_chunk::<64>() {
                (whole, u64::MAX)
            } else {
                padded[..scores.len()].copy_from_slice(scores);
                (&padded, (1 << scores.len()) - 1)
            };
            enlarge(&mut largest, scores);
            #[cfg(target_arch = "x86_64")]
            let (larger, not_less) = match wide {
                Some(simd) => compare_wide(simd, scores, low, high),
                None => compare(scores, low, high),
            };
            #[cfg(not(target_arch = "x86_64"))]
            let (larger, not_less) = compare(scores, low, high);
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
        let finite = largest.iter().all(|&bits| bits < f32::INFINITY.to_bits());
        finite.then_some(Part { above, between })
    }
}

/// Keeps the largest bits of a magnitude in each lane: those of what is not finite are beyond all
/// others.
#[inline(always)]
fn enlarge(largest: &mut [u32; LANES], scores: &[f32; 64]) {
    for scores in scores.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(scores[lane].to_bits() & 0x7fff_ffff);
        }
    }
}

/// Of 64 scores, which are above `high` and which are not below `low`, a bit each.
#[inline(always)]
fn compare(scores: &[f32; 64], low: i32, high: i32) -> (u64, u64) {
    let (mut larger, mut not_less) = (0, 0);
    for (number, scores) in scores.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
        let (mut of_high, mut of_low) = ([0_u32; LANES], [0_u32; LANES]);
        for lane in 0..LANES {
            let (of_x, of_y) = (order(scores[lane]), order(scores[lane + LANES]));
            of_high[lane] =
                u32::from(of_x > high) << lane | u32::from(of_y > high) << (lane + LANES);
            of_low[lane] =
                u32::from(of_x >= low) << lane | u32::from(of_y >= low) << (lane + LANES);
        }
        let join = |bits: [u32; LANES]| bits.iter().fold(0, |word, bits| word | bits);
        larger |= u64::from(join(of_high)) << (2 * LANES * number);
        not_less |= u64::from(join(of_low)) << (2 * LANES * number);
    }
    (larger, not_less)
}

/// [`compare`] with AVX-512, whose comparisons give bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn compare_wide(simd: V4, scores: &[f32; 64], low: i32, high: i32) -> (u64, u64) {
    let (mut not_larger, mut not_less) = (0, 0);
    let (low, high) = (simd.splat_i32x16(low), simd.splat_i32x16(high));
    for (number, scores) in scores.as_chunks::<LANES>().0.iter().enumerate() {
        let mut orders = [0; LANES];
        for lane in 0..LANES {
            orders[lane] = order(scores[lane]);
        }
        let orders: pulp::i32x16 = pulp::cast(orders);
        not_larger |= u64::from(simd.cmp_le_i32x16(orders, high).0) << (LANES * number);
        not_less |= u64::from(simd.cmp_ge_i32x16(orders, low).0) << (LANES * number);
    }
    (!not_larger, not_less)
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

    /// With every kind of vector there is here, against plain comparisons.
    #[test]
    fn marks_alike_with_all_vectors() {
        let mut scores = scores(|random| f32::from_bits(random & 0xbfff_ffff));
        scores.truncate(1000);
        let (low, high) = (order(-1e-30), order(1e-3));
        let expected: Vec<u64> = scores
            .chunks(64)
            .map(|scores| {
                let above = scores.iter().enumerate().filter(|(_, score)| order(**score) > high);
                above.fold(0, |word, (lane, _)| word | 1 << lane)
            })
            .collect();
        let expected_between: Vec<(u32, i32)> = (0..)
            .zip(scores.iter().map(|&score| order(score)))
            .filter(|&(_, order)| low <= order && order <= high)
            .collect();
        for vectors in ["scalar", "narrower", "widest"] {
            let mut words = vec![0; scores.len().div_ceil(64)];
            let marking = Marking { scores: &scores, words: &mut words, low, high };
            let part = match vectors {
                "scalar" => Simd::vectorize(pulp::Scalar::new(), marking),
                "narrower" => narrower(marking),
                _ => Arch::new().dispatch(marking),
            };
            let part = part.expect("all are finite");
            assert_eq!((&words, part.between), (&expected, expected_between.clone()), "{vectors}");
            assert_eq!(
                part.above,
                expected.iter().map(|word| word.count_ones()).sum::<u32>() as usize
            );
        }
    }

    /// With AVX2 where there is AVX-512, else with what there is.
    fn narrower(marking: Marking<'_>) -> Option<Part> {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, marking);
        }
        Arch::new().dispatch(marking)
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
