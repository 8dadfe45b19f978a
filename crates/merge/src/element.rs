//! The stored types that kernels read and write, and the one rounding between them and f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements that kernels work on at a time: those of a mask's word.
pub(crate) const LANES: usize = 64;

/// The same as f32, in two halves, each of which fills vectors.
pub(crate) type Wide = [[f32; LANES / 2]; 2];

/// A type that weights are stored in: f32, f16 or bf16.
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed {}

impl Element for f32 {}
impl Element for f16 {}
impl Element for bf16 {}

pub(crate) mod sealed {
    use super::{LANES, Wide};

    /// How a type is widened and rounded.
    pub trait Sealed: Sized {
        /// The element that is `lane` of `half` is number `half · PLACES.0 + lane · PLACES.1`.
        const PLACES: (usize, usize);

        /// The stored values as f32, exactly.
        fn widen(stored: &[Self; LANES]) -> Wide;

        /// f32 values rounded once, to nearest even; `stored` ones that were only widened come back
        /// bit for bit, and sums are no NaN.
        fn narrow(wide: &Wide, stored: &[Self; LANES]) -> [Self; LANES];
    }
}

impl sealed::Sealed for f32 {
    const PLACES: (usize, usize) = (LANES / 2, 1);

    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> Wide {
        bytemuck::cast(*stored)
    }

    #[inline(always)]
    fn narrow(wide: &Wide, _: &[Self; LANES]) -> [Self; LANES] {
        bytemuck::cast(*wide)
    }
}

// A bf16 is the upper half of an f32, so two of them in a u32 are widened in place: even ones by a
// shift, odd ones by a mask. (Little-endian, as all files are.)
impl sealed::Sealed for bf16 {
    const PLACES: (usize, usize) = (1, 2);

    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> Wide {
        let pairs: [u32; LANES / 2] = bytemuck::cast(*stored);
        let mut wide = [[0.0; LANES / 2]; 2];
        // Loops, since `map` of arrays this long does not become vector instructions.
        for lane in 0..LANES / 2 {
            wide[0][lane] = f32::from_bits(pairs[lane] << 16);
            wide[1][lane] = f32::from_bits(pairs[lane] & 0xffff_0000);
        }
        wide
    }

    #[inline(always)]
    fn narrow(wide: &Wide, _: &[Self; LANES]) -> [Self; LANES] {
        let ([even, odd], mut pairs) = (wide, [0_u32; LANES / 2]);
        for lane in 0..LANES / 2 {
            pairs[lane] = rounded(even[lane]) >> 16 | rounded(odd[lane]) & 0xffff_0000;
        }
        bytemuck::cast(pairs)
    }
}

/// Rounds to the upper sixteen bits: adds half of the last one kept, less one if that is even. What
/// has zeros in the lower sixteen keeps its upper ones, NaN too.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1))
}

impl sealed::Sealed for f16 {
    const PLACES: (usize, usize) = (LANES / 2, 1);

    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> Wide {
        let mut wide = [0.0; LANES];
        stored.convert_to_f32_slice(&mut wide);
        bytemuck::cast(wide)
    }

    #[inline(always)]
    fn narrow(wide: &Wide, stored: &[Self; LANES]) -> [Self; LANES] {
        let wide: &[f32; LANES] = bytemuck::cast_ref(wide);
        let mut narrow = [Self::ZERO; LANES];
        narrow.convert_from_f32_slice(wide);
        for (narrow, stored) in narrow.iter_mut().zip(stored) {
            // The processor would make a signalling NaN a quiet one.
            *narrow = if stored.is_nan() { *stored } else { *narrow };
        }
        narrow
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::sealed::Sealed;
    use super::*;

    fn check<E: Sealed + Copy>(values: &[E; LANES]) -> Vec<E> {
        E::narrow(&E::widen(values), values).to_vec()
    }

    proptest! {
        #[test]
        fn widening_is_undone(bits in prop::collection::vec(any::<u16>(), LANES)) {
            let short: [f16; LANES] = std::array::from_fn(|lane| f16::from_bits(bits[lane]));
            let brain: [bf16; LANES] = std::array::from_fn(|lane| bf16::from_bits(bits[lane]));
            prop_assert!(check(&short).iter().map(|x| x.to_bits()).eq(bits.iter().copied()));
            prop_assert!(check(&brain).iter().map(|x| x.to_bits()).eq(bits.iter().copied()));
            let wide: [f32; LANES] =
                brain.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16));
            prop_assert!(check(&wide).iter().map(|x| x.to_bits()).eq(wide.map(f32::to_bits)));
            let found = <bf16 as Sealed>::widen(&brain);
            let (of_half, of_lane) = <bf16 as Sealed>::PLACES;
            for half in 0..2 {
                for lane in 0..LANES / 2 {
                    let expected = wide[half * of_half + lane * of_lane];
                    prop_assert_eq!(found[half][lane].to_bits(), expected.to_bits());
                }
            }
        }

        #[test]
        fn bf16_rounds_as_half_does(bits in prop::collection::vec(any::<u32>(), LANES)) {
            let value = |bits: u32| Some(f32::from_bits(bits)).filter(|value| !value.is_nan());
            let values: [f32; LANES] = std::array::from_fn(|lane| value(bits[lane]).unwrap_or(1.0));
            let wide = [0, 1].map(|half| std::array::from_fn(|lane| values[half + 2 * lane]));
            let found = <bf16 as Sealed>::narrow(&wide, &[bf16::ZERO; LANES]);
            for (found, value) in found.into_iter().zip(values) {
                prop_assert_eq!(found.to_bits(), bf16::from_f32(value).to_bits());
            }
        }
    }
}
