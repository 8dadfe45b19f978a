//! The types of GGUF file that are written: which block format each tensor has in one.

use super::BlockFormat;
use crate::{Family, ModelConfig};

/// What a file's matrices are stored in, as llama.cpp names it. In those with `K` and in the smaller ones, some tensors have
/// more bits than most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the variants are llama.cpp's names")]
#[expect(missing_docs, reason = "the variants are llama.cpp's names")]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
}

impl FileType {
    /// All, from the largest file to the smallest of each width.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q5_K_S,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_K_M,
        Self::Q4_K_S,
        Self::Q4_1,
        Self::Q4_0,
    ];

    /// Its name in lower case, as in `q4_k_m`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6_K => "q6_k",
            Self::Q5_K_M => "q5_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q4_K_M => "q4_k_m",
            Self::Q4_K_S => "q4_k_s",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.name() == name)
    }

    /// llama.cpp's number for it.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// The format of most matrices.
    fn common(self) -> BlockFormat {
        match self {
            Self::F32 => BlockFormat::F32,
            Self::F16 => BlockFormat::F16,
            Self::BF16 => BlockFormat::BF16,
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q6_K => BlockFormat::Q6_K,
            Self::Q5_K_M | Self::Q5_K_S => BlockFormat::Q5_K,
            Self::Q5_1 => BlockFormat::Q5_1,
            Self::Q5_0 => BlockFormat::Q5_0,
            Self::Q4_K_M | Self::Q4_K_S => BlockFormat::Q4_K,
            Self::Q4_1 => BlockFormat::Q4_1,
            Self::Q4_0 => BlockFormat::Q4_0,
        }
    }
}

/// The formats of one model's tensors, as `llama_tensor_get_type` of llama.cpp's quantizer chooses them for the families
/// that are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixture {
    file_type: FileType,
    num_layers: usize,
    /// Whether the embedding is the head too.
    tied: bool,
    /// Whether v is small beside the rest, as in models of 70 B.
    small_v: bool,
}

impl Mixture {
    pub(super) fn new(file_type: FileType, config: &ModelConfig) -> Self {
        let grouped = match config.family {
            Family::Llama | Family::Mistral => config.num_heads != config.num_kv_heads,
            family => family == Family::Qwen2,
        };
        Self {
            file_type,
            num_layers: config.num_layers,
            tied: config.tied_head,
            small_v: config.num_layers == 80 && grouped,
        }
    }

    /// The format of the tensor that the file calls `name`, whose shape is given slowest dimension first.
    pub(super) fn format(&self, name: &str, shape: &[usize]) -> BlockFormat {
        match *shape {
            [_, columns] => fitting(self.of_matrix(name, columns), columns),
            _ => BlockFormat::F32,
        }
    }

    fn of_matrix(&self, name: &str, columns: usize) -> BlockFormat {
        let common = self.file_type.common();
        let (values, _) = common.block();
        if values == 1 {
            return common;
        }
        let is_head = name == "output.weight" || (self.tied && name == "token_embd.weight");
        match layer_and_matrix(name) {
            _ if is_head && (common == BlockFormat::Q8_0 || !columns.is_multiple_of(values)) => {
                BlockFormat::Q8_0
            }
            _ if is_head => BlockFormat::Q6_K,
            Some((layer, "attn_v.weight" | "attn_qkv.weight")) => match self.of_layer(layer, 4) {
                BlockFormat::Q4_K if self.small_v => BlockFormat::Q5_K,
                format => format,
            },
            Some((layer, "ffn_down.weight")) => self.of_layer(layer, self.num_layers / 8),
            _ => common,
        }
    }

    /// The format of v or of the projection down in a layer. An M file has more bits in the first and last eighth of the
    /// layers and in each third between, an S file of four bits in its `first` ones.
    fn of_layer(&self, layer: usize, first: usize) -> BlockFormat {
        let eighth = self.num_layers / 8;
        let outer = layer < eighth || layer >= 7 * self.num_layers / 8;
        let more_bits = outer || (layer - eighth) % 3 == 2;
        match self.file_type {
            FileType::Q4_K_M | FileType::Q5_K_M if more_bits => BlockFormat::Q6_K,
            FileType::Q4_K_S if layer < first => BlockFormat::Q5_K,
            other => other.common(),
        }
    }
}

