//! The three float types weights are stored in, and the one rounding between them and f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// A float type that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an f32.
    BF16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name `config.json` uses: `float32`, `float16` or `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// The inverse of [`Dtype::torch_name`]; takes a leading `torch.` too.
    pub fn from_torch_name(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" | "float" => Some(Self::F32),
            "float16" | "half" => Some(Self::F16),
            "bfloat16" => Some(Self::BF16),
            _ => None,
        }
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::BF16 => safetensors::Dtype::BF16,
        }
    }
}

/// Little-endian stored values as f32: exact for every stored type.
///
/// `bytes`: a whole number of elements of `dtype`. The bytes need not be aligned.
///
/// # Panics
///
/// If `bytes` is not a whole number of elements.
pub fn widen(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    assert_eq!(bytes.len() % dtype.size(), 0, "bytes must hold whole elements");
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect(),
        Dtype::F16 => {
            let halves: Vec<f16> =
                bytes.as_chunks().0.iter().map(|&chunk| f16::from_le_bytes(chunk)).collect();
            let mut wide = vec![0.0; halves.len()];
            halves.convert_to_f32_slice(&mut wide);
            wide
        }
        Dtype::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&chunk| f32::from_bits(u32::from(u16::from_le_bytes(chunk)) << 16))
            .collect(),
    }
}

/// f32 values as little-endian bytes of `dtype`, rounded once, to nearest even.
pub fn narrow(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => {
            values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn widening_undoes_nothing(values in prop::collection::vec(any::<u16>(), 0..40)) {
            for dtype in [Dtype::BF16, Dtype::F16] {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let wide = widen(&bytes, dtype);
                prop_assume!(wide.iter().all(|value| !value.is_nan()));
                prop_assert_eq!(narrow(&wide, dtype), bytes);
            }
        }
    }

    #[test]
    fn rounds_ties_to_even() {
        // 1 + 2^-8 lies halfway between two bf16 values; the even one is 1.
        assert_eq!(widen(&narrow(&[1.0 + 1.0 / 256.0], Dtype::BF16), Dtype::BF16), [1.0]);
        assert_eq!(
            widen(&narrow(&[1.0 + 3.0 / 256.0], Dtype::BF16), Dtype::BF16),
            [1.0 + 4.0 / 256.0]
        );
    }
}
