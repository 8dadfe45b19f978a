//! `config.json`: what a model is made of, in transformers' spellings, old and new.

mod design;
mod families;
mod keys;
mod refused;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

pub use self::design::{Activation, Design, LayerKind, NormNames, Norms, QkNorm};
pub use self::families::Family;
use self::families::{Described, Given};
use self::keys::Keys;
pub(crate) use self::refused::{is_in_four_bits, quantised};
pub(crate) use self::rope::yarn_attention;
pub use self::rope::{Rope, RopeScaling, YarnTurns};
use crate::json::read_json;
use crate::other_formats::without_config;
use crate::outline::write_out;
use crate::{CheckpointError, Dtype, Module, Outline, Result};

// Far more than any model has. Counts in files stay within these, so that their products fit and a
// slip in a file does not fill the memory.

/// The most decoder layers that are supported.
pub const MOST_LAYERS: usize = 10_000;
/// The most of a model's widths: hidden size, inner size, all heads together, a LoRA's rank.
pub const MOST_WIDTH: usize = 1 << 20;
/// The most tokens in a vocabulary.
const MOST_TOKENS: usize = 1 << 24;
/// The longest context.
const MOST_POSITIONS: usize = 1 << 32;
/// The most parameters.
const MOST_PARAMETERS: u64 = 1 << 44;

