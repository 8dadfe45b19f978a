//! f32 values as packed blocks: the way back from `blocks`, as ggml's reference code goes it without an importance matrix.

mod k;
mod lanes;
mod legacy;

use half::f16;

use super::BlockFormat;
use crate::{Dtype, narrow};

/// No block's scale, which is an f16, holds more; sums of what is smaller stay finite where they count.
const LARGEST: f32 = 1e9;

/// Packs f32 values; `None` if blocks cannot hold one of them, since it is infinite, NaN or too large for an f16 scale.
///
/// # Panics
///
/// If the values are no whole number of blocks, or the format is `Q2_K` or `Q3_K`, which are only read.
pub(super) fn quantize(values: &[f32], format: BlockFormat) -> Option<Vec<u8>> {
    let pack: fn(&[f32], &mut Vec<u8>) = match format {
        BlockFormat::F32 => return Some(narrow(values, Dtype::F32)),
        BlockFormat::F16 => return Some(narrow(values, Dtype::F16)),
        BlockFormat::BF16 => return Some(narrow(values, Dtype::BF16)),
        BlockFormat::Q4_0 => legacy::q4_0,
        BlockFormat::Q4_1 => legacy::q4_1,
        BlockFormat::Q5_0 => legacy::q5_0,
        BlockFormat::Q5_1 => legacy::q5_1,
        BlockFormat::Q8_0 => legacy::q8_0,
        BlockFormat::Q4_K => k::q4_k,
        BlockFormat::Q5_K => k::q5_k,
        BlockFormat::Q6_K => k::q6_k,
        BlockFormat::Q2_K | BlockFormat::Q3_K => panic!("{format:?} is only read"),
    };
    let (count, size) = format.block();
    assert_eq!(values.len() % count, 0, "values must fill whole blocks");
    if !values.iter().all(|x| x.abs() <= LARGEST) {
        return None; // Nor is NaN below it.
    }
    let mut out = Vec::with_capacity(values.len() / count * size);
    values.chunks_exact(count).for_each(|block| pack(block, &mut out));
    out.chunks_exact(size).all(|block| has_finite_scales(block, format)).then_some(out)
}

fn has_finite_scales(block: &[u8], format: BlockFormat) -> bool {
    let scales: &[usize] = match format {
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
        BlockFormat::Q6_K => &[208],
        _ => &[0],
    };
    scales.iter().all(|&at| f16::from_le_bytes([block[at], block[at + 1]]).is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::dequantize;

    const FORMATS: [BlockFormat; 8] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4_K,
        BlockFormat::Q5_K,
        BlockFormat::Q6_K,
    ];

    /// The blocks are ggml's own, of weights and of the hard cases that `gguf_quantized.py` lists.
    #[test]
    fn golden_blocks() {
        let file = testkit::fixture("gguf_quantized.safetensors");
        let (_, values) = testkit::tensor_f32(&file, "values");
        for format in FORMATS {
            let (_, expected) = testkit::tensor_bytes(&file, &format!("{format:?}"));
            let found = quantize(&values, format).unwrap();
            assert_eq!(found.len(), expected.len());
            let size = format.block().1;
            for (at, (found, expected)) in found.chunks(size).zip(expected.chunks(size)).enumerate()
            {
                assert_eq!(found, expected, "{format:?}, block {at}");
            }
        }
    }

    #[test]
    fn what_no_block_holds_is_refused() {
        for format in FORMATS {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -3e8] {
                let mut values = vec![0.5; 512];
                values[300] = odd;
                assert_eq!(quantize(&values, format), None, "{format:?} {odd}");
            }
            assert!(quantize(&[-6e4; 256], format).is_some());
        }
    }

    proptest! {
        /// Two steps: half of one by rounding, the rest where a finer scale cuts off the largest, and by the six or eight
        /// bits of the scales.
        #[test]
        fn values_come_back_within_two_steps(
            values in prop::collection::vec(-1.0_f32..1.0, 256),
            (offset, scale) in (-1.0_f32..1.0, 0.01_f32..100.0),
            (place, outlier) in (0..256_usize, -10.0_f32..10.0),
        ) {
            let mut values: Vec<_> = values.iter().map(|x| (x + offset) * scale).collect();
            values[place] *= outlier;
            let largest = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for format in FORMATS {
                let levels = match format {
                    BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4_K => 15.0,
                    BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q5_K => 31.0,
                    BlockFormat::Q6_K => 63.0,
                    _ => 255.0,
                };
                let found = dequantize(&quantize(&values, format).unwrap(), format);
                for (x, y) in values.iter().zip(found) {
                    let error = (x - y).abs();
                    prop_assert!(error <= 2.0 * 2.0 * largest / levels, "{format:?}: {x} is {y}");
                }
            }
        }
    }
}
