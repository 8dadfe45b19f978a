//! The fewest elements of a donor that hold a share of its importance (method.md §5).

use crate::Mask;
use crate::top::{BUCKETS, Scores, gather, histogram, mark};

/// Marks the fewest scores that together hold a `share` of the sum of all; of equal scores those that come first.
///
/// ```text
/// the k largest, with the least k such that  Σ_{the k largest} F ≥ share · Σ F
/// ```
///
/// `scores`: one weight's IGIA-Matrix, `[n]`, none below zero. Three passes over them and no sort, as
/// [`keep_top_of`](crate::keep_top_of): how many there are with each upper half of bits and what they add up to, then how
/// many with each lower half within the half where the share is reached, then the marks. Scores with one upper half are
/// added up as whole numbers of their last bit's worth, so the sums are exact there, and the mask is the same at any thread
/// count. Memory `n / 4` bytes and a megabyte a thread.
///
/// # Errors
///
/// If scores cannot be had.
///
/// # Panics
///
/// If a score is infinite, NaN or below zero, if `share` is not from 0 to 1, or if there are 2³² scores.
///
/// # Examples
///
/// ```
/// let Ok(kept) = gradpruner_merge::keep_share_of(&[1.0, 4.0, 3.0, 0.5][..], 0.8);
/// assert!(kept.iter().eq([false, true, true, false])); // 7 of 8.5
/// ```
pub fn keep_share_of<S: Scores + ?Sized>(scores: &S, share: f64) -> Result<Mask, S::Error> {
    assert!((0.0..=1.0).contains(&share), "a share from 0 to 1");
    let size = scores.count();
    assert!(u32::try_from(size).is_ok(), "counts are 32 bits wide");
    let sums = sums(scores)?;
    let mut total = 0.0;
    let mut reached = Vec::with_capacity(BUCKETS);
    for (bucket, sum) in sums.iter().enumerate().rev() {
        assert!(
            bucket < FIRST_NOT_FINITE || sum.count == 0,
            "importance must be finite, none below zero"
        );
        total += sum.of_units() as f64 * unit(bucket);
        reached.push((bucket, total));
    }
    let wanted = share * total;
    let none = || Mask::from_words(vec![0; size.div_ceil(64)], size);
    if wanted <= 0.0 {
        return Ok(none());
    }
    // The last one reaches the total, of which no more than all is wanted.
    let Some(&(bucket, _)) = reached.iter().find(|&&(_, reached)| reached >= wanted) else {
        return Ok(none());
    };
    let before = reached.iter().take_while(|&&(other, _)| other > bucket).last();
    // In units of the last bit, of which scores of this bucket have whole numbers.
    let missing = (wanted - before.map_or(0.0, |&(_, reached)| reached)) / unit(bucket);
    let missing = missing.ceil() as u64;
    let counts = histogram(scores, Some(bucket as u16 | SIGN))?;
    let (mut held, mut least) = (0_u64, (0, 0));
    for (low, &count) in counts.iter().enumerate().rev() {
        let each = whole(bucket) + low as u64;
        if count == 0 || each == 0 || held >= missing {
            continue;
        }
        // The equal ones that are still wanted, or all of them.
        let taken = (missing - held).div_ceil(each).min(u64::from(count));
        least = (low as u32, taken as usize);
        held += taken * each;
    }
    let (low, ties) = least;
    mark(scores, u32::from(bucket as u16 | SIGN) << 16 | low, ties)
}

/// The upper halves of the bits of numbers that are not below zero; ranks have the sign's bit set.
const SIGN: u16 = 1 << 15;
/// The first upper half of numbers that are infinite, NaN or below zero.
const FIRST_NOT_FINITE: usize = 0x7f80;

/// The scores with one upper half of bits.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    /// The lower halves added up.
    lows: u64,
    whole: u64,
}

impl Sum {
    /// Their sum in units of the last bit.
    fn of_units(self) -> u64 {
        self.count * self.whole + self.lows
    }
}

/// What the bits of the upper half count, in units of the last bit.
fn whole(bucket: usize) -> u64 {
    let implied = u64::from(bucket >> 7 > 0) << 23;
    implied | (bucket as u64 & 0x7f) << 16
}

