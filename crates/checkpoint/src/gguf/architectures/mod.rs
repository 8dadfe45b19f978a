//! How llama.cpp knows the families, a file each: its name for one, the keys beyond those that all have, and what it cannot
//! compute.

mod gemma;
mod granite;
mod llama;
mod olmo2;
mod phi3;
mod qwen;
mod rope;
mod smollm3;

pub(in crate::gguf) use rope::llama3 as llama3_factors;
use serde_json::Value;

use super::writer::Metadata;
use crate::{Family, ModelConfig, Rope};

/// A model as llama.cpp sees it.
#[derive(Debug, PartialEq)]
pub(super) struct Architecture {
    /// llama.cpp's name for the family, with which its keys begin.
    pub(super) name: &'static str,
    /// Whether the rows of q and k stand in rotary pairs.
    pub(super) is_paired: bool,
    /// The keys, without that name.
    pub(super) keys: Vec<Key>,
    /// Factors of the rotation, which stand in tensors of their own.
    pub(super) factors: Vec<(&'static str, Vec<f32>)>,
}

/// A key without the architecture's name, and its value.
type Key = (&'static str, Metadata);

/// How llama.cpp sees the model, or in a sentence why it cannot compute it.
pub(super) fn architecture(config: &ModelConfig) -> Result<Architecture, String> {
    match config.family {
        Family::Llama | Family::Mistral => llama::describe(config),
        Family::Qwen2 => qwen::describe("qwen2", config),
        Family::Qwen3 => qwen::describe("qwen3", config),
        Family::SmolLm3 => smollm3::describe(config),
        Family::Granite => granite::describe(config),
        Family::Olmo2 => olmo2::describe(config),
        Family::Phi3 => phi3::describe(config),
        Family::Gemma2 => gemma::describe_2(config),
        Family::Gemma3 => gemma::describe_3(config),
    }
}

/// The keys that every family has.
fn common(config: &ModelConfig) -> Vec<Key> {
    vec![
        ("block_count", count(config.num_layers)),
        ("context_length", count(config.max_positions)),
        ("embedding_length", count(config.hidden_size)),
        ("feed_forward_length", count(config.intermediate_size)),
        ("attention.head_count", count(config.num_heads)),
        ("attention.head_count_kv", count(config.num_kv_heads)),
        ("attention.layer_norm_rms_epsilon", number(config.rms_norm_eps)),
    ]
}

/// The width of a head.
fn head_width(config: &ModelConfig) -> [Key; 2] {
    let width = count(config.head_dim);
    [("attention.key_length", width.clone()), ("attention.value_length", width)]
}

/// The same, where the configuration says it or it is not what llama.cpp takes it for.
fn given_head_width(config: &ModelConfig) -> impl Iterator<Item = Key> {
    let is_given = config.raw().get("head_dim").is_some_and(|value| !value.is_null());
    let is_needed = is_given || config.num_heads * config.head_dim != config.hidden_size;
    head_width(config).into_iter().filter(move |_| is_needed)
}

/// What families have that descend from Llama.
fn of_llama(config: &ModelConfig) -> [Key; 2] {
    [("vocab_size", count(config.vocab_size)), ("rope.dimension_count", count(config.head_dim))]
}

fn count(value: usize) -> Metadata {
    Metadata::U32(u32::try_from(value).unwrap_or(u32::MAX))
}

fn number(value: f64) -> Metadata {
    Metadata::F32(value as f32)
}

/// A number of the configuration that is kept as it is given.
fn raw_number(config: &ModelConfig, key: &str) -> Option<f64> {
    config.raw().get(key).and_then(Value::as_f64)
}

/// Refuses a window.
fn require_no_window(config: &ModelConfig) -> Result<(), String> {
    match config.layers.iter().any(|kind| kind.window.is_some()) {
        false => Ok(()),
        true => Err(
            "llama.cpp has no sliding window for this family; set `sliding_window` to null in the config to export \
             without it"
                .into(),
        ),
    }
}

/// Refuses biases of weights other than q, k and v.
fn require_no_further_bias(config: &ModelConfig) -> Result<(), String> {
    match config.design.o_bias || config.design.mlp_bias {
        false => Ok(()),
        true => {
            Err("llama.cpp has no such biases for this family (`attention_bias`, `mlp_bias`)"
                .into())
        }
    }
}

/// Refuses heads that are not together as wide as the model.
fn require_usual_heads(config: &ModelConfig) -> Result<(), String> {
    let ModelConfig { num_heads, head_dim, hidden_size, .. } = *config;
    match num_heads * head_dim == hidden_size {
        true => Ok(()),
        false => Err(format!(
            "llama.cpp has no `head_dim` for this family: {num_heads} heads of {head_dim} are not as wide as the model, \
             {hidden_size}"
        )),
    }
}

/// Refuses what stretches the frequencies otherwise than `knows` says.
fn require_scaling(config: &ModelConfig, knows: fn(&Rope) -> bool) -> Result<(), String> {
    match config.ropes.iter().all(knows) {
        true => Ok(()),
        false => {
            Err("llama.cpp does not compute this rope scaling for this family (see `rope_parameters` or `rope_scaling` in \
                      config.json)".into())
        }
    }
}
