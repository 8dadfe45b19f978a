//! Donors added by their elements' share of importance (method.md §8).

use rayon::prelude::*;

use crate::Mask;

/// Elements a thread works on at a time.
const BLOCK: usize = 1 << 14;

/// A part of a receiver.
#[derive(Debug, Clone, Copy)]
pub struct WeightedReceiver<'a> {
    /// The part's first element in the weight.
    pub first: usize,
    /// `W`, `[n]`.
    pub weight: &'a [f32],
    /// `F`, its importance, `[n]`.
    pub importance: &'a [f32],
}

/// The same part of a donor.
#[derive(Debug, Clone, Copy)]
pub struct WeightedDonor<'a> {
    /// `W_j`, `[n]`.
    pub weight: &'a [f32],
    /// `F_j`, its importance, `[n]`.
    pub importance: &'a [f32],
    /// `S_j` of the whole weight.
    pub kept: &'a Mask,
}

/// Adds to each element of `sums` the kept donor element of the receiver's sign, by its share of the importance:
///
/// ```text
/// sums[n] += η · S_j[n] · F_j[n] / (F_j[n] + F[n]) · W_j[n] · [ W[n] · W_j[n] > 0 ]
/// ```
///
/// Begin with the receiver as f64, add the donors in order, round once. An element of no importance adds nothing.
/// Arithmetic in f64: the same bits at any thread count and however a weight is cut into parts.
///
/// # Panics
///
/// If lengths differ, or the mask ends before the part does.
///
/// # Examples
///
/// ```
/// use gradpruner_merge::{Mask, WeightedDonor, WeightedReceiver, add_weighted};
///
/// let kept = Mask::from_iter([true, true]);
/// let receiver = WeightedReceiver { first: 0, weight: &[1.0, 1.0], importance: &[1.0, 1.0] };
/// let donor = WeightedDonor { weight: &[0.5, -0.5], importance: &[3.0, 3.0], kept: &kept };
/// let mut sums = [1.0, 1.0];
/// add_weighted(&receiver, &donor, 1.0, &mut sums);
/// assert_eq!(sums, [1.375, 1.0]);
/// ```
pub fn add_weighted(
    receiver: &WeightedReceiver<'_>,
    donor: &WeightedDonor<'_>,
    step: f64,
    sums: &mut [f64],
) {
    let count = sums.len();
    let of_receiver = [receiver.weight.len(), receiver.importance.len()];
    assert_eq!(of_receiver, [count; 2], "a receiver as long as the sums");
    assert_eq!([donor.weight.len(), donor.importance.len()], [count; 2], "and a donor");
    assert!(receiver.first + count <= donor.kept.len(), "a mask of the whole weight");
    sums.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sums)| {
        for (at, sum) in (block * BLOCK..).zip(sums) {
            let (own, theirs) = (receiver.weight[at], donor.weight[at]);
            let agree = (own > 0.0 && theirs > 0.0) || (own < 0.0 && theirs < 0.0);
            let importance = f64::from(donor.importance[at]);
            if agree && importance > 0.0 && donor.kept.get(receiver.first + at) {
                let share = importance / (importance + f64::from(receiver.importance[at]));
                *sum += step * share * f64::from(theirs);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        // Importance is zero and signs differ often.
        #[test]
        fn agrees_with_reference_to_the_bit(
            elements in prop::collection::vec(
                (-2..3_i8, -2..3_i8, 0..3_u8, 0..3_u8, any::<bool>()), 0..200),
            cut in 0..200_usize, step in 0.0..1.0_f64,
        ) {
            let weight: Vec<f32> = elements.iter().map(|row| f32::from(row.0) * 0.7).collect();
            let theirs: Vec<f32> = elements.iter().map(|row| f32::from(row.1) * 0.3).collect();
            let own_importance: Vec<f32> = elements.iter().map(|row| f32::from(row.2)).collect();
            let importance: Vec<f32> = elements.iter().map(|row| f32::from(row.3) * 0.1).collect();
            let kept: Mask = elements.iter().map(|row| row.4).collect();
            let receiver = WeightedReceiver { first: 0, weight: &weight, importance: &own_importance };
            let donor = WeightedDonor { weight: &theirs, importance: &importance, kept: &kept };
            let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
            let expected = reference::add_weighted(&receiver, &donor, step);

            // In two parts.
            let cut = cut.min(weight.len());
            let mut found = wide(&weight);
            for range in [0..cut, cut..weight.len()] {
                let part = |values: &'_ [f32]| values[range.clone()].to_vec();
                let (w, f) = (part(&weight), part(&own_importance));
                let (w_j, f_j) = (part(&theirs), part(&importance));
                let receiver = WeightedReceiver { first: range.start, weight: &w, importance: &f };
                let donor = WeightedDonor { weight: &w_j, importance: &f_j, kept: &kept };
                add_weighted(&receiver, &donor, step, &mut found[range.clone()]);
            }
            prop_assert_eq!(&found, &expected);

            // Law: a step of nothing changes nothing.
            let mut still = wide(&weight);
            add_weighted(&receiver, &donor, 0.0, &mut still);
            prop_assert_eq!(still, wide(&weight));
        }
    }

    #[test]
    fn blocks_meet() {
        let size = 2 * BLOCK + 3;
        let values = |f: fn(f32) -> f32| -> Vec<f32> { (0..size).map(|at| f(at as f32)).collect() };
        let (weight, theirs) = (values(f32::sin), values(f32::cos));
        let importance = values(|at| (at * 0.1).sin().abs());
        let kept: Mask = (0..size).map(|at| at % 3 != 0).collect();
        let receiver = WeightedReceiver {
            first: 0,
            weight: &weight,
            importance: &theirs.iter().map(|x| x * x).collect::<Vec<_>>(),
        };
        let donor = WeightedDonor { weight: &theirs, importance: &importance, kept: &kept };
        let mut found: Vec<f64> = weight.iter().copied().map(f64::from).collect();
        add_weighted(&receiver, &donor, 0.5, &mut found);
        assert_eq!(found, reference::add_weighted(&receiver, &donor, 0.5));
    }
}
