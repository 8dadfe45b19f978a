//! Which layers of a pruned model a fine-tuning puts its effort into.

use std::collections::BTreeSet;

/// The `count` layers to put adapters on: those with the highest scores, of equal ones the earlier.
///
/// `scores` are the retained layers' in order, by a criterion under which more is more important: by `igia` those
/// whose simulated gradients are the largest have the most to learn, by `cka` those that change states the most have
/// the most say. All of them if `count` is no less.
///
/// # Examples
///
/// ```
/// let layers = gradpruner_selection::lora_layers_auto(&[0.2, 0.9, 0.4, 0.9, 0.4], 3);
/// assert_eq!(layers.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
/// ```
pub fn lora_layers_auto(scores: &[f64], count: usize) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&x, &y| scores[y].total_cmp(&scores[x]).then(x.cmp(&y)));
    order.into_iter().take(count).collect()
}

/// The pruned model's layers right before and right after a cut (CLP trains these in full).
///
/// `origin` is each retained layer's number in the dense model, ascending, and `num_layers` how many that model
/// had. A run removed at either end of the model has one layer beside it.
///
/// # Examples
///
/// ```
/// // Of eight layers 2, 3 and 7 went.
/// let beside = gradpruner_selection::beside_cuts(&[0, 1, 4, 5, 6], 8);
/// assert_eq!(beside.into_iter().collect::<Vec<_>>(), [1, 2, 4]);
/// ```
pub fn beside_cuts(origin: &[usize], num_layers: usize) -> BTreeSet<usize> {
    let before = std::iter::once(None).chain(origin.iter().copied().map(Some));
    let after = origin.iter().copied().chain([num_layers]);
    let cuts = before.zip(after).enumerate().filter(|(_, (before, after))| {
        let next = before.map_or(0, |before| before + 1);
        next < *after
    });
    let beside = cuts.flat_map(|(place, _)| [place.checked_sub(1), Some(place)]);
    beside.flatten().filter(|&layer| layer < origin.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against all ways to cut six layers, by looking at each retained layer's neighbours.
    #[test]
    fn layers_beside_cuts_have_lost_a_neighbour() {
        for kept in 0..1_u32 << 6 {
            let is_kept = |layer: usize| kept >> layer & 1 == 1;
            let origin: Vec<usize> = (0..6).filter(|&layer| is_kept(layer)).collect();
            let lost = |&layer: &usize| {
                layer > 0 && !is_kept(layer - 1) || layer < 5 && !is_kept(layer + 1)
            };
            let expected: BTreeSet<usize> =
                (0..origin.len()).filter(|&place| lost(&origin[place])).collect();
            assert_eq!(beside_cuts(&origin, 6), expected, "{origin:?}");
        }
    }

    #[test]
    fn the_highest_scores_get_adapters() {
        let check = |scores: &[f64], count: usize, expected: &[usize]| {
            let found: Vec<usize> = lora_layers_auto(scores, count).into_iter().collect();
            assert_eq!(found, expected);
        };
        check(&[3.0, 1.0, 2.0], 2, &[0, 2]);
        check(&[1.0, 1.0, 1.0], 2, &[0, 1]);
        check(&[-1.0, -2.0], 5, &[0, 1]);
        check(&[1.0, 2.0], 0, &[]);
        check(&[], 3, &[]);
    }
}
