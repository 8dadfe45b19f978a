//! The same-sign merge (method.md §6).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::element::{LANES, Wide};
use crate::{Element, Mask};

/// Elements a thread works on at a time.
const BLOCK: usize = 1 << 16;

/// A merged layer's weight, or a part of it, and which elements are kept.
#[derive(Debug, Clone, Copy)]
pub struct Donor<'a, E> {
    /// `W_j`, `[n]`.
    pub weight: &'a [E],
    /// `S_j` of the whole weight.
    pub kept: &'a Mask,
}

/// Adds to each receiver element the kept donor elements of the same sign:
///
/// ```text
/// W'[n] = W[n] + Σ_j S_j[n] · W_j[n] · [ W[n] · W_j[n] > 0 ]
/// ```
///
/// Donors are added in the order given. Signs are those of the original `W`; zero agrees with
/// nothing. Arithmetic in f32, rounded once to the stored type; an element that nothing is added
/// to keeps its bits. One pass over receiver and donors.
///
/// # Panics
///
/// If lengths differ.
///
/// # Examples
///
/// ```
/// use gradpruner_merge::{Donor, Mask, merge_same_sign};
///
/// let kept = Mask::from_iter([true, true, false]);
/// let donor = Donor { weight: &[0.5, -0.5, 0.5], kept: &kept };
/// assert_eq!(merge_same_sign(&[1.0, 1.0, 1.0], &[donor]), [1.5, 1.0, 1.0]);
/// ```
pub fn merge_same_sign<E: Element>(receiver: &[E], donors: &[Donor<'_, E>]) -> Vec<E> {
    for donor in donors {
        assert_eq!(donor.kept.len(), receiver.len(), "a mask as long as the receiver");
    }
    let mut merged = vec![E::default(); receiver.len()];
    merge_part(0, receiver, donors, &mut merged);
    merged
}

/// [`merge_same_sign`] for the elements from `first` on, into memory that is there already.
///
/// `receiver`, each donor's `weight` and `merged` are these elements alone; the masks are whole.
///
/// # Panics
///
/// If lengths differ, a mask ends before the part does, or `first` is no multiple of 64.
pub fn merge_part<E: Element>(
    first: usize,
    receiver: &[E],
    donors: &[Donor<'_, E>],
    merged: &mut [E],
) {
    assert_eq!(first % LANES, 0, "parts begin at whole words of the masks");
    assert_eq!(merged.len(), receiver.len(), "the result is as long as the receiver");
    for donor in donors {
        assert_eq!(donor.weight.len(), receiver.len(), "a donor as long as the receiver");
        assert!(first + receiver.len() <= donor.kept.len(), "a mask of the whole weight");
    }
    merged.par_chunks_mut(BLOCK).enumerate().for_each(|(block, merged)| {
        let from = block * BLOCK;
        Arch::new().dispatch(Block { first, from, receiver, donors, merged });
    });
}

/// Some elements, to be merged with whatever vectors there are.
struct Block<'a, E> {
    /// The part's first element in the weight.
    first: usize,
    /// The block's first element in the part.
    from: usize,
    /// The part.
    receiver: &'a [E],
    donors: &'a [Donor<'a, E>],
    /// The block.
    merged: &'a mut [E],
}

impl<E: Element> WithSimd for Block<'_, E> {
    type Output = ();

    // A closure would not be inlined where the instructions are chosen, and so not use them.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.merge(simd);
    }
}

impl<E: Element> Block<'_, E> {
    #[inline(always)]
    fn merge<S: Simd>(self, simd: S) {
        let Self { first, from, receiver, donors, merged } = self;
        let count = merged.len();
        for (at, merged) in (from..from + count).step_by(LANES).zip(merged.chunks_mut(LANES)) {
            let own = lanes(receiver, at);
            let wide = E::widen(&own);
            let mut sums = wide;
            for donor in donors {
                let kept = donor.kept.words()[(first + at) / LANES];
                let theirs = E::widen(&lanes(donor.weight, at));
                add_agreeing::<S, E>(simd, &mut sums, (&wide, &theirs), kept);
            }
            let rounded = E::narrow(&sums, &own);
            match merged.as_chunks_mut::<LANES>().0 {
                [whole] => *whole = rounded,
                _ => merged.copy_from_slice(&rounded[..merged.len()]),
            }
        }
    }
}

/// Adds those of `theirs` that are kept and of the sign of `own`.
#[inline(always)]
fn add_agreeing<S: Simd, E: Element>(
    simd: S,
    sums: &mut Wide,
    (own, theirs): (&Wide, &Wide),
    kept: u64,
) {
    let (of_half, of_lane) = E::PLACES;
    let (bits, _) = S::as_simd_u32s(if of_lane == 1 { &EVERY } else { &EVERY_OTHER });
    let zero = simd.splat_f32s(0.0);
    for half in 0..2 {
        let (sums, _) = S::as_mut_simd_f32s(&mut sums[half]);
        let (own, _) = S::as_simd_f32s(&own[half]);
        let (theirs, _) = S::as_simd_f32s(&theirs[half]);
        for vector in 0..sums.len() {
            let (sum, own, theirs) = (&mut sums[vector], own[vector], theirs[vector]);
            let word = kept >> (half * of_half + vector * S::F32_LANES * of_lane);
            let unkept = simd.equal_u32s(
                simd.and_u32s(simd.splat_u32s(word as u32), bits[0]),
                simd.splat_u32s(0),
            );
            let agree = simd.or_m32s(
                simd.and_m32s(
                    simd.greater_than_f32s(own, zero),
                    simd.greater_than_f32s(theirs, zero),
                ),
                simd.and_m32s(simd.less_than_f32s(own, zero), simd.less_than_f32s(theirs, zero)),
            );
            let added = simd.select_f32s(agree, simd.add_f32s(*sum, theirs), *sum);
            *sum = simd.select_f32s(unkept, *sum, added);
        }
    }
}

