//! `config.json`: what a model is made of, in transformers' spellings, old and new.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{CheckpointError, Dtype, Module, Result};

/// More layers than any model has; a slip in the file must not fill the memory.
const MOST_LAYERS: usize = 10_000;

/// A model family whose decoder is the Llama decoder with small differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the families' names")]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// How positions turn into rotation angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// What stretches them for longer contexts.
    pub scaling: RopeScaling,
}

/// How `rope_scaling` (or `rope_parameters`) changes the rotation frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the fields are config.json's keys")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: f64 },
}

/// What `config.json` says of a decoder.
///
/// The parsed file itself is kept, so that a pruned checkpoint's config differs from its source
/// only where layers are counted or listed.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are config.json's keys")]
pub struct ModelConfig {
    pub family: Family,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_positions: usize,
    pub rms_norm_eps: f64,
    pub rope: Rope,
    pub tied_head: bool,
    /// Whether q, k and v (and, in Llama's own spelling, o) have biases.
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised by head (Qwen3).
    pub qk_norm: bool,
    /// Each layer's sliding window in tokens; `None` attends to all before it.
    pub windows: Vec<Option<usize>>,
    /// The type the weights are said to be stored in.
    pub dtype: Option<Dtype>,
    /// Tokens that end a reply.
    pub eos_tokens: Vec<u32>,
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    ///
    /// If the file is missing, not JSON, lacks a key, or describes a model that is not supported.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = fs_err::read_to_string(&path)?;
        let raw = serde_json::from_str(&text).map_err(CheckpointError::json(&path))?;
        let mut config = Self::from_json(raw, &path)?;
        if let Some(more) = generation_eos_tokens(folder) {
            config.eos_tokens = more;
        }
        Ok(config)
    }

    /// Makes sense of a parsed `config.json`; `path` is for messages only.
    ///
    /// # Errors
    ///
    /// If a key is missing or the model is not supported.
    pub fn from_json(raw: Map<String, Value>, path: &Path) -> Result<Self> {
        let keys = Keys { raw: &raw, path };
        let family = keys.family()?;
        keys.require_silu()?;
        let (hidden_size, num_heads) =
            (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
        let num_layers = keys.count("num_hidden_layers")?;
        if num_layers > MOST_LAYERS {
            return keys.fail(format!("`num_hidden_layers` is {num_layers}; is that so?"));
        }
        let num_kv_heads = keys.count_or("num_key_value_heads", num_heads)?;
        let head_dim = keys.count_or("head_dim", hidden_size / num_heads)?;
        if num_heads % num_kv_heads != 0 || head_dim % 2 != 0 {
            let what = format!(
                "{num_heads} heads of {head_dim} over {num_kv_heads} key-value heads do not divide"
            );
            return Err(CheckpointError::config(path, what));
        }
        let attention_bias = keys.flag("attention_bias", false);
        Ok(Self {
            family,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: keys.count("intermediate_size")?,
            vocab_size: keys.count("vocab_size")?,
            max_positions: keys.count_or("max_position_embeddings", 2048)?,
            rms_norm_eps: keys.number("rms_norm_eps").unwrap_or(1e-6),
            rope: keys.rope()?,
            tied_head: keys.flag("tie_word_embeddings", false),
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            mlp_bias: keys.flag("mlp_bias", false),
            qk_norm: family == Family::Qwen3,
            windows: keys.windows(family, num_layers)?,
            dtype: keys
                .either("dtype", "torch_dtype")
                .and_then(Value::as_str)
                .and_then(Dtype::from_torch_name),
            eos_tokens: raw.get("eos_token_id").map(token_ids).unwrap_or_default(),
            raw,
        })
    }

    /// `config.json` for the same model with only the layers `retained`, in that order.
    ///
    /// The layer count and every list with one entry a layer follow; all else is as it was.
    pub fn with_layers(&self, retained: &[usize]) -> Map<String, Value> {
        let mut raw = self.raw.clone();
        raw.insert("num_hidden_layers".into(), retained.len().into());
        // Qwen2 counts its full-attention layers from the front.
        if let Some(full) = raw.get("max_window_layers").and_then(Value::as_u64) {
            let kept = retained.iter().filter(|&&layer| (layer as u64) < full).count();
            raw.insert("max_window_layers".into(), kept.into());
        }
        for (key, value) in &mut raw {
            match value {
                // Lists of layer numbers are renumbered.
                Value::Array(numbers) if key == "mlp_only_layers" => {
                    *numbers = numbers
                        .iter()
                        .filter_map(Value::as_u64)
                        .filter_map(|old| retained.iter().position(|&layer| layer as u64 == old))
                        .map(Value::from)
                        .collect();
                }
                // Lists with an entry for each layer keep the entries of the layers kept.
                Value::Array(entries) if is_per_layer(key) && entries.len() == self.num_layers => {
                    *entries = retained.iter().map(|&layer| entries[layer].clone()).collect();
                }
                _ => {}
            }
        }
        raw
    }

    /// The parsed file.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// `(out, in)` of a linear weight.
    pub fn linear_shape(&self, module: Module) -> (usize, usize) {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        match module {
            Module::QProj => (queries, hidden),
            Module::KProj | Module::VProj => (keys, hidden),
            Module::OProj => (hidden, queries),
            Module::GateProj | Module::UpProj => (ffn, hidden),
            Module::DownProj => (hidden, ffn),
        }
    }

    /// Whether a linear weight has a bias.
    pub fn has_bias(&self, module: Module) -> bool {
        match module {
            Module::QProj | Module::KProj | Module::VProj => self.qkv_bias,
            Module::OProj => self.o_bias,
            Module::GateProj | Module::UpProj | Module::DownProj => self.mlp_bias,
        }
    }

    /// Every tensor the model is made of, with its shape: embedding, layers in order, norm, head.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors =
            vec![("model.embed_tokens.weight".into(), vec![self.vocab_size, self.hidden_size])];
        for layer in 0..self.num_layers {
            let mut add = |rest: &str, shape| {
                tensors.push((format!("model.layers.{layer}.{rest}"), shape));
            };
            add("input_layernorm.weight", vec![self.hidden_size]);
            add("post_attention_layernorm.weight", vec![self.hidden_size]);
            if self.qk_norm {
                add("self_attn.q_norm.weight", vec![self.head_dim]);
                add("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            for module in Module::ALL {
                let (rows, columns) = self.linear_shape(module);
                add(&format!("{module}.weight"), vec![rows, columns]);
                if self.has_bias(module) {
                    add(&format!("{module}.bias"), vec![rows]);
                }
            }
        }
        tensors.push(("model.norm.weight".into(), vec![self.hidden_size]));
        if !self.tied_head {
            tensors.push(("lm_head.weight".into(), vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }

    /// How many parameters the model has; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// Floating-point operations to process one token that attends to `context` tokens.
    ///
    /// Two for each weight of the linears and the head, and `4 · heads · head_dim · context` for
    /// the attention of each layer. Norms, rotations and the softmax are left out.
    pub fn flops_per_token(&self, context: usize) -> u64 {
        let weights = |module| {
            let (rows, columns) = self.linear_shape(module);
            (rows * columns) as u64
        };
        let linears: u64 = Module::ALL.into_iter().map(weights).sum();
        let attention = 4 * (self.num_heads * self.head_dim * context) as u64;
        let head = 2 * (self.vocab_size * self.hidden_size) as u64;
        self.num_layers as u64 * (2 * linears + attention) + head
    }
}

/// `generation_config.json` often knows more end-of-turn tokens than `config.json`.
fn generation_eos_tokens(folder: &Path) -> Option<Vec<u32>> {
    let text = fs_err::read_to_string(folder.join("generation_config.json")).ok()?;
    let raw: Value = serde_json::from_str(&text).ok()?;
    Some(token_ids(raw.get("eos_token_id")?)).filter(|tokens| !tokens.is_empty())
}

fn token_ids(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(values) => values.iter().flat_map(token_ids).collect(),
        _ => value.as_u64().map(|token| token as u32).into_iter().collect(),
    }
}

fn is_per_layer(key: &str) -> bool {
    key.contains("layer")
        || matches!(key, "block_types" | "attention_types" | "sliding_window_pattern")
}

/// The keys of one file, with errors that name it.
struct Keys<'a> {
    raw: &'a Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.raw.get(key).filter(|value| !value.is_null())
    }

    fn either(&self, new: &str, old: &str) -> Option<&Value> {
        self.get(new).or_else(|| self.get(old))
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(CheckpointError::Config { path: PathBuf::from(self.path), what: what.into() })
    }

    fn count(&self, key: &str) -> Result<usize> {
        match self.get(key).map(Value::as_u64) {
            Some(Some(count)) if count > 0 => Ok(count as usize),
            Some(_) => self.fail(format!("`{key}` must be a positive whole number")),
            None => self.fail(format!("`{key}` is missing; is this a model's config.json?")),
        }
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count(key) } else { Ok(default) }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key).and_then(Value::as_f64)
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    fn family(&self) -> Result<Family> {
        match self.get("model_type").and_then(Value::as_str) {
            Some("llama") => Ok(Family::Llama),
            Some("mistral") => Ok(Family::Mistral),
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            found => self.fail(format!(
                "`model_type` is `{}`; llama, mistral, qwen2 and qwen3 are supported",
                found.unwrap_or("missing")
            )),
        }
    }

    fn require_silu(&self) -> Result<()> {
        match self.get("hidden_act").and_then(Value::as_str) {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => self.fail(format!("`hidden_act` is `{other}`; only silu is supported")),
        }
    }

    /// `rope_theta` and `rope_scaling`, or both in `rope_parameters` (transformers 5).
    fn rope(&self) -> Result<Rope> {
        let scaling = self.either("rope_parameters", "rope_scaling").and_then(Value::as_object);
        let inner = |key: &str| scaling.and_then(|map| map.get(key)).and_then(Value::as_f64);
        let needed = |key: &str| match inner(key) {
            Some(value) => Ok(value),
            None => self.fail(format!("the rope scaling lacks `{key}`")),
        };
        let theta = inner("rope_theta").or_else(|| self.number("rope_theta")).unwrap_or(1e4);
        let kind = scaling
            .and_then(|map| map.get("rope_type").or_else(|| map.get("type")))
            .and_then(Value::as_str);
        let scaling = match kind {
            None | Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear { factor: needed("factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_context: needed("original_max_position_embeddings")?,
            },
            Some(other) => {
                return self.fail(format!(
                    "rope type `{other}` is not supported; default, linear and llama3 are"
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }

    /// Each layer's window: from `layer_types` where it is given, else by the family's old rule.
    fn windows(&self, family: Family, num_layers: usize) -> Result<Vec<Option<usize>>> {
        let used = match family {
            Family::Mistral => true,
            Family::Llama => false,
            Family::Qwen2 | Family::Qwen3 => self.flag("use_sliding_window", false),
        };
        let window = self.number("sliding_window").map(|window| window as usize);
        let window = window.filter(|&window| used && window > 0);
        let Some(types) = self.get("layer_types").and_then(Value::as_array) else {
            let first = match family {
                // 0 where every layer has a window, as after the first layers were pruned.
                Family::Qwen2 | Family::Qwen3 => match self.get("max_window_layers") {
                    Some(first) if first.as_u64() == Some(0) => 0,
                    _ => self.count_or("max_window_layers", num_layers)?,
                },
                Family::Llama | Family::Mistral => 0,
            };
            return Ok((0..num_layers).map(|layer| window.filter(|_| first <= layer)).collect());
        };
        if types.len() != num_layers {
            return self.fail(format!(
                "`layer_types` has {} entries for {num_layers} layers",
                types.len()
            ));
        }
        types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(window),
                _ => self.fail(format!("layer type {kind} is not supported")),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<ModelConfig> {
        let Value::Object(raw) = value else { panic!("an object") };
        ModelConfig::from_json(raw, Path::new("config.json"))
    }

    fn qwen2() -> Value {
        json!({
            "model_type": "qwen2", "hidden_size": 48, "intermediate_size": 72, "vocab_size": 144,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "tie_word_embeddings": true, "use_sliding_window": true, "sliding_window": 8,
            "max_window_layers": 2, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        })
    }

    #[test]
    fn both_spellings_say_the_same() {
        let new = parse(qwen2()).unwrap();
        let mut old = qwen2();
        let map = old.as_object_mut().unwrap();
        map.remove("rope_parameters");
        map.insert("rope_theta".into(), json!(1e6));
        let old = parse(old).unwrap();
        assert_eq!(new.rope, old.rope);
        assert_eq!(new.windows, [None, None, Some(8), Some(8)]);
    }

    #[test]
    fn per_layer_lists_follow() {
        let mut raw = qwen2();
        raw["layer_types"] =
            json!(["full_attention", "full_attention", "sliding_attention", "sliding_attention"]);
        raw["mlp_only_layers"] = json!([1, 3]);
        let pruned = parse(raw).unwrap().with_layers(&[0, 3]);
        assert_eq!(pruned["num_hidden_layers"], 2);
        assert_eq!(pruned["layer_types"], json!(["full_attention", "sliding_attention"]));
        assert_eq!(pruned["max_window_layers"], 1);
        assert_eq!(pruned["mlp_only_layers"], json!([1]));
        assert_eq!(parse(Value::Object(pruned)).unwrap().windows, [None, Some(8)]);
    }

    #[test]
    fn windows_of_all_layers_and_of_none() {
        let pruned = parse(qwen2()).unwrap().with_layers(&[2, 3]);
        assert_eq!(pruned["max_window_layers"], 0);
        assert_eq!(parse(Value::Object(pruned)).unwrap().windows, [Some(8); 2]);
        let mut raw = qwen2();
        raw["sliding_window"] = json!(0);
        assert_eq!(parse(raw).unwrap().windows, [None; 4]);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for (key, value, message) in [
            ("model_type", json!("gpt2"), "`model_type` is `gpt2`"),
            ("num_hidden_layers", json!(1_000_000_000_000_u64), "is that so?"),
            ("hidden_act", json!("gelu"), "`hidden_act` is `gelu`"),
            ("num_hidden_layers", json!(0), "`num_hidden_layers` must be"),
            ("rope_parameters", json!({"rope_type": "yarn"}), "rope type `yarn`"),
            ("layer_types", json!(["full_attention"]), "1 entries for 4 layers"),
        ] {
            let mut raw = qwen2();
            raw[key] = value;
            let error = parse(raw).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