/// What the last bit is worth.
fn unit(bucket: usize) -> f64 {
    let exponent = (bucket >> 7).clamp(1, 0xfe) as i32;
    2.0_f64.powi(exponent - 150)
}

/// How many scores have each upper half of bits, and what they add up to.
fn sums<S: Scores + ?Sized>(scores: &S) -> Result<Vec<Sum>, S::Error> {
    let empty = || -> Vec<Sum> {
        (0..BUCKETS).map(|bucket| Sum { whole: whole(bucket), ..Sum::default() }).collect()
    };
    let add = |sums: &mut Vec<Sum>, part: &[f32]| {
        for bits in part.iter().map(|score| score.to_bits()) {
            let sum = &mut sums[(bits >> 16) as usize];
            sum.count += 1;
            sum.lows += u64::from(bits & 0xffff);
        }
    };
    let join = |sums: &mut Vec<Sum>, others: Vec<Sum>| {
        for (sum, other) in sums.iter_mut().zip(others) {
            sum.count += other.count;
            sum.lows += other.lows;
        }
    };
    gather(scores, &empty, &add, &join)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{keep_top, reference};

    fn found(scores: &[f32], share: f64) -> Mask {
        let Ok(mask) = keep_share_of(scores, share);
        mask
    }

    proptest! {
        // Whole multiples of a power of two, whose sums are exact in any order; few distinct ones, so that there are ties.
        #[test]
        fn agrees_with_a_sort(
            scores in prop::collection::vec(prop_oneof![0..5_u32, 0..1_000_000_u32], 0..300),
            eighths in 0..=8_u32, exponent in -120..60_i32,
        ) {
            let unit = 2.0_f32.powi(exponent);
            let scores: Vec<f32> = scores.into_iter().map(|score| score as f32 * unit).collect();
            let share = f64::from(eighths) / 8.0;
            prop_assert_eq!(found(&scores, share), reference::keep_share(&scores, share));
        }

        // Numbers of all sizes: as many of the largest as the sums say, but for their rounding.
        #[test]
        fn holds_the_share_and_no_more_than_it_takes(
            bits in prop::collection::vec(0..0x7f80_0000_u32, 1..200), share in 0.0..=1.0_f64,
        ) {
            let scores: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let mask = found(&scores, share);
            let count = mask.count();
            prop_assert_eq!(&mask, &keep_top(&scores, count));
            let mut sorted: Vec<f64> = scores.iter().copied().map(f64::from).collect();
            sorted.sort_by(|x, y| y.total_cmp(x));
            let (total, held) = (sorted.iter().sum::<f64>(), sorted[..count].iter().sum::<f64>());
            prop_assert!(held >= share * total * (1.0 - 1e-12), "{held} of {total}");
            if let Some(last) = count.checked_sub(1) {
                let fewer: f64 = sorted[..last].iter().sum();
                prop_assert!(fewer <= share * total * (1.0 + 1e-12), "{fewer} of {total}");
            }
        }

        // Law: scaling all scores by a power of two keeps every mask.
        #[test]
        fn scaling_changes_nothing(scores in prop::collection::vec(0.0_f32..1.0, 1..40)) {
            let scaled: Vec<f32> = scores.iter().map(|score| score * 1024.0).collect();
            prop_assert_eq!(found(&scores, 0.8), found(&scaled, 0.8));
        }
    }

    #[test]
    fn parts_and_ends() {
        let scores: Vec<f32> = (0..2_200_000_u32).map(|at| (at % 4) as f32).collect();
        // A quarter of them is 3, which is half of the sum.
        assert_eq!(found(&scores, 0.5).count(), 550_000);
        assert_eq!(found(&scores, 0.5), keep_top(&scores, 550_000));
        assert_eq!(found(&scores, 1.0).count(), 1_650_000);
        assert_eq!(found(&scores, 0.0).count(), 0);
        assert_eq!(found(&[0.0; 70], 1.0).count(), 0);
        assert_eq!(found(&[], 0.5).len(), 0);
        assert_eq!(found(&[f32::from_bits(1), 0.0], 1.0).count(), 1);
    }

    #[test]
    #[should_panic(expected = "importance must be finite, none below zero")]
    fn what_is_not_finite_is_refused() {
        let _ = found(&[1.0, f32::INFINITY], 0.5);
    }
}