/// What `config.json` says of a decoder.
///
/// The parsed file itself is kept.
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
    /// How layers are built, and what stands around them.
    pub design: Design,
    /// What differs from layer to layer.
    pub layers: Vec<LayerKind>,
    /// The rotations that layers name.
    pub ropes: Vec<Rope>,
    pub tied_head: bool,
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
        if let Some(other) = without_config(folder).filter(|_| !path.exists()) {
            return Err(other);
        }
        let mut config = Self::from_json(read_json(&path)?, &path)?;
        if let Some(more) = generation_eos_tokens(folder)? {
            config.eos_tokens = more;
        }
        Ok(config)
    }

    /// Makes sense of a parsed `config.json`; `path` is for messages only.
    ///
    /// # Errors
    ///
    /// If a key is missing, of another type or out of bounds, or the model is not supported.
    pub fn from_json(raw: Map<String, Value>, path: &Path) -> Result<Self> {
        if let Some(reason) = quantised(&raw) {
            return Err(CheckpointError::config(path, reason));
        }
        if let Some(reason) = refused::reason_against(&raw) {
            return Err(CheckpointError::untrained(path, reason));
        }
        let keys = Keys { raw: &raw, path };
        let family = keys.family()?;
        let hidden_size = keys.count("hidden_size", MOST_WIDTH)?;
        let num_layers = keys.count("num_hidden_layers", MOST_LAYERS)?;
        let (num_heads, num_kv_heads, head_dim) = heads(&keys, family, hidden_size)?;
        // What the family's code works out of a layer's number is read as a list.
        let mut written_out = raw.clone();
        write_out(&mut written_out, num_layers);
        let given = Given { keys: Keys { raw: &written_out, path }, num_layers, head_dim };
        let Described { design, layers, ropes, tied, epsilon } = family.describe(&given)?;
        let config = Self {
            family,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: keys.count("intermediate_size", MOST_WIDTH)?,
            vocab_size: keys.count("vocab_size", MOST_TOKENS)?,
            max_positions: keys.count_or("max_position_embeddings", 2048, MOST_POSITIONS)?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(epsilon),
            design,
            layers,
            ropes,
            tied_head: keys.flag("tie_word_embeddings", tied)?,
            dtype: keys
                .either("dtype", "torch_dtype")
                .and_then(Value::as_str)
                .and_then(Dtype::from_torch_name),
            eos_tokens: raw.get("eos_token_id").map(token_ids).unwrap_or_default(),
            raw,
        };
        let parameters = config.parameters();
        if parameters > MOST_PARAMETERS {
            let what = format!(
                "its sizes make {parameters} parameters; {MOST_PARAMETERS} is the most that is \
                 supported"
            );
            return Err(CheckpointError::config(path, what));
        }
        Ok(config)
    }

    /// The same model with only the layers `retained`, ascending.
    ///
    /// # Errors
    ///
    /// As [`Outline::with_layers`].
    pub fn with_layers(&self, retained: &[usize]) -> Result<Self> {
        let path = Path::new("config.json");
        Self::from_json(Outline::of(self, path).with_layers(retained)?, path)
    }

    /// The parsed file.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The linear weights that a layer has, in the order it uses them.
    pub fn modules(&self) -> &'static [Module] {
        if self.design.is_fused { &Module::FUSED } else { &Module::SPLIT }
    }

    /// The width of a norm of queries and of one of keys, if they are normalised.
    pub fn qk_norm_widths(&self) -> Option<(usize, usize)> {
        let Self { num_heads, num_kv_heads, head_dim, .. } = *self;
        self.design.qk_norm.map(|norm| match norm {
            QkNorm::ByHead => (head_dim, head_dim),
            QkNorm::Whole => (num_heads * head_dim, num_kv_heads * head_dim),
        })
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
            Module::QkvProj => (queries + 2 * keys, hidden),
            Module::GateUpProj => (2 * ffn, hidden),
        }
    }

    /// Whether a linear weight has a bias.
    pub fn has_bias(&self, module: Module) -> bool {
        let Design { qkv_bias, o_bias, mlp_bias, .. } = self.design;
        match module {
            Module::QProj | Module::KProj | Module::VProj | Module::QkvProj => qkv_bias,
            Module::OProj => o_bias,
            Module::GateProj | Module::UpProj | Module::DownProj | Module::GateUpProj => mlp_bias,
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
            for norm in self.design.norms.names().all() {
                add(&format!("{norm}.weight"), vec![self.hidden_size]);
            }
            if let Some((queries, keys)) = self.qk_norm_widths() {
                add("self_attn.q_norm.weight", vec![queries]);
                add("self_attn.k_norm.weight", vec![keys]);
            }
            for &module in self.modules() {
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
        let linears: u64 = self.modules().iter().copied().map(weights).sum();
        let attention = 4 * (self.num_heads * self.head_dim * context) as u64;
        let head = 2 * (self.vocab_size * self.hidden_size) as u64;
        self.num_layers as u64 * (2 * linears + attention) + head
    }
}

/// How many heads queries and keys have, and of what size.
fn heads(keys: &Keys<'_>, family: Family, hidden_size: usize) -> Result<(usize, usize, usize)> {
    let num_heads = keys.count("num_attention_heads", MOST_WIDTH)?;
    let num_kv_heads = keys.count_or("num_key_value_heads", num_heads, MOST_WIDTH)?;
    let usual = match family {
        Family::Gemma2 | Family::Gemma3 => 256,
        _ => hidden_size / num_heads,
    };
    let head_dim = keys.count_or("head_dim", usual, MOST_WIDTH)?;
    if num_heads % num_kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
        return keys.fail(format!(
            "{num_heads} heads of {head_dim} over {num_kv_heads} key-value heads do not divide"
        ));
    }
    if num_heads * head_dim > MOST_WIDTH {
        return keys.fail(format!(
            "{num_heads} heads of {head_dim} are {} wide; {MOST_WIDTH} is the most that is \
             supported",
            num_heads * head_dim
        ));
    }
    Ok((num_heads, num_kv_heads, head_dim))
}

/// `generation_config.json` often knows more end-of-turn tokens than `config.json`.
fn generation_eos_tokens(folder: &Path) -> Result<Option<Vec<u32>>> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let raw: Map<String, Value> = read_json(&path)?;
    let tokens = raw.get("eos_token_id").map(token_ids);
    Ok(tokens.filter(|tokens| !tokens.is_empty()))
}

