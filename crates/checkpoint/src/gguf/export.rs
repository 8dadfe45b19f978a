//! A folder in Hugging Face layout as a GGUF file, as llama.cpp's own converter writes it.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::convert::gguf_name;
use super::file_type::Mixture;
use super::quantize::quantize;
use super::vocabulary::vocabulary;
use super::writer::{GgufSpec, Metadata, write};
use super::{BlockFormat, FileType};
use crate::{
    Checkpoint, CheckpointError, Dtype, Family, ModelConfig, Module, Norms, Result, RopeScaling,
    TensorView,
};

/// What [`export`] made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ExportReport {
    pub architecture: String,
    pub num_layers: usize,
    pub parameters: u64,
    pub format: String,
    pub size_bytes: u64,
}

/// Turns the folder of a Llama, Mistral, Qwen2 or Qwen3 model into the GGUF file `target`: its configuration, tokenizer and
/// chat template as metadata, matrices as llama.cpp stores them in a file of `file_type`, all else in F32.
///
/// Rows of q and k are put into rotary pairs where llama.cpp wants them so. A matrix whose rows are no whole number of blocks
/// is stored in smaller blocks, or in F16. `observe` sees how many of how many tensors are written.
///
/// # Errors
///
/// If the model or its tokenizer is of a kind that is not written, a matrix to be quantised holds a number that is not
/// finite, `target` exists, or the disk refuses.
pub fn export(
    folder: &Path,
    target: &Path,
    file_type: FileType,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<ExportReport> {
    let checkpoint = Checkpoint::open(folder)?;
    let config = checkpoint.config()?;
    let source = Source { checkpoint: &checkpoint, config, folder };
    let architecture = source.architecture()?;
    let mut metadata = source.metadata(architecture, file_type);
    metadata.extend(vocabulary(folder, config)?);
    let mut names: HashMap<String, String> = HashMap::new();
    let mut specs = Vec::new();
    if let Some(factors) = source.rope_factors() {
        let (name, shape) = ("rope_freqs.weight".to_owned(), vec![factors.len()]);
        specs.push(GgufSpec { name, shape, format: BlockFormat::F32 });
    }
    let mixture = Mixture::new(file_type, config);
    for (name, shape) in config.tensors() {
        let stored = gguf_name(&name);
        let format = mixture.format(&stored, &shape);
        specs.push(GgufSpec { name: stored.clone(), shape, format });
        names.insert(stored, name);
    }
    let (total, mut done) = (specs.len(), 0);
    write(target, &metadata, &specs, &mut |spec| {
        observe(done, total);
        done += 1;
        if let Some(name) = names.get(&spec.name) {
            return source.tensor(name, spec.format);
        }
        let factors = source.rope_factors().unwrap_or_default();
        Ok(crate::narrow(&factors, Dtype::F32))
    })?;
    Ok(ExportReport {
        architecture: architecture.to_owned(),
        num_layers: config.num_layers,
        parameters: config.parameters(),
        format: file_type.name().to_owned(),
        size_bytes: fs_err::metadata(target)?.len(),
    })
}

struct Source<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    folder: &'a Path,
}

