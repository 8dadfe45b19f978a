//! What donors differ by from a receiver, added to it (method.md §8, `LaCo`).

use rayon::prelude::*;

/// Elements a thread works on at a time.
const BLOCK: usize = 1 << 14;

/// Adds to each receiver element what the donors differ by from it (`LaCo`, arXiv 2402.11187):
///
/// ```text
/// W'[n] = W[n] + Σ_j (W_j[n] − W[n])
/// ```
///
/// # Shapes
///
/// - `receiver`: `W`, or a part of it, `[n]`
/// - `donors`: the same part of each `W_j`, `[n]`, in the order they are added
/// - `merged`: `W'`, `[n]`
///
/// Differences and sums run in f64, donor after donor, rounded to f32 once: the same bits at any thread count.
///
/// # Panics
///
/// If lengths differ.
///
/// # Examples
///
/// ```
/// let mut merged = [0.0];
/// gradpruner_merge::add_differences(&[1.0], &[&[1.5], &[0.25]], &mut merged);
/// assert_eq!(merged, [0.75]);
/// ```
pub fn add_differences(receiver: &[f32], donors: &[&[f32]], merged: &mut [f32]) {
    assert_eq!(merged.len(), receiver.len(), "the result is as long as the receiver");
    for donor in donors {
        assert_eq!(donor.len(), receiver.len(), "a donor as long as the receiver");
    }
    merged.par_chunks_mut(BLOCK).enumerate().for_each(|(block, merged)| {
        let first = block * BLOCK;
        for (at, merged) in (first..).zip(merged) {
            let own = f64::from(receiver[at]);
            let differences = donors.iter().map(|donor| f64::from(donor[at]) - own);
            *merged = differences.fold(own, |sum, difference| sum + difference) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        #[test]
        fn agrees_with_reference_to_the_bit(
            elements in prop::collection::vec((-2.0_f32..2.0, -2.0_f32..2.0, -1e9_f32..1e9), 0..200),
        ) {
            let column = |pick: fn(&(f32, f32, f32)) -> f32| -> Vec<f32> {
                elements.iter().map(pick).collect()
            };
            let (receiver, one, two) = (column(|r| r.0), column(|r| r.1), column(|r| r.2));
            let donors = [one.as_slice(), two.as_slice()];
            let mut found = vec![0.0; receiver.len()];
            add_differences(&receiver, &donors, &mut found);
            prop_assert_eq!(&found, &reference::add_differences(&receiver, &donors));

            // Law: of one donor it is the donor.
            add_differences(&receiver, &donors[..1], &mut found);
            let near = |x: f32, y: f32| (x - y).abs() <= 1e-6;
            prop_assert!(found.iter().zip(&one).all(|(&x, &y)| near(x, y)));
        }
    }

    #[test]
    fn blocks_meet() {
        let receiver: Vec<f32> = (0..2 * BLOCK + 3).map(|at| (at as f32).sin()).collect();
        let donor: Vec<f32> = receiver.iter().map(|x| x.cos()).collect();
        let mut found = vec![0.0; receiver.len()];
        add_differences(&receiver, &[&donor, &receiver], &mut found);
        assert_eq!(found, reference::add_differences(&receiver, &[&donor, &receiver]));
    }
}
