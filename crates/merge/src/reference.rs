//! The formulas of method.md written out, to test and time the kernels against.

use crate::{Donor, Mask, WeightedDonor, WeightedReceiver};

/// Sorts all positions by rank and marks the first `count`.
pub fn keep_top(scores: &[f32], count: usize) -> Mask {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(i.cmp(&j)));
    let mut mask = vec![false; scores.len()];
    for &i in &order[..count] {
        mask[i] = true;
    }
    mask.into_iter().collect()
}

/// Sorts all positions by rank and marks the first ones until they hold the share.
pub fn keep_share(scores: &[f32], share: f64) -> Mask {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(i.cmp(&j)));
    let wanted = share * scores.iter().copied().map(f64::from).sum::<f64>();
    let (mut mask, mut held) = (vec![false; scores.len()], 0.0);
    for i in order {
        if held >= wanted {
            break;
        }
        mask[i] = true;
        held += f64::from(scores[i]);
    }
    mask.into_iter().collect()
}

/// Element by element, each donor in turn.
pub fn merge_same_sign(receiver: &[f32], donors: &[Donor<'_, f32>]) -> Vec<f32> {
    (0..receiver.len())
        .map(|n| {
            donors.iter().fold(receiver[n], |sum, donor| {
                let same_sign = f64::from(receiver[n]) * f64::from(donor.weight[n]) > 0.0;
                if donor.kept.get(n) && same_sign { sum + donor.weight[n] } else { sum }
            })
        })
        .collect()
}

/// Each donor's difference in turn, all elements at a time.
pub fn add_differences(receiver: &[f32], donors: &[&[f32]]) -> Vec<f32> {
    let mut sums: Vec<f64> = receiver.iter().copied().map(f64::from).collect();
    for donor in donors {
        for n in 0..receiver.len() {
            sums[n] += f64::from(donor[n]) - f64::from(receiver[n]);
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// A receiver from its first element on with one donor by its share of importance, element by element.
pub fn add_weighted(
    receiver: &WeightedReceiver<'_>,
    donor: &WeightedDonor<'_>,
    step: f64,
) -> Vec<f64> {
    let element = |n: usize| {
        let (own, theirs) = (f64::from(receiver.weight[n]), f64::from(donor.weight[n]));
        let (f, f_j) = (f64::from(receiver.importance[n]), f64::from(donor.importance[n]));
        let share = if f_j == 0.0 { 0.0 } else { f_j / (f_j + f) };
        let taken = donor.kept.get(receiver.first + n) && own * theirs > 0.0;
        if taken { own + step * share * theirs } else { own }
    };
    (0..receiver.weight.len()).map(element).collect()
}

/// Each element in turn.
pub fn divide(weight: &[f32], divisor: f64) -> Vec<f32> {
    weight.iter().map(|&value| (f64::from(value) / divisor) as f32).collect()
}

/// `Tᵀ·W`, element by element.
pub fn premultiply(map: &[f32], weight: &[f32], columns: usize) -> Vec<f32> {
    let inner = weight.len() / columns;
    let element = |at: usize| {
        let (i, j) = (at / columns, at % columns);
        let product = |k: usize| f64::from(map[k * inner + i]) * f64::from(weight[k * columns + j]);
        (0..inner).fold(0.0, |sum, k| sum + product(k)) as f32
    };
    (0..weight.len()).map(element).collect()
}
