//! Which elements of a donor are kept (method.md §5).

use std::cmp::Ordering;

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

/// Marks the `count` largest scores; of equal scores, those that come first (method.md §5).
///
/// `scores`: `[n]`, one weight's IGIA-Matrix in row-major order, f32. Returns `[n]`.
/// Time `O(n)`, memory `5·n` bytes.
///
/// # Panics
///
/// If `count > n`, or a score is infinite or NaN: whoever read the record has refused it.
pub fn keep_top(scores: &[f32], count: usize) -> Vec<bool> {
    assert!(count <= scores.len(), "cannot keep {count} of {} scores", scores.len());
    assert!(scores.iter().all(|score| score.is_finite()), "scores must be finite");
    let Some(last) = count.checked_sub(1) else {
        return vec![false; scores.len()];
    };
    let mut ranked = scores.to_vec();
    let (_, &mut threshold, _) = ranked.select_nth_unstable_by(last, |x, y| y.total_cmp(x));
    let above = scores.iter().filter(|score| score.total_cmp(&threshold).is_gt()).count();
    let mut ties_left = count - above;
    let keep = |score: &f32| match score.total_cmp(&threshold) {
        Ordering::Greater => true,
        Ordering::Equal if 0 < ties_left => {
            ties_left -= 1;
            true
        }
        Ordering::Equal | Ordering::Less => false,
    };
    scores.iter().map(keep).collect()
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
            (scores, count) in prop::collection::vec(0..4_u8, 0..40)
                .prop_flat_map(|scores| { let n = scores.len(); (Just(scores), 0..=n) }),
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            prop_assert_eq!(keep_top(&scores, count), reference::keep_top(&scores, count));
        }

        // Law: scaling all scores by a power of two keeps every mask.
        #[test]
        fn scaling_changes_nothing(scores in prop::collection::vec(0.0_f32..1.0, 1..40)) {
            let scaled: Vec<f32> = scores.iter().map(|score| score * 1024.0).collect();
            let count = kept_count(0.3, scores.len());
            prop_assert_eq!(keep_top(&scores, count), keep_top(&scaled, count));
        }
    }
}
