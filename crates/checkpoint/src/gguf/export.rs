//! A folder in Hugging Face layout as a GGUF file, as llama.cpp's own converter writes it.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::architectures::{Architecture, architecture};
use super::convert::gguf_name;
use super::file_type::Mixture;
use super::quantize::quantize;
use super::vocabulary::vocabulary;
use super::writer::{GgufSpec, Metadata, write};
use super::{BlockFormat, FileType};
use crate::{Checkpoint, CheckpointError, Dtype, ModelConfig, Module, Result, TensorView};

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

/// Turns the folder of a model into the GGUF file `target`: its configuration, tokenizer and
/// chat template as metadata, matrices as llama.cpp stores them in a file of `file_type`, all else in F32.
///
/// Rows of q and k are put into rotary pairs where llama.cpp wants them so, and Gemma's norms are stored with the 1 that is
/// added to them. A matrix whose rows are no whole number of blocks
/// is stored in smaller blocks, or in F16. `observe` sees how many of how many tensors are written.
///
/// # Errors
///
/// If the model is one that llama.cpp cannot compute, its tokenizer is of a kind that is not written, a matrix to be quantised holds a number that is not
/// finite, `target` exists, or the disk refuses.
pub fn export(
    folder: &Path,
    target: &Path,
    file_type: FileType,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<ExportReport> {
    let checkpoint = Checkpoint::open(folder)?;
    let config = checkpoint.config()?;
    let architecture = architecture(config)
        .map_err(|what| CheckpointError::config(&folder.join("config.json"), what))?;
    let source =
        Source { checkpoint: &checkpoint, config, folder, is_paired: architecture.is_paired };
    let mut metadata = source.metadata(&architecture, file_type);
    metadata.extend(vocabulary(folder, config)?);
    let mut names: HashMap<String, String> = HashMap::new();
    let mut factors: HashMap<String, Vec<f32>> = HashMap::new();
    let mut specs = Vec::new();
    for (name, values) in architecture.factors {
        let (name, shape) = (name.to_owned(), vec![values.len()]);
        factors.insert(name.clone(), values);
        specs.push(GgufSpec { name, shape, format: BlockFormat::F32 });
    }
    let mixture = Mixture::new(file_type, config);
    for (name, shape) in config.tensors() {
        let stored = gguf_name(&name, config.design.norms);
        let format = mixture.format(&stored, &shape);
        specs.push(GgufSpec { name: stored.clone(), shape, format });
        names.insert(stored, name);
    }
    let (total, mut done) = (specs.len(), 0);
    write(target, &metadata, &specs, &mut |spec| {
        observe(done, total);
        done += 1;
        match (names.get(&spec.name), factors.get(&spec.name)) {
            (None, Some(values)) => Ok(crate::narrow(values, Dtype::F32)),
            (name, _) => source.tensor(name.unwrap_or(&spec.name), spec.format),
        }
    })?;
    Ok(ExportReport {
        architecture: architecture.name.to_owned(),
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
    /// Whether rows of q and k go into rotary pairs.
    is_paired: bool,
}

impl Source<'_> {
    fn metadata(
        &self,
        architecture: &Architecture,
        file_type: FileType,
    ) -> Vec<(String, Metadata)> {
        let Self { config, folder, .. } = self;
        let name = folder.canonicalize().unwrap_or_else(|_| (*folder).to_owned());
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = |value: &str| Metadata::Text(value.to_owned());
        let mut all = vec![
            ("general.architecture".to_owned(), text(architecture.name)),
            ("general.type".to_owned(), text("model")),
            ("general.name".to_owned(), Metadata::Text(name)),
            ("general.size_label".to_owned(), Metadata::Text(size_label(config.parameters()))),
        ];
        let own = |(key, value): &(&str, Metadata)| {
            (format!("{}.{key}", architecture.name), value.clone())
        };
        all.extend(architecture.keys.iter().map(own));
        all.push(("general.file_type".to_owned(), Metadata::U32(file_type.code())));
        all.push(("general.quantization_version".to_owned(), Metadata::U32(2)));
        all
    }

    /// One tensor's bytes, packed row by row.
    fn tensor(&self, name: &str, format: BlockFormat) -> Result<Vec<u8>> {
        let view = self.checkpoint.tensor(name)?;
        let rows =
            if view.shape().len() > 1 { view.shape()[0] } else { self.rotated_rows(name, &view) };
        let (bytes, dtype) = (view.bytes(), view.dtype()?);
        let size = bytes.len() / rows.max(1);
        let source_row = self.row_order(name);
        let offset = self.config.design.norm_offset as f32;
        let is_shifted = offset != 0.0 && name.ends_with("norm.weight");
        let mut out = Vec::new();
        for row in 0..rows {
            let mut values = crate::widen(&bytes[source_row(row) * size..][..size], dtype);
            if is_shifted {
                for value in &mut values {
                    *value += offset;
                }
            }
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
        self.is_paired && (is(Module::QProj) || is(Module::KProj))
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
    use crate::gguf::convert::Source;
    use crate::gguf::{GgufFile, GgufValue, convert, dequantize};

    /// A small model whose tokenizer llama.cpp knows.
    fn make_model(folder: &Path) {
        testkit::tiny_checkpoint(folder);
        testkit::cut_words_as_gpt2(folder);
    }

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

    /// Llama 3.1's settings are told from the factors; others are refused, not taken for them.
    #[test]
    fn scaled_rotations_come_back_or_are_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        for (context, is_usual) in [(8192, true), (4096, false)] {
            let [model, gguf, back] =
                ["model", "gguf", "back"].map(|name| at(&format!("{name}-{context}")));
            make_model(&model);
            let mut config = testkit::json(&model.join("config.json"));
            config["rope_scaling"] = serde_json::json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": context,
            });
            fs_err::write(model.join("config.json"), config.to_string()).unwrap();
            export(&model, &gguf, FileType::F32, &mut |_, _| {}).unwrap();
            let found = convert(&gguf, &back, u64::MAX, &mut |_, _| {});
            let ropes =
                |folder: &Path| Checkpoint::open(folder).unwrap().config().unwrap().ropes.clone();
            if is_usual {
                assert_eq!(ropes(&back), ropes(&model));
                continue;
            }
            let message = found.unwrap_err().to_string();
            assert!(message.contains("other factors than Llama 3.1's"), "{message}");
            assert!(!back.exists());
        }
    }

    #[test]
    fn a_part_of_a_model_is_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        make_model(&at("model"));
        export(&at("model"), &at("model.gguf"), FileType::F32, &mut |_, _| {}).unwrap();
        let mut file = GgufFile::open(&at("model.gguf")).unwrap();
        for (parts, is_whole) in [(1, true), (3, false)] {
            file.metadata.insert("split.count".into(), GgufValue::Unsigned(parts));
            let found = Source { file: &file }.require_whole();
            assert_eq!(found.is_ok(), is_whole);
        }
    }

    /// Each value within half a step of its block's scale, which is rounded to f16.
    #[test]
    fn eight_bits_are_near() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        make_model(&at("model"));
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
        make_model(&at("model"));
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
        make_model(&at("model"));
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