/// The bit of each lane where lanes are neighbours, and where every other element is a lane.
const EVERY: [u32; 16] = bits(1);
const EVERY_OTHER: [u32; 16] = bits(2);

const fn bits(step: usize) -> [u32; 16] {
    let mut bits = [0; 16];
    let mut lane = 0;
    while lane < bits.len() {
        bits[lane] = 1 << (step * lane);
        lane += 1;
    }
    bits
}

/// The elements from `at` on; zeros, which agree with nothing, beyond the last.
#[inline(always)]
fn lanes<E: Element>(elements: &[E], at: usize) -> [E; LANES] {
    let rest = &elements[at..];
    if let Some(whole) = rest.first_chunk::<LANES>() {
        return *whole;
    }
    let mut some = [E::default(); LANES];
    some[..rest.len()].copy_from_slice(rest);
    some
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        #[test]
        fn agrees_with_reference(
            elements in prop::collection::vec(
                (-2..3_i8, -2..3_i8, any::<bool>(), -2..3_i8, any::<bool>()), 0..200),
            cut in 0..3_usize,
        ) {
            let column = |pick: fn(&(i8, i8, bool, i8, bool)) -> i8| -> Vec<f32> {
                elements.iter().map(|row| f32::from(pick(row)) * 0.7).collect()
            };
            let (receiver, one, two) = (column(|r| r.0), column(|r| r.1), column(|r| r.3));
            let kept_one: Mask = elements.iter().map(|row| row.2).collect();
            let kept_two: Mask = elements.iter().map(|row| row.4).collect();
            let donors = [
                Donor { weight: &one, kept: &kept_one },
                Donor { weight: &two, kept: &kept_two },
            ];
            let expected = reference::merge_same_sign(&receiver, &donors);
            prop_assert_eq!(merge_same_sign(&receiver, &donors), expected.clone());

            // In two parts.
            let cut = (cut * 64).min(receiver.len() / 64 * 64);
            let mut found = vec![0.0; receiver.len()];
            for range in [0..cut, cut..receiver.len()] {
                let donors = donors.map(|donor| {
                    Donor { weight: &donor.weight[range.clone()], ..donor }
                });
                let (first, part) = (range.start, &receiver[range.clone()]);
                merge_part(first, part, &donors, &mut found[range]);
            }
            prop_assert_eq!(found, expected);
        }

        // Of all bit patterns of the short types, rounding included.
        #[test]
        fn agrees_with_reference_in_stored_types(
            elements in prop::collection::vec((any::<u16>(), any::<u16>(), any::<bool>()), 0..200),
        ) {
            let column = |pick: fn(&(u16, u16, bool)) -> u16| -> Vec<u16> {
                elements.iter().map(pick).collect()
            };
            let (receiver, weight) = (column(|row| row.0), column(|row| row.1));
            let kept: Mask = elements.iter().map(|row| row.2).collect();
            macro_rules! check {
                ($stored:ty) => {
                    let stored = |bits: &[u16]| -> Vec<$stored> {
                        bits.iter().map(|&bits| <$stored>::from_bits(bits)).collect()
                    };
                    let (receiver, weight) = (stored(&receiver), stored(&weight));
                    let found =
                        merge_same_sign(&receiver, &[Donor { weight: &weight, kept: &kept }]);
                    for (at, found) in found.into_iter().enumerate() {
                        let (own, theirs) = (receiver[at].to_f32(), weight[at].to_f32());
                        let agree = (own > 0.0 && theirs > 0.0) || (own < 0.0 && theirs < 0.0);
                        let expected = match kept.get(at) && agree {
                            true => <$stored>::from_f32(own + theirs),
                            false => receiver[at],
                        };
                        prop_assert_eq!(found.to_bits(), expected.to_bits());
                    }
                };
            }
            check!(bf16);
            check!(f16);
        }

        // Law: merging nothing changes no byte.
        #[test]
        fn nothing_kept_nothing_changed(weight in prop::collection::vec(any::<f32>(), 0..140)) {
            let kept: Mask = weight.iter().map(|_| false).collect();
            let merged = merge_same_sign(&weight, &[Donor { weight: &weight, kept: &kept }]);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&merged), bits(&weight));
        }
    }

    #[test]
    fn tiny_values_agree_too() {
        let kept = Mask::from_iter([true]);
        let donor = Donor { weight: &[1e-30], kept: &kept };
        assert_eq!(merge_same_sign(&[1e-30_f32], &[donor]), [2e-30]);
    }
}