impl Source<'_> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(CheckpointError::config(&self.folder.join("config.json"), what))
    }

    /// llama.cpp's name for the family.
    fn architecture(&self) -> Result<&'static str> {
        let Self { config, .. } = self;
        let architecture = match config.family {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            other => {
                return self.fail(format!(
                    "a {} model cannot be written as GGUF yet; llama, mistral, qwen2 and qwen3 can",
                    other.name()
                ));
            }
        };
        debug_assert_eq!(config.design.norms, Norms::Before);
        if config.layers.iter().any(|kind| kind.window.is_some()) {
            return self.fail(
                "llama.cpp has no sliding window for this family; set `sliding_window` to null in the config to export \
                 without it",
            );
        }
        match config.ropes.iter().map(|rope| &rope.scaling).find(|scaling| {
            !matches!(
                scaling,
                RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. }
            )
        }) {
            None => Ok(architecture),
            Some(_) => self.fail("this rope scaling cannot be written as GGUF yet"),
        }
    }

    fn metadata(&self, architecture: &str, file_type: FileType) -> Vec<(String, Metadata)> {
        let Self { config, folder, .. } = self;
        let name = folder.canonicalize().unwrap_or_else(|_| (*folder).to_owned());
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = |key: &str, value: Metadata| (format!("{architecture}.{key}"), value);
        let count = |value: usize| Metadata::U32(u32::try_from(value).unwrap_or(u32::MAX));
        let text = |value: &str| Metadata::Text(value.to_owned());
        let theta = config.ropes.first().map_or(1e4, |rope| rope.theta);
        let mut all = vec![
            ("general.architecture".to_owned(), text(architecture)),
            ("general.type".to_owned(), text("model")),
            ("general.name".to_owned(), Metadata::Text(name)),
            ("general.size_label".to_owned(), Metadata::Text(size_label(config.parameters()))),
            own("block_count", count(config.num_layers)),
            own("context_length", count(config.max_positions)),
            own("embedding_length", count(config.hidden_size)),
            own("feed_forward_length", count(config.intermediate_size)),
            own("attention.head_count", count(config.num_heads)),
            own("attention.head_count_kv", count(config.num_kv_heads)),
            own("rope.freq_base", Metadata::F32(theta as f32)),
            own("attention.layer_norm_rms_epsilon", Metadata::F32(config.rms_norm_eps as f32)),
            own("attention.key_length", count(config.head_dim)),
            own("attention.value_length", count(config.head_dim)),
            ("general.file_type".to_owned(), Metadata::U32(file_type.code())),
        ];
        if architecture == "llama" {
            all.push(own("vocab_size", count(config.vocab_size)));
            all.push(own("rope.dimension_count", count(config.head_dim)));
        }
        if let Some(RopeScaling::Linear { factor }) = config.ropes.first().map(|rope| &rope.scaling)
        {
            all.push(own("rope.scaling.type", text("linear")));
            all.push(own("rope.scaling.factor", Metadata::F32(*factor as f32)));
        }
        all.push(("general.quantization_version".to_owned(), Metadata::U32(2)));
        all
    }

    /// By what Llama 3.1 divides each pair's frequency.
    fn rope_factors(&self) -> Option<Vec<f32>> {
        let rope = self.config.ropes.first()?;
        let &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } =
            &rope.scaling
        else {
            return None;
        };
        let (longest, shortest) =
            (original_context / low_freq_factor, original_context / high_freq_factor);
        let of_pair = |pair: usize| {
            let frequency = 1.0 / rope.theta.powf((2 * pair) as f64 / rope.dims as f64);
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength < shortest {
                1.0
            } else if wavelength > longest {
                factor as f32
            } else {
                let smooth = (original_context / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        };
        Some((0..rope.dims / 2).map(of_pair).collect())
    }

    /// One tensor's bytes, packed row by row.
    fn tensor(&self, name: &str, format: BlockFormat) -> Result<Vec<u8>> {
        let view = self.checkpoint.tensor(name)?;
        let rows =
            if view.shape().len() > 1 { view.shape()[0] } else { self.rotated_rows(name, &view) };
        let (bytes, dtype) = (view.bytes(), view.dtype()?);
        let size = bytes.len() / rows.max(1);
        let source_row = self.row_order(name);
        let mut out = Vec::new();
        for row in 0..rows {
            let values = crate::widen(&bytes[source_row(row) * size..][..size], dtype);
            out.extend(quantize(&values, format).ok_or_else(|| CheckpointError::Unpackable {
                path: self.folder.to_owned(),
                name: name.to_owned(),
                format: format!("{format:?}"),
            })?);
        }
        Ok(out)
    }

    /// Whether a weight's, or a bias's, rows go into rotary pairs.
    fn is_paired(&self, name: &str) -> bool {
        let is = |module: Module| name.contains(&format!(".{module}."));
        let by_pairs = matches!(self.config.family, Family::Llama | Family::Mistral);
        by_pairs && (is(Module::QProj) || is(Module::KProj))
    }

    /// A bias has a row of one number for each output.
    fn rotated_rows(&self, name: &str, view: &TensorView<'_>) -> usize {
        if self.is_paired(name) { view.shape().iter().product() } else { 1 }
    }

    /// Where each row of the file stands in the checkpoint: the two halves of a head that rotate together are interleaved.
    fn row_order(&self, name: &str) -> impl Fn(usize) -> usize + use<> {
        let (paired, head_dim) = (self.is_paired(name), self.config.head_dim);
        move |row: usize| {
            let (head, within) = (row / head_dim, row % head_dim);
            match paired {
                true => head * head_dim + within % 2 * (head_dim / 2) + within / 2,
                false => row,
            }
        }
    }
}