/// `format`, or if rows are no whole number of its blocks, what llama.cpp takes for it.
fn fitting(format: BlockFormat, columns: usize) -> BlockFormat {
    let fits = |format: BlockFormat| columns.is_multiple_of(format.block().0);
    let smaller = match format {
        BlockFormat::Q4_K => BlockFormat::Q5_0,
        BlockFormat::Q5_K => BlockFormat::Q5_1,
        BlockFormat::Q6_K => BlockFormat::Q8_0,
        other => other,
    };
    [format, smaller].into_iter().find(|&format| fits(format)).unwrap_or(BlockFormat::F16)
}

/// Of `blk.3.attn_v.weight`, 3 and `attn_v.weight`.
fn layer_and_matrix(name: &str) -> Option<(usize, &str)> {
    let (layer, matrix) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, matrix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layers whose `matrix` has not the format of most, which is `common`.
    fn others(mixture: Mixture, matrix: &str, common: BlockFormat) -> Vec<(usize, BlockFormat)> {
        (0..mixture.num_layers)
            .map(|layer| (layer, mixture.format(&format!("blk.{layer}.{matrix}"), &[512, 1536])))
            .filter(|&(_, format)| format != common)
            .collect()
    }

    /// What llama.cpp's quantizer makes of models of so many layers.
    #[test]
    fn layers_with_more_bits() {
        let finer = |layers: &[usize], format: BlockFormat| -> Vec<_> {
            layers.iter().map(|&layer| (layer, format)).collect()
        };
        let of = |file_type| Mixture { file_type, num_layers: 30, tied: true, small_v: false };
        let m = finer(&[0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29], BlockFormat::Q6_K);
        for matrix in ["attn_v.weight", "ffn_down.weight"] {
            assert_eq!(others(of(FileType::Q4_K_M), matrix, BlockFormat::Q4_K), m);
            assert_eq!(others(of(FileType::Q5_K_M), matrix, BlockFormat::Q5_K), m);
            assert_eq!(others(of(FileType::Q5_K_S), matrix, BlockFormat::Q5_K), []);
            assert_eq!(others(of(FileType::Q4_0), matrix, BlockFormat::Q4_0), []);
        }
        let s = of(FileType::Q4_K_S);
        let first = |count| finer(&[0, 1, 2, 3][..count], BlockFormat::Q5_K);
        assert_eq!(others(s, "attn_v.weight", BlockFormat::Q4_K), first(4));
        assert_eq!(others(s, "ffn_down.weight", BlockFormat::Q4_K), first(3));
        assert_eq!(others(s, "ffn_up.weight", BlockFormat::Q4_K), []);
        let large = Mixture { num_layers: 80, small_v: true, ..of(FileType::Q4_K_M) };
        let v = others(large, "attn_v.weight", BlockFormat::Q6_K);
        assert_eq!(v.len(), 40);
        assert!(v.iter().all(|&(_, format)| format == BlockFormat::Q5_K));
    }

    #[test]
    fn heads_and_rows_that_do_not_fit() {
        let check = |file_type, tied, name: &str, columns, expected| {
            let mixture = Mixture { file_type, num_layers: 8, tied, small_v: false };
            assert_eq!(mixture.format(name, &[100, columns]), expected, "{file_type:?} {name}");
        };
        check(FileType::Q4_K_M, true, "token_embd.weight", 512, BlockFormat::Q6_K);
        check(FileType::Q4_K_M, true, "token_embd.weight", 576, BlockFormat::Q8_0);
        check(FileType::Q4_K_M, false, "token_embd.weight", 512, BlockFormat::Q4_K);
        check(FileType::Q4_0, false, "output.weight", 512, BlockFormat::Q6_K);
        check(FileType::Q4_0, false, "output.weight", 576, BlockFormat::Q8_0);
        check(FileType::Q8_0, false, "output.weight", 512, BlockFormat::Q8_0);
        check(FileType::BF16, false, "output.weight", 512, BlockFormat::BF16);
        for (file_type, expected) in [
            (FileType::Q4_K_S, BlockFormat::Q5_0),
            (FileType::Q5_K_S, BlockFormat::Q5_1),
            (FileType::Q6_K, BlockFormat::Q8_0),
        ] {
            check(file_type, false, "blk.4.attn_q.weight", 576, expected);
            check(file_type, false, "blk.4.attn_q.weight", 48, BlockFormat::F16);
        }
        check(FileType::F32, false, "blk.4.attn_q.weight", 48, BlockFormat::F32);
    }

    #[test]
    fn names() {
        for file_type in FileType::ALL {
            assert_eq!(FileType::from_name(file_type.name()), Some(file_type));
            assert_eq!(file_type.name(), format!("{file_type:?}").to_lowercase());
        }
        assert_eq!(FileType::from_name("q3_k_m"), None);
    }
}
