//! A GGUF file as a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::architectures::llama3_factors;
use super::reader::GgufTensor;
use super::tokenizer::{TokenizerFiles, tokenizer_files};
use super::{GgufFile, GgufValue, dequantize};
use crate::json::write_json;
use crate::{
    CheckpointError, CheckpointWriter, Dtype, MOST_WIDTH, ModelConfig, Module, NormNames, Norms,
    Result, Staging, TensorSpec, narrow,
};

/// What [`convert`] made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ConvertReport {
    pub architecture: String,
    pub num_layers: usize,
    pub parameters: u64,
    pub tied_head: bool,
    pub size_bytes: u64,
}

/// Turns a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model into the folder `target`:
/// BF16 safetensors, `config.json`, tokenizer files with the chat template, and
/// `generation_config.json`, all out of the file's own metadata.
///
/// Values are dequantised to f32 and rounded once. The rows of q and k, which Llama GGUFs hold in
/// rotary pairs, are put back into the order of Hugging Face checkpoints. Where one matrix is both
/// embedding and head, the finer of its two quantisations is kept and the head is tied. `observe`
/// sees how many of how many tensors are written.
///
/// # Errors
///
/// If the file is broken or of another architecture, `target` exists, or the disk refuses.
pub fn convert(
    source: &Path,
    target: &Path,
    shard_bytes: u64,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<ConvertReport> {
    let file = GgufFile::open(source)?;
    let source = Source { file: &file };
    source.require_whole()?;
    let tokenizer = tokenizer_files(&file)?;
    let (tied_head, embedding) = source.embedding()?;
    let raw = source.config(tied_head, &tokenizer)?;
    let config = ModelConfig::from_json(raw.clone(), file.path())?;
    source.require_used(&config)?;
    source.require_rope(&config)?;

    let staging = Staging::folder(target)?;
    write_json(&staging.path().join("config.json"), &raw)?;
    write_json(&staging.path().join("generation_config.json"), &tokenizer.generation)?;
    write_json(&staging.path().join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&staging.path().join("tokenizer_config.json"), &tokenizer.config)?;
    let tensors = config.tensors();
    let specs: Vec<_> =
        tensors.iter().map(|(name, shape)| TensorSpec::new(name, Dtype::BF16, shape)).collect();
    let size_bytes = specs.iter().map(|spec| spec.size_bytes() as u64).sum();
    let writer = CheckpointWriter::create(staging.path(), specs, shard_bytes)?;
    for (done, (name, shape)) in tensors.iter().enumerate() {
        observe(done, tensors.len());
        let stored = if name == "model.embed_tokens.weight" {
            embedding.to_owned()
        } else {
            gguf_name(name, config.design.norms)
        };
        writer.write(name, &source.tensor(&stored, shape, &config)?)?;
    }
    writer.finish()?;
    staging.commit()?;
    Ok(ConvertReport {
        architecture: source.architecture()?.to_owned(),
        num_layers: config.num_layers,
        parameters: config.parameters(),
        tied_head,
        size_bytes,
    })
}

/// The GGUF name of a Hugging Face tensor of a model whose layers have these `norms`.
pub(super) fn gguf_name(name: &str, norms: Norms) -> String {
    match name {
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        _ => {}
    }
    let NormNames { before_attention, after_attention, before_mlp, after_mlp } = norms.names();
    let parts = [
        (before_attention, "attn_norm"),
        (after_attention, "post_attention_norm"),
        (before_mlp, "ffn_norm"),
        (after_mlp, "post_ffw_norm"),
        (Some("self_attn.q_norm"), "attn_q_norm"),
        (Some("self_attn.k_norm"), "attn_k_norm"),
        (Some("self_attn.qkv_proj"), "attn_qkv"),
        (Some("self_attn.q_proj"), "attn_q"),
        (Some("self_attn.k_proj"), "attn_k"),
        (Some("self_attn.v_proj"), "attn_v"),
        (Some("self_attn.o_proj"), "attn_output"),
        (Some("mlp.gate_up_proj"), "ffn_up"),
        (Some("mlp.gate_proj"), "ffn_gate"),
        (Some("mlp.up_proj"), "ffn_up"),
        (Some("mlp.down_proj"), "ffn_down"),
    ];
    let name = name.replace("model.layers.", "blk.");
    let found = parts.into_iter().find(|(ours, _)| ours.is_some_and(|ours| name.contains(ours)));
    match found {
        Some((Some(ours), theirs)) => name.replace(ours, theirs),
        _ => name,
    }
}

pub(super) struct Source<'a> {
    pub(super) file: &'a GgufFile,
}

