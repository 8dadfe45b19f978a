//! NF4, the four-bit type of `QLoRA` (Dettmers et al., arXiv 2305.14314), as bitsandbytes stores it.
//!
//! Each run of 64 elements has a scale, the largest of their magnitudes `s`; an element is `s · v`, with `v` the nearest of 16
//! values between −1 and 1, the quantiles of a normal distribution. Two elements are a byte, the first in its high half.

/// Elements of a scale.
pub const NF4_BLOCK: usize = 64;

/// The 16 values, as bitsandbytes has them.
const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Both values of each byte.
pub(crate) type Pairs = [[f32; 2]; 256];

const PAIRS: Pairs = pairs(VALUES);

/// Both values of each byte, of 16 values.
pub(crate) const fn pairs(values: [f32; 16]) -> Pairs {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [values[byte >> 4], values[byte & 15]];
        byte += 1;
    }
    pairs
}

/// Half-way points between neighbouring values: what is above is nearer to the upper one.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut at = 0;
    while at < 15 {
        middles[at] = f64::midpoint(VALUES[at] as f64, VALUES[at + 1] as f64) as f32;
        at += 1;
    }
    middles
};

/// Values in four bits: `elements / 2` bytes and `elements / 64` scales.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Nf4 {
    /// Two elements a byte.
    pub codes: Vec<u8>,
    /// One for each [`NF4_BLOCK`] elements.
    pub scales: Vec<f32>,
}

impl Nf4 {
    /// Adds values, a whole number of blocks; whatever is over is left out.
    ///
    /// # Errors
    ///
    /// The first value that is not finite.
    pub fn extend(&mut self, values: &[f32]) -> Result<(), f32> {
        self.codes.reserve(values.len() / 2);
        self.scales.reserve(values.len() / NF4_BLOCK);
        for block in values.as_chunks::<NF4_BLOCK>().0 {
            if let Some(&bad) = block.iter().find(|value| !value.is_finite()) {
                return Err(bad);
            }
            let scale = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            // Of a block of zeros, zero; so small a scale that its inverse overflows is as good as zero.
            let inverse = Some(1.0 / scale).filter(|inverse| inverse.is_finite()).unwrap_or(0.0);
            let codes = block.as_chunks::<2>().0.iter();
            self.codes.extend(
                codes.map(|[first, second]| {
                    nearest(first * inverse) << 4 | nearest(second * inverse)
                }),
            );
            self.scales.push(scale);
        }
        Ok(())
    }

    /// Writes the values of whole blocks, from block `first` on, as many as `out` has room for.
    pub fn values(&self, first: usize, out: &mut [f32]) {
        let codes = self.codes.as_chunks::<{ NF4_BLOCK / 2 }>().0.iter().skip(first);
        let blocks = codes.zip(self.scales.iter().skip(first));
        for (out, (codes, scale)) in out.as_chunks_mut::<NF4_BLOCK>().0.iter_mut().zip(blocks) {
            widen_block(&PAIRS, codes, *scale, out);
        }
    }
}

/// Writes the values of one block, two a byte.
#[inline]
pub(crate) fn widen_block(pairs: &Pairs, codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *out = pairs[code as usize].map(|value| value * scale);
    }
}

/// The number of the value nearest to `x`, the lower one half-way between two.
fn nearest(x: f32) -> u8 {
    let mut code = 0;
    for middle in MIDDLES {
        code += u8::from(x > middle);
    }
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Weights;

    fn quantised(values: &[f32]) -> Nf4 {
        let mut found = Nf4::default();
        found.extend(values).unwrap();
        found
    }

    /// Codes, scales and values byte for byte as bitsandbytes has them; a block of zeros has no codes that mean anything.
    #[test]
    fn golden_blocks() {
        let file = testkit::fixture("nf4.safetensors");
        let [(_, values), (_, scales), (_, back)] =
            ["values", "scales", "back"].map(|name| testkit::tensor_f32(&file, name));
        let weights = Weights::open_file(&file).unwrap();
        let codes = weights.get("codes").unwrap();
        let found = quantised(&values);
        assert_eq!(found.scales, scales);
        let blocks = found.codes.chunks(NF4_BLOCK / 2).zip(codes.bytes().chunks(NF4_BLOCK / 2));
        for ((found, expected), _) in blocks.zip(&scales).filter(|(_, scale)| **scale > 0.0) {
            assert_eq!(found, expected);
        }
        let mut out = vec![1.0; values.len()];
        found.values(0, &mut out);
        assert_eq!(out, back);
        let mut later = vec![1.0; 2 * NF4_BLOCK];
        found.values(3, &mut later);
        assert_eq!(later, back[3 * NF4_BLOCK..5 * NF4_BLOCK]);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = [0.5; NF4_BLOCK];
            values[7] = bad;
            let found = Nf4::default().extend(&values).unwrap_err();
            assert!(found.to_bits() == bad.to_bits());
        }
        // Smaller than the smallest number with an inverse.
        let tiny = quantised(&[1e-40; NF4_BLOCK]);
        let mut out = [1.0; NF4_BLOCK];
        tiny.values(0, &mut out);
        assert_eq!(out, [0.0; NF4_BLOCK]);
    }

    proptest! {
        /// Against plain search for the nearest value, and again from what comes back.
        #[test]
        fn every_element_is_the_nearest(values in prop::collection::vec(-8.0_f32..8.0, 2 * NF4_BLOCK)) {
            let found = quantised(&values);
            let mut back = vec![0.0; values.len()];
            found.values(0, &mut back);
            for (number, (value, back)) in values.iter().zip(&back).enumerate() {
                let scale = found.scales[number / NF4_BLOCK];
                let apart = |of: f32| (f64::from(*value) - f64::from(of * scale)).abs();
                let least = VALUES.iter().map(|&of| apart(of)).fold(f64::INFINITY, f64::min);
                // Between two values that are as near to within rounding, either will do.
                prop_assert!(apart(back / scale) <= least + 1e-6 * f64::from(scale));
            }
            prop_assert_eq!(quantised(&back), found);
        }
    }
}