/// As llama.cpp writes it: `135M`, `1.5B`.
fn size_label(parameters: u64) -> String {
    let (unit, suffix) = match parameters {
        1_000_000_000.. => (1e9, "B"),
        1_000_000.. => (1e6, "M"),
        _ => (1e3, "K"),
    };
    let scaled = parameters as f64 / unit;
    let digits = scaled.round().to_string().trim_start_matches('0').len();
    format!("{scaled:.*}{suffix}", 2_usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufFile, GgufValue, convert, dequantize};

    /// A model that was a GGUF file is one again: the same configuration and the same weights.
    #[test]
    fn there_and_back() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        testkit::tiny_checkpoint(&at("model"));
        let error = export(&at("model"), &at("x.gguf"), FileType::F32, &mut |_, _| {});
        assert!(error.unwrap_err().to_string().contains("its tokenizer cannot be written"));
        testkit::cut_words_as_gpt2(&at("model"));
        let report =
            export(&at("model"), &at("model.gguf"), FileType::F32, &mut |_, _| {}).unwrap();
        assert_eq!((report.architecture.as_str(), report.num_layers), ("llama", 6));
        convert(&at("model.gguf"), &at("back"), u64::MAX, &mut |_, _| {}).unwrap();
        let (source, found) =
            (Checkpoint::open(&at("model")).unwrap(), Checkpoint::open(&at("back")).unwrap());
        let (ours, theirs) = (source.config().unwrap(), found.config().unwrap());
        assert_eq!(
            (ours.num_layers, &ours.ropes, ours.rms_norm_eps),
            (theirs.num_layers, &theirs.ropes, theirs.rms_norm_eps)
        );
        for view in source.weights().iter() {
            let expected = crate::narrow(&view.to_f32().unwrap(), Dtype::BF16);
            assert!(found.tensor(view.name()).unwrap().bytes() == expected, "{}", view.name());
        }
        let error = export(&at("model"), &at("model.gguf"), FileType::F32, &mut |_, _| {});
        assert!(matches!(error, Err(CheckpointError::Exists { .. })));
    }

    /// Each value within half a step of its block's scale, which is rounded to f16.
    #[test]
    fn eight_bits_are_near() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        testkit::tiny_checkpoint(&at("model"));
        testkit::cut_words_as_gpt2(&at("model"));
        export(&at("model"), &at("q.gguf"), FileType::Q8_0, &mut |_, _| {}).unwrap();
        let file = GgufFile::open(&at("q.gguf")).unwrap();
        let pre = &file.metadata["tokenizer.ggml.pre"];
        assert_eq!(pre, &GgufValue::Text("gpt-2".into()));
        let source = Checkpoint::open(&at("model")).unwrap();
        let expected =
            source.tensor("model.layers.2.mlp.up_proj.weight").unwrap().to_f32().unwrap();
        let tensor = &file.tensors["blk.2.ffn_up.weight"];
        assert_eq!(tensor.format, BlockFormat::Q8_0);
        let found = dequantize(file.bytes(tensor), tensor.format);
        for (found, expected) in found.chunks(32).zip(expected.chunks(32)) {
            let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let near = |(x, y): (&f32, &f32)| (x - y).abs() <= largest / 127.0 * 0.58;
            assert!(found.iter().zip(expected).all(near));
        }
    }

    /// Rows of 64 and 128 are no whole blocks of 256, so that smaller blocks take their place.
    #[test]
    fn a_mixture_of_formats() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        testkit::tiny_checkpoint(&at("model"));
        testkit::cut_words_as_gpt2(&at("model"));
        let report = export(&at("model"), &at("k.gguf"), FileType::Q4_K_M, &mut |_, _| {}).unwrap();
        assert_eq!(report.format, "q4_k_m");
        let file = GgufFile::open(&at("k.gguf")).unwrap();
        assert_eq!(file.metadata["general.file_type"].as_count(), Some(15));
        for (name, format) in [
            ("token_embd.weight", BlockFormat::Q5_0),
            ("output.weight", BlockFormat::Q8_0),
            ("output_norm.weight", BlockFormat::F32),
            ("blk.0.attn_v.weight", BlockFormat::Q5_0),
            ("blk.2.attn_v.weight", BlockFormat::Q8_0),
            ("blk.5.ffn_down.weight", BlockFormat::Q8_0),
            ("blk.5.ffn_up.weight", BlockFormat::Q5_0),
        ] {
            assert_eq!(file.tensors[name].format, format, "{name}");
        }
        convert(&at("k.gguf"), &at("back"), u64::MAX, &mut |_, _| {}).unwrap();
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        testkit::tiny_checkpoint(&at("model"));
        testkit::cut_words_as_gpt2(&at("model"));
        let (name, path) = ("model.layers.3.mlp.up_proj.weight", at("model/model.safetensors"));
        let mut bytes = fs_err::read(&path).unwrap();
        let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
        let begin = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + size + begin + 400..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs_err::write(&path, bytes).unwrap();
        let error = export(&at("model"), &at("k.gguf"), FileType::Q4_K_M, &mut |_, _| {});
        let error = error.unwrap_err().to_string();
        let expected = format!(
            "`{name}` holds a number that is infinite, NaN or too large, which Q5_0 cannot"
        );
        assert!(error.contains(&expected), "{error}");
        assert!(!at("k.gguf").exists());
        export(&at("model"), &at("f.gguf"), FileType::F16, &mut |_, _| {}).unwrap();
    }

    #[test]
    fn sizes_are_named() {
        for (parameters, name) in [
            (134_515_008, "135M"),
            (1_543_714_304, "1.5B"),
            (8_030_261_248, "8.0B"),
            (70_553_706_496, "71B"),
        ] {
            assert_eq!(size_label(parameters), name);
        }
    }
}