impl Source<'_> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(CheckpointError::gguf(self.file.path(), what))
    }

    fn architecture(&self) -> Result<&str> {
        match self.file.metadata.get("general.architecture").and_then(GgufValue::as_text) {
            Some(name) => Ok(name),
            None => self.fail("`general.architecture` is missing"),
        }
    }

    fn key(&self, key: &str) -> Result<Option<&GgufValue>> {
        Ok(self.file.metadata.get(&format!("{}.{key}", self.architecture()?)))
    }

    fn count(&self, key: &str) -> Result<u64> {
        match self.key(key)?.and_then(GgufValue::as_count) {
            Some(count) => Ok(count),
            None => self.fail(format!("`{}.{key}` is missing", self.architecture()?)),
        }
    }

    /// Refuses one part of a model that stands in several files.
    pub(super) fn require_whole(&self) -> Result<()> {
        match self.file.metadata.get("split.count").and_then(GgufValue::as_count) {
            Some(parts) if parts > 1 => self.fail(format!(
                "it is one of {parts} files of one model; put them together with llama.cpp's `llama-gguf-split --merge`"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses factors of a rotation that are not those of the settings that were taken for granted.
    fn require_rope(&self, config: &ModelConfig) -> Result<()> {
        for (name, expected) in llama3_factors(config) {
            let Some(tensor) = self.file.tensors.get(name) else { continue };
            let found = dequantize(self.file.bytes(tensor), tensor.format);
            let is_near = |(x, y): (&f32, &f32)| (x - y).abs() <= 1e-4 * y.abs();
            if found.len() != expected.len() || !found.iter().zip(&expected).all(is_near) {
                return self.fail(format!(
                    "`{name}` holds other factors than Llama 3.1's, whose settings cannot be told from them; convert from the \
                     model's Hugging Face folder"
                ));
            }
        }
        Ok(())
    }

    /// Refuses a file with tensors that the converted model would do without.
    fn require_used(&self, config: &ModelConfig) -> Result<()> {
        let mut used: HashSet<String> =
            config.tensors().iter().map(|(name, _)| gguf_name(name, config.design.norms)).collect();
        // What the configuration says, as do old files' rotations, and a head that is the embedding.
        used.extend(["rope_freqs.weight".into(), "output.weight".into()]);
        let is_stray =
            |name: &&String| !used.contains(*name) && !name.ends_with("attn_rot_embd.weight");
        match self.file.tensors.keys().find(is_stray) {
            None => Ok(()),
            Some(name) => self.fail(format!(
                "it holds `{name}`, which a folder of a {} model has no place for",
                self.architecture()?
            )),
        }
    }

    fn config(&self, tied_head: bool, tokenizer: &TokenizerFiles) -> Result<Map<String, Value>> {
        let architecture = self.architecture()?;
        let class = match architecture {
            "llama" => "LlamaForCausalLM",
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            other => {
                return self.fail(format!(
                    "architecture `{other}`; llama, mistral, qwen2 and qwen3 are supported"
                ));
            }
        };
        if let Some(count) = self.key("expert_count")?.and_then(GgufValue::as_count)
            && count > 0
        {
            return self.fail(format!(
                "a Mixture-of-Experts of {count} experts; only dense models are supported"
            ));
        }
        let (hidden, heads) =
            (self.count("embedding_length")?, self.count("attention.head_count")?);
        let number =
            |key| -> Result<Option<f64>> { Ok(self.key(key)?.and_then(GgufValue::as_number)) };
        let Some(epsilon) = number("attention.layer_norm_rms_epsilon")? else {
            return self.fail("`attention.layer_norm_rms_epsilon` is missing");
        };
        let mut config = json!({
            "architectures": [class],
            "model_type": architecture,
            "hidden_size": hidden,
            "intermediate_size": self.count("feed_forward_length")?,
            "num_hidden_layers": self.count("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv").unwrap_or(heads),
            "head_dim": match self.key("attention.key_length")?.and_then(GgufValue::as_count) {
                Some(length) => length,
                None => hidden / heads.max(1),
            },
            "hidden_act": "silu",
            "max_position_embeddings": self.count("context_length")?,
            "rms_norm_eps": shortest(epsilon),
            "rope_theta": shortest(number("rope.freq_base")?.unwrap_or(1e4)),
            "rope_scaling": self.rope_scaling()?,
            "vocab_size": self.vocab_size()?,
            "tie_word_embeddings": tied_head,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "initializer_range": 0.02,
            "use_cache": true,
            "torch_dtype": "bfloat16",
        });
        if let Some(window) = number("attention.sliding_window")? {
            config["sliding_window"] = json!(window as u64);
        } else if architecture == "mistral" {
            config["sliding_window"] = Value::Null; // Else transformers assumes 4096.
        }
        let mut config = match config {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if let Some(token) = tokenizer.generation.get(key) {
                config.insert(key.into(), token.clone());
            }
        }
        Ok(config)
    }

    /// Linear scaling stands in the metadata; Llama 3's per-frequency factors stand in a tensor
    /// that cannot be turned back into the four numbers of `config.json`.
    fn rope_scaling(&self) -> Result<Value> {
        if self.file.tensors.contains_key("rope_freqs.weight") {
            // The published settings of every Llama 3.1, 3.2 and 3.3; the factor shows in the
            // largest entry.
            let tensor = &self.file.tensors["rope_freqs.weight"];
            if tensor.shape.iter().product::<usize>() > MOST_WIDTH {
                return self.fail("`rope_freqs.weight` is larger than a head");
            }
            let factors = dequantize(self.file.bytes(tensor), tensor.format);
            let factor = factors.iter().copied().fold(1.0_f32, f32::max);
            return Ok(json!({
                "rope_type": "llama3",
                "factor": f64::from(factor.round()),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }));
        }
        match self.key("rope.scaling.type")?.and_then(GgufValue::as_text) {
            None | Some("none") => Ok(Value::Null),
            Some("linear") => {
                let factor = self.key("rope.scaling.factor")?.and_then(GgufValue::as_number);
                Ok(json!({"rope_type": "linear", "factor": factor.unwrap_or(1.0)}))
            }
            Some(other) => self.fail(format!("rope scaling `{other}` is not supported")),
        }
    }

    fn vocab_size(&self) -> Result<usize> {
        match self.file.tensors.get("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
            Some(&[size, _]) => Ok(size),
            _ => self.fail("`token_embd.weight` is missing"),
        }
    }

    /// Whether the head is tied, and which tensor holds the embedding.
    fn embedding(&self) -> Result<(bool, &'static str)> {
        let Some(embedding) = self.file.tensors.get("token_embd.weight") else {
            return self.fail("`token_embd.weight` is missing");
        };
        let Some(head) = self.file.tensors.get("output.weight") else {
            return Ok((true, "token_embd.weight"));
        };
        if !self.are_one_matrix(embedding, head) {
            return Ok((false, "token_embd.weight"));
        }
        let finer = embedding.format.bits_per_value() >= head.format.bits_per_value();
        Ok((true, if finer { "token_embd.weight" } else { "output.weight" }))
    }

    /// Two quantisations of one matrix differ by far less than two matrices do: their distance is
    /// below half their norm, where independent matrices are about 1.4 norms apart.
    fn are_one_matrix(&self, one: &GgufTensor, other: &GgufTensor) -> bool {
        let &[rows, _] = one.shape.as_slice() else { return false };
        if one.shape != other.shape {
            return false;
        }
        let (mut apart, mut norm) = (0.0, 0.0);
        for row in (0..rows).step_by((rows / 256).max(1)) {
            let row_of = |tensor: &GgufTensor| {
                let bytes = self.file.bytes(tensor);
                let size = bytes.len() / rows;
                dequantize(&bytes[row * size..][..size], tensor.format)
            };
            for (x, y) in row_of(one).into_iter().zip(row_of(other)) {
                apart += f64::from(x - y).powi(2);
                norm += f64::from(x).powi(2);
            }
        }
        apart < 0.25 * norm
    }

    /// One tensor as BF16 bytes, dequantised row by row.
    fn tensor(&self, name: &str, expected: &[usize], config: &ModelConfig) -> Result<Vec<u8>> {
        let Some(tensor) = self.file.tensors.get(name) else {
            return self.fail(format!("tensor `{name}` is missing"));
        };
        if tensor.shape != expected {
            let found = &tensor.shape;
            return self.fail(format!("`{name}` is {found:?}, the metadata imply {expected:?}"));
        }
        let rows = if expected.len() > 1 { expected[0] } else { 1 };
        let bytes = self.file.bytes(tensor);
        let size = bytes.len() / rows.max(1);
        let source_row = self.row_order(name, rows, config)?;
        let mut out = Vec::with_capacity(expected.iter().product::<usize>() * 2);
        for row in 0..rows {
            let values = dequantize(&bytes[source_row(row) * size..][..size], tensor.format);
            out.extend(narrow(&values, Dtype::BF16));
        }
        Ok(out)
    }

    /// Where each Hugging Face row of a tensor stands in the GGUF.
    ///
    /// Llama GGUFs interleave the two halves of a head that rotate together; Qwen GGUFs do not.
    fn row_order(
        &self,
        name: &str,
        rows: usize,
        config: &ModelConfig,
    ) -> Result<impl Fn(usize) -> usize> {
        let is = |module: Module| {
            name.ends_with(&gguf_name(&format!("{module}.weight"), config.design.norms))
        };
        let permuted = matches!(self.architecture()?, "llama" | "mistral")
            && (is(Module::QProj) || is(Module::KProj));
        let head_dim = if permuted { config.head_dim } else { rows.max(1) };
        Ok(move |row: usize| {
            let (head, within) = (row / head_dim, row % head_dim);
            let half = head_dim / 2;
            match permuted {
                true => head * head_dim + within % half * 2 + within / half,
                false => row,
            }
        })
    }
}

/// The shortest decimal of an f32 that was widened: 1e-5 instead of 0.000009999999747.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}
