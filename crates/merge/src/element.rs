//! The stored types that kernels read and write, and the one rounding between them and f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements that kernels work on at a time: those of a mask's word.
pub(crate) const LANES: usize = 64;

/// A type that weights are stored in: f32, f16 or bf16.
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed {
    /// The stored values as f32, exactly.
    #[doc(hidden)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES];

    /// f32 values, none of them NaN, as stored ones: rounded once, to nearest even.
    #[doc(hidden)]
    fn narrow(wide: &[f32; LANES]) -> [Self; LANES];
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        *stored
    }

    #[inline(always)]
    fn narrow(wide: &[f32; LANES]) -> [Self; LANES] {
        *wide
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        stored.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16))
    }

    // `half` looks at every value for NaN; without that, this is a handful of vector instructions.
    #[inline(always)]
    fn narrow(wide: &[f32; LANES]) -> [Self; LANES] {
        wide.map(|value| {
            let bits = value.to_bits();
            // Half of the last bit kept, less one if that bit is even.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            bf16::from_bits((rounded >> 16) as u16)
        })
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        let mut wide = [0.0; LANES];
        stored.convert_to_f32_slice(&mut wide);
        wide
    }

    #[inline(always)]
    fn narrow(wide: &[f32; LANES]) -> [Self; LANES] {
        let mut stored = [Self::ZERO; LANES];
        stored.convert_from_f32_slice(wide);
        stored
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bf16_rounds_as_half_does(bits in prop::collection::vec(any::<u32>(), LANES)) {
            let mut wide = [0.0; LANES];
            for (to, bits) in wide.iter_mut().zip(bits) {
                *to = Some(f32::from_bits(bits)).filter(|value| !value.is_nan()).unwrap_or(1.0);
            }
            let found = <bf16 as Element>::narrow(&wide);
            for (found, wide) in found.into_iter().zip(wide) {
                prop_assert_eq!(found.to_bits(), bf16::from_f32(wide).to_bits());
            }
        }
    }
}