fn token_ids(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(values) => values.iter().flat_map(token_ids).collect(),
        // No token has an id that does not fit.
        _ => value.as_u64().and_then(|token| token.try_into().ok()).into_iter().collect(),
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

    fn windows_of(config: &ModelConfig) -> Vec<Option<usize>> {
        config.layers.iter().map(|kind| kind.window).collect()
    }

    #[test]
    fn both_spellings_say_the_same() {
        let new = parse(qwen2()).unwrap();
        let mut old = qwen2();
        let map = old.as_object_mut().unwrap();
        map.remove("rope_parameters");
        map.insert("rope_theta".into(), json!(1e6));
        let old = parse(old).unwrap();
        assert_eq!(new.ropes, old.ropes);
        assert_eq!(windows_of(&new), [None, None, Some(8), Some(8)]);
    }

    #[test]
    fn windows_follow_layers() {
        let windows = |retained: &[usize]| {
            windows_of(&parse(qwen2()).unwrap().with_layers(retained).unwrap())
        };
        assert_eq!(windows(&[0, 3]), [None, Some(8)]);
        assert_eq!(windows(&[2, 3]), [Some(8); 2]);
        let mut raw = qwen2();
        raw["sliding_window"] = json!(0);
        assert_eq!(windows_of(&parse(raw).unwrap()), [None; 4]);
    }

    #[test]
    fn a_model_larger_than_any_is_refused() {
        let mut raw = qwen2();
        (raw["hidden_size"], raw["vocab_size"]) = (json!(1 << 20), json!(1 << 24));
        raw["head_dim"] = json!(128);
        let error = parse(raw).unwrap_err().to_string();
        assert!(error.contains("parameters; 17592186044416 is the most"), "{error}");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for (key, value, message) in [
            ("model_type", json!("gpt2"), "`model_type` is `gpt2`"),
            (
                "num_hidden_layers",
                json!(1_u64 << 32),
                "`num_hidden_layers` is 4294967296; 10000 is",
            ),
            ("vocab_size", json!(1_u64 << 63), "`vocab_size` is 9223372036854775808; 16777216 is"),
            ("head_dim", json!(1 << 20), "4 heads of 1048576 are 4194304 wide"),
            ("num_attention_heads", json!(u64::MAX), "`num_attention_heads` is"),
            ("num_attention_heads", json!(96), "heads of 0"),
            ("rms_norm_eps", json!("1e-6"), "`rms_norm_eps` must be a number"),
            ("tie_word_embeddings", json!(1), "`tie_word_embeddings` must be true or false"),
            ("sliding_window", json!(-1), "`sliding_window` must be a positive whole number"),
            ("rope_parameters", json!({"rope_type": "linear", "factor": 0}), "must be above 0"),
            ("rope_parameters", json!({"full_attention": {}}), "differ by layer type"),
            ("rope_parameters", json!("yarn"), "the rope scaling is no object"),
            (
                "quantization_config",
                json!({"quant_method": "gptq"}),
                "quantised (`quantization_config`, gptq); use the model's original",
            ),
            (
                "quantization_config",
                json!({"load_in_4bit": true}),
                "quantised (`quantization_config`); `gradpruner convert DIR --out NEW` makes",
            ),
            (
                "quantization_config",
                json!({"quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": true}),
                "quantised (`quantization_config`, bitsandbytes with 8 bits); use the model's original",
            ),
            ("vision_config", json!({}), "multimodal (`vision_config`)"),
            ("num_experts", json!(8), "Mixture-of-Experts (`num_experts` is 8)"),
            ("architectures", json!(["Qwen2ForTokenClassification"]), "…ForCausalLM"),
            ("hidden_act", json!("gelu"), "`hidden_act` is `gelu`"),
            ("num_hidden_layers", json!(0), "`num_hidden_layers` must be"),
            ("rope_parameters", json!({"rope_type": "dynamic"}), "rope type `dynamic`"),
            ("rope_parameters", json!({"rope_type": "yarn"}), "lacks `max_position_embeddings`"),
            ("layer_types", json!(["full_attention"]), "1 entries for 4 layers"),
        ] {
            let mut raw = qwen2();
            raw[key] = value;
            let error = parse(raw).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
