//! The same-sign merge (method.md §6).

use rayon::prelude::*;

/// Elements a thread works on at a time.
const BLOCK: usize = 1 << 14;

/// A merged layer's weight and which of its elements are kept.
#[derive(Debug, Clone, Copy)]
pub struct Donor<'a> {
    /// `W_j`, `[n]`.
    pub weight: &'a [f32],
    /// `S_j`, `[n]`.
    pub kept: &'a [bool],
}

/// Adds to each receiver element the kept donor elements of the same sign:
///
/// ```text
/// W'[n] = W[n] + Σ_j S_j[n] · W_j[n] · [ W[n] · W_j[n] > 0 ]
/// ```
///
/// Donors are added in the order given. Signs are those of the original `W`; zero agrees with
/// nothing. f32 throughout.
///
/// # Panics
///
/// If lengths differ.
///
/// # Examples
///
/// ```
/// use gradpruner_merge::{Donor, merge_same_sign};
///
/// let donor = Donor { weight: &[1.0, 1.0, 1.0], kept: &[true, true, false] };
/// assert_eq!(merge_same_sign(&[2.0, -2.0, 2.0], &[donor]), [3.0, -2.0, 2.0]);
/// ```
pub fn merge_same_sign(receiver: &[f32], donors: &[Donor<'_>]) -> Vec<f32> {
    for donor in donors {
        let lengths = (donor.weight.len(), donor.kept.len());
        assert_eq!(lengths, (receiver.len(), receiver.len()), "lengths must agree");
    }
    let mut merged = receiver.to_vec();
    merged.par_chunks_mut(BLOCK).enumerate().for_each(|(block, merged)| {
        let range = block * BLOCK..block * BLOCK + merged.len();
        let receiver = &receiver[range.clone()];
        for donor in donors {
            let (weight, kept) = (&donor.weight[range.clone()], &donor.kept[range.clone()]);
            for (((sum, &own), &theirs), &kept) in
                merged.iter_mut().zip(receiver).zip(weight).zip(kept)
            {
                // Compared, not multiplied: a product of tiny values would round to zero.
                let agree = (own > 0.0 && theirs > 0.0) || (own < 0.0 && theirs < 0.0);
                if kept && agree {
                    *sum += theirs;
                }
            }
        }
    });
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        #[test]
        fn agrees_with_reference(
            elements in prop::collection::vec(
                (-2..3_i8, -2..3_i8, any::<bool>(), -2..3_i8, any::<bool>()), 0..60),
        ) {
            let column = |pick: fn(&(i8, i8, bool, i8, bool)) -> i8| -> Vec<f32> {
                elements.iter().map(|row| f32::from(pick(row)) * 0.7).collect()
            };
            let (receiver, one, two) = (column(|r| r.0), column(|r| r.1), column(|r| r.3));
            let kept_one: Vec<_> = elements.iter().map(|row| row.2).collect();
            let kept_two: Vec<_> = elements.iter().map(|row| row.4).collect();
            let donors = [
                Donor { weight: &one, kept: &kept_one },
                Donor { weight: &two, kept: &kept_two },
            ];
            prop_assert_eq!(
                merge_same_sign(&receiver, &donors),
                reference::merge_same_sign(&receiver, &donors)
            );
        }

        // Law: merging nothing changes no byte.
        #[test]
        fn nothing_kept_nothing_changed(weight in prop::collection::vec(any::<f32>(), 0..40)) {
            let kept = vec![false; weight.len()];
            let merged = merge_same_sign(&weight, &[Donor { weight: &weight, kept: &kept }]);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&merged), bits(&weight));
        }
    }

    #[test]
    fn tiny_values_agree_too() {
        let donor = Donor { weight: &[1e-30], kept: &[true] };
        assert_eq!(merge_same_sign(&[1e-30], &[donor]), [2e-30]);
    }
}
