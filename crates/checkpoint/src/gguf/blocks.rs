//! The block formats of GGUF: how packed bytes stand for f32 values.
//!
//! Each format is one function from a block's bytes to its values, named as ggml names them.

use half::f16;

use crate::{Dtype, widen};

/// How a tensor's values are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the variants are ggml's names")]
#[expect(missing_docs, reason = "the variants are ggml's names")]
pub enum BlockFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl BlockFormat {
    /// The format with ggml's type number `code`.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// ggml's type number.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// Values in a block and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bits a value takes; of two quantisations of one matrix, that with more is the finer.
    pub fn bits_per_value(self) -> f64 {
        let (values, bytes) = self.block();
        bytes as f64 * 8.0 / values as f64
    }

    /// Bytes of `elements` values; `None` if they are no whole number of blocks.
    pub fn size_bytes(self, elements: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        if elements.is_multiple_of(values) { (elements / values).checked_mul(bytes) } else { None }
    }
}

/// The f32 values that packed blocks stand for.
///
/// # Panics
///
/// If `bytes` is not a whole number of blocks.
pub fn dequantize(bytes: &[u8], format: BlockFormat) -> Vec<f32> {
    let unpack: fn(&[u8], &mut Vec<f32>) = match format {
        BlockFormat::F32 => return widen(bytes, Dtype::F32),
        BlockFormat::F16 => return widen(bytes, Dtype::F16),
        BlockFormat::BF16 => return widen(bytes, Dtype::BF16),
        BlockFormat::Q4_0 => q4_0,
        BlockFormat::Q4_1 => q4_1,
        BlockFormat::Q5_0 => q5_0,
        BlockFormat::Q5_1 => q5_1,
        BlockFormat::Q8_0 => q8_0,
        BlockFormat::Q2_K => q2_k,
        BlockFormat::Q3_K => q3_k,
        BlockFormat::Q4_K => q4_k,
        BlockFormat::Q5_K => q5_k,
        BlockFormat::Q6_K => q6_k,
    };
    let (values, size) = format.block();
    assert_eq!(bytes.len() % size, 0, "bytes must hold whole blocks");
    let mut out = Vec::with_capacity(bytes.len() / size * values);
    for block in bytes.chunks_exact(size) {
        unpack(block, &mut out);
    }
    out
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn low(byte: u8) -> u8 {
    byte & 15
}

fn high(byte: u8) -> u8 {
    byte >> 4
}

fn q4_0(block: &[u8], out: &mut Vec<f32>) {
    let (scale, packed) = (half_at(block, 0), &block[2..]);
    out.extend(packed.iter().map(|&q| scale * (f32::from(low(q)) - 8.0)));
    out.extend(packed.iter().map(|&q| scale * (f32::from(high(q)) - 8.0)));
}

fn q4_1(block: &[u8], out: &mut Vec<f32>) {
    let (scale, min, packed) = (half_at(block, 0), half_at(block, 2), &block[4..]);
    out.extend(packed.iter().map(|&q| scale * f32::from(low(q)) + min));
    out.extend(packed.iter().map(|&q| scale * f32::from(high(q)) + min));
}

/// The 32 five-bit values of a block: four bits in `packed`, the fifth in `fifths`.
fn five_bits(fifths: &[u8], packed: &[u8]) -> [u8; 32] {
    let fifths = u32::from_le_bytes([fifths[0], fifths[1], fifths[2], fifths[3]]);
    std::array::from_fn(|i| {
        let four = if i < 16 { low(packed[i]) } else { high(packed[i - 16]) };
        four | ((((fifths >> i) & 1) as u8) << 4)
    })
}

fn q5_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(five_bits(&block[2..6], &block[6..]).map(|q| scale * (f32::from(q) - 16.0)));
}

fn q5_1(block: &[u8], out: &mut Vec<f32>) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    out.extend(five_bits(&block[4..8], &block[8..]).map(|q| scale * f32::from(q) + min));
}

fn q8_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(block[2..].iter().map(|&q| scale * f32::from(q.cast_signed())));
}

fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, packed) = (&block[..16], &block[16..80]);
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    for (part, &packed_scales) in scales.iter().enumerate() {
        let (half, shift, sixteen) = (part / 8, part % 8 / 2 * 2, part % 2 * 16);
        let d = scale * f32::from(low(packed_scales));
        let m = min * f32::from(high(packed_scales));
        let bytes = &packed[half * 32 + sixteen..][..16];
        out.extend(bytes.iter().map(|&q| d * f32::from((q >> shift) & 3) - m));
    }
}

fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (thirds, packed, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for part in 0..16 {
        let (half, chunk, sixteen) = (part / 8, part % 8 / 2, part % 2 * 16);
        let four = if part < 8 { low(scales[part]) } else { high(scales[part - 8]) };
        let two = (scales[8 + part % 4] >> (part / 4 * 2)) & 3;
        let d = scale * (f32::from(four | (two << 4)) - 32.0);
        let third = 1 << (half * 4 + chunk);
        out.extend((sixteen..sixteen + 16).map(|i| {
            let two_bits = (packed[half * 32 + i] >> (chunk * 2)) & 3;
            let minus = if thirds[i] & third == 0 { 4.0 } else { 0.0 };
            d * (f32::from(two_bits) - minus)
        }));
    }
}

/// The six-bit scale and minimum of sub-block `part` (of 8) in `Q4_K` and `Q5_K`.
fn scale_and_min(scales: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (scales[part] & 63, scales[part + 4] & 63)
    } else {
        let four = scales[part + 4];
        (low(four) | ((scales[part - 4] >> 6) << 4), high(four) | ((scales[part] >> 6) << 4))
    }
}

fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for part in 0..8 {
        let (d, m) = scale_and_min(scales, part);
        let (d, m) = (scale * f32::from(d), min * f32::from(m));
        let bytes = &block[16 + part / 2 * 32..][..32];
        let nibble = if part % 2 == 0 { low } else { high };
        out.extend(bytes.iter().map(|&q| d * f32::from(nibble(q)) - m));
    }
}

fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let fifths = &block[16..48];
    for part in 0..8 {
        let (d, m) = scale_and_min(scales, part);
        let (d, m) = (scale * f32::from(d), min * f32::from(m));
        let bytes = &block[48 + part / 2 * 32..][..32];
        let nibble = if part % 2 == 0 { low } else { high };
        out.extend(
            bytes
                .iter()
                .zip(fifths)
                .map(|(&q, &fifth)| d * f32::from(nibble(q) | (((fifth >> part) & 1) << 4)) - m),
        );
    }
}

fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (lows, highs, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for half in 0..2 {
        let (lows, highs) = (&lows[half * 64..][..64], &highs[half * 32..][..32]);
        for quarter in 0..4 {
            let nibble = if quarter < 2 { low } else { high };
            out.extend((0..32).map(|i| {
                let two = (highs[i] >> (quarter * 2)) & 3;
                let q = nibble(lows[quarter % 2 * 32 + i]) | (two << 4);
                let d = scales[half * 8 + quarter * 2 + i / 16].cast_signed();
                scale * f32::from(d) * (f32::from(q) - 32.0)
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::narrow;

    #[test]
    fn golden_blocks() {
        let file = testkit::fixture("gguf_blocks.safetensors");
        for (name, format) in [
            ("Q4_0", BlockFormat::Q4_0),
            ("Q4_1", BlockFormat::Q4_1),
            ("Q5_0", BlockFormat::Q5_0),
            ("Q5_1", BlockFormat::Q5_1),
            ("Q8_0", BlockFormat::Q8_0),
            ("Q2_K", BlockFormat::Q2_K),
            ("Q3_K", BlockFormat::Q3_K),
            ("Q4_K", BlockFormat::Q4_K),
            ("Q5_K", BlockFormat::Q5_K),
            ("Q6_K", BlockFormat::Q6_K),
        ] {
            let (_, packed) = testkit::tensor_bytes(&file, &format!("{name}.raw"));
            let (_, expected) = testkit::tensor_f32(&file, &format!("{name}.f32"));
            assert_eq!(format.size_bytes(expected.len()), Some(packed.len()), "{name}");
            assert_eq!(dequantize(&packed, format), expected, "{name}");
        }
    }

    #[test]
    fn plain_floats() {
        let values = [1.0_f32, -2.5, 0.0];
        for (format, dtype) in [
            (BlockFormat::F32, Dtype::F32),
            (BlockFormat::F16, Dtype::F16),
            (BlockFormat::BF16, Dtype::BF16),
        ] {
            assert_eq!(dequantize(&narrow(&values, dtype), format), values);
        }
    }
}
