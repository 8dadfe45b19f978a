//! The most important elements of a donor, exactly so many (method.md §5).

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::{Mask, sampled};

/// How many of `size` elements a density keeps: `⌊density · size⌋`.
///
/// # Examples
///
/// ```
/// assert_eq!(gradpruner_merge::kept_count(0.2, 64), 12);
/// ```
pub fn kept_count(density: f64, size: usize) -> usize {
    ((density * size as f64).floor() as usize).min(size)
}

/// Scores that can be gone through several times, a part at a time.
pub trait Scores: Sync {
    /// Why they cannot be had.
    type Error;

    /// How many there are.
    fn count(&self) -> usize;

    /// Shows `see` every part with the number of its first score, which is a multiple of 64; parts
    /// come in any order and from several threads.
    ///
    /// # Errors
    ///
    /// If scores cannot be had.
    fn parts(&self, see: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<(), Self::Error>;
}

/// Scores of a part of a slice.
const PART: usize = 1 << 20;

impl Scores for [f32] {
    type Error = Infallible;

    fn count(&self) -> usize {
        self.len()
    }

    fn parts(&self, see: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<(), Infallible> {
        let parts = self.par_chunks(PART).enumerate();
        parts.for_each(|(number, scores)| see(number * PART, scores));
        Ok(())
    }
}

/// Marks the `count` largest scores; of equal scores, those that come first (method.md §5).
///
/// `scores`: `[n]`, one weight's IGIA-Matrix in row-major order, f32. One pass over them if a sample
/// says well enough where the threshold is, else as [`keep_top_of`]. Time `O(n)`, memory a few bits
/// a score. The same mask at any thread count, whatever the sample.
///
/// # Panics
///
/// If `count > n`, or a score is infinite or NaN: whoever read the record has refused it.
///
/// # Examples
///
/// ```
/// let kept = gradpruner_merge::keep_top(&[0.1, 0.9, 0.5, 0.5], 2);
/// assert!(kept.iter().eq([false, true, true, false]));
/// ```
pub fn keep_top(scores: &[f32], count: usize) -> Mask {
    sampled::keep_top(scores, count).unwrap_or_else(|| {
        let Ok(mask) = keep_top_of(scores, count);
        mask
    })
}

/// [`keep_top`] of scores that need not all be there at once.
///
/// Three passes over them, no sort: a histogram of the upper halves of their bits says in which
/// sixteen bits the threshold begins, one of the lower halves what it is, and the third marks.
/// Memory `n / 4` bytes and half a megabyte a thread.
///
/// # Errors
///
/// If scores cannot be had.
///
/// # Panics
///
/// As [`keep_top`], or if there are 2³² scores.
pub fn keep_top_of<S: Scores + ?Sized>(scores: &S, count: usize) -> Result<Mask, S::Error> {
    let size = scores.count();
    assert!(count <= size, "cannot keep {count} of {size} scores");
    assert!(u32::try_from(size).is_ok(), "counts are 32 bits wide");
    let upper = histogram(scores, None)?;
    assert!(all_finite(&upper), "scores must be finite");
    if count == 0 {
        return Ok(Mask::from_words(vec![0; size.div_ceil(64)], size));
    }
    let (upper, above) = bucket_of(&upper, count);
    let (lower, above_within) = bucket_of(&histogram(scores, Some(upper))?, count - above);
    let threshold = u32::from(upper) << 16 | u32::from(lower);
    mark(scores, threshold, count - above - above_within)
}

/// How often each pattern of sixteen bits occurs.
pub(crate) type Histogram = Vec<u32>;

pub(crate) const BUCKETS: usize = 1 << 16;

/// A score's bits, ordered as the scores are.
fn rank(score: f32) -> u32 {
    let bits = score.to_bits();
    // All bits of a negative number are turned, of others the sign alone.
    bits ^ (((bits as i32) >> 31) as u32 | 1 << 31)
}

/// Counts the upper halves of all ranks, or the lower halves of those with a given upper one.
pub(crate) fn histogram<S: Scores + ?Sized>(
    scores: &S,
    within: Option<u16>,
) -> Result<Histogram, S::Error> {
    let add = |counts: &mut Histogram, part: &[f32]| match within {
        None => {
            for &score in part {
                counts[(rank(score) >> 16) as usize] += 1;
            }
        }
        Some(upper) => {
            for rank in part.iter().map(|&score| rank(score)) {
                if rank >> 16 == u32::from(upper) {
                    counts[(rank & 0xffff) as usize] += 1;
                }
            }
        }
    };
    let join = |sums: &mut Histogram, counts: Histogram| {
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    };
    gather(scores, &|| vec![0; BUCKETS], &add, &join)
}

/// Adds all parts to what is `empty` at first, in any order, and joins what several threads have.
pub(crate) fn gather<S: Scores + ?Sized, T: Send>(
    scores: &S,
    empty: &(dyn Fn() -> T + Sync),
    add: &(dyn Fn(&mut T, &[f32]) + Sync),
    join: &dyn Fn(&mut T, T),
) -> Result<T, S::Error> {
    // A part takes one that no other thread is at; there are as many in the end as threads.
    let idle: Mutex<Vec<T>> = Mutex::default();
    let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);
    scores.parts(&|_, part| {
        let taken = lock().pop();
        let mut gathered = taken.unwrap_or_else(empty);
        add(&mut gathered, part);
        lock().push(gathered);
    })?;
    let mut all = idle.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter();
    let mut joined = all.next().unwrap_or_else(empty);
    all.for_each(|gathered| join(&mut joined, gathered));
    Ok(joined)
}

/// Whether no score is infinite or NaN, which have all bits of the exponent set.
fn all_finite(upper: &Histogram) -> bool {
    let (negative, positive) = (rank(f32::NEG_INFINITY) >> 16, rank(f32::INFINITY) >> 16);
    let outside = upper[..=negative as usize].iter().chain(&upper[positive as usize..]);
    outside.sum::<u32>() == 0
}

/// The bucket that the `count`-th largest is in, and how many are in those above it.
fn bucket_of(histogram: &Histogram, count: usize) -> (u16, usize) {
    let mut above = 0;
    for (bucket, &size) in histogram.iter().enumerate().rev() {
        let size = size as usize;
        if above + size >= count {
            return (bucket as u16, above);
        }
        above += size;
    }
    unreachable!("there are at least as many scores as are kept")
}

/// Marks all ranks above the threshold, and the first `ties` of those that equal it.
pub(crate) fn mark<S: Scores + ?Sized>(
    scores: &S,
    threshold: u32,
    mut ties: usize,
) -> Result<Mask, S::Error> {
    let size = scores.count();
    let words =
        || -> Vec<AtomicU64> { (0..size.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() };
    let (above, equal) = (words(), words());
    scores.parts(&|first, part| {
        assert_eq!(first % 64, 0, "parts begin at whole words");
        let places = above[first / 64..].iter().zip(&equal[first / 64..]);
        for (scores, (above, equal)) in part.chunks(64).zip(places) {
            let (larger, same) = compare(scores, threshold);
            // Each word belongs to one part, so no order among threads is wanted.
            above.store(larger, Ordering::Relaxed);
            if same != 0 {
                equal.store(same, Ordering::Relaxed);
            }
        }
    })?;
    let words = above.into_iter().zip(equal).map(|(above, equal)| {
        let (mut word, mut equal) = (above.into_inner(), equal.into_inner());
        while equal != 0 && ties > 0 {
            let lowest = equal & equal.wrapping_neg();
            word |= lowest;
            equal ^= lowest;
            ties -= 1;
        }
        word
    });
    Ok(Mask::from_words(words.collect(), size))
}

/// The bits of at most 64 scores that rank above the threshold, and of those that equal it.
fn compare(scores: &[f32], threshold: u32) -> (u64, u64) {
    let (mut larger, mut same) = ([0_u8; 64], [0_u8; 64]);
    for (at, &score) in scores.iter().enumerate().take(64) {
        let rank = rank(score);
        larger[at] = u8::from(rank > threshold);
        same[at] = u8::from(rank == threshold);
    }
    (pack(larger), pack(same))
}

/// Bytes of 0 or 1 as bits, the first in the lowest.
fn pack(bytes: [u8; 64]) -> u64 {
    let (eights, _) = bytes.as_chunks::<8>();
    eights.iter().enumerate().fold(0, |word, (at, &eight)| {
        // The product gathers the eight lowest bits in its highest byte.
        let byte = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word | byte << (8 * at)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        // Few distinct values, so that most cases have ties at the threshold.
        #[test]
        fn agrees_with_reference(
            (scores, count) in prop::collection::vec(0..4_u8, 0..300)
                .prop_flat_map(|scores| { let n = scores.len(); (Just(scores), 0..=n) }),
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let found = keep_top(&scores, count);
            prop_assert_eq!(&found, &reference::keep_top(&scores, count));
            prop_assert_eq!(found.count(), count);
        }

        // Values of all sizes and signs, near one another and far apart.
        #[test]
        fn agrees_with_reference_on_all_floats(
            bits in prop::collection::vec((any::<u32>(), any::<bool>()), 1..200), count in 0..200_usize,
        ) {
            let first = bits[0].0;
            let scores: Vec<f32> = bits
                .iter()
                .map(|&(bits, near)| if near { first ^ (bits & 7) } else { bits })
                .map(f32::from_bits)
                .filter(|score| score.is_finite())
                .collect();
            let count = count.min(scores.len());
            let found = keep_top(&scores, count);
            prop_assert_eq!(found, reference::keep_top(&scores, count));
        }

        // Law: scaling all scores by a power of two keeps every mask.
        #[test]
        fn scaling_changes_nothing(scores in prop::collection::vec(0.0_f32..1.0, 1..40)) {
            let scaled: Vec<f32> = scores.iter().map(|score| score * 1024.0).collect();
            let count = kept_count(0.3, scores.len());
            prop_assert_eq!(
                keep_top(&scores, count),
                keep_top(&scaled, count)
            );
        }
    }

    /// Ties that lie in several parts go to the first, whichever thread sees them.
    #[test]
    fn ties_across_parts() {
        let scores: Vec<f32> = (0..2 * PART + 100).map(|at| (at % 2) as f32).collect();
        let count = PART + 9;
        let found = keep_top(&scores, count);
        assert_eq!(found.count(), count);
        assert!(found.get(2 * PART + 17) && !found.get(2 * PART + 19));
        let one = vec![1.0; PART + 1];
        assert!(keep_top(&one, PART).iter().take(PART).all(|kept| kept));
    }

    #[test]
    #[should_panic(expected = "scores must be finite")]
    fn what_is_not_finite_is_refused() {
        let _ = keep_top(&[1.0, f32::NAN], 1);
    }
}
