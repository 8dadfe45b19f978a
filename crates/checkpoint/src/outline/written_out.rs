//! What a family's code works out of a layer's number, as lists with an entry for each layer.
//!
//! The rules are those of transformers' configuration classes. A family whose code goes by a layer's number and that has
//! no key for a list is refused where a plan would change what it works out.

use serde_json::{Map, Value, json};

/// Adds the lists that the family has keys for and the configuration leaves to its code.
pub(crate) fn write_out(section: &mut Map<String, Value>, num_layers: usize) {
    let family = section.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let count = |section: &Map<String, Value>, key: &str, default: usize| {
        let found = section.get(key).and_then(Value::as_u64);
        found.map_or(default, |count| usize::try_from(count).unwrap_or(usize::MAX))
    };
    // Every so many layers one attends to all tokens, and the others to those in the window.
    let every = match family.as_str() {
        "gemma2" | "gpt_oss" | "vaultgemma" => Some((2, "sliding_attention")),
        "gemma3_text" => Some((count(section, "sliding_window_pattern", 6), "sliding_attention")),
        "afmoe" => Some((count(section, "global_attn_every_n_layers", 4), "sliding_attention")),
        "cohere2" | "olmo3" | "exaone4" | "exaone_moe" => {
            Some((pattern(section.get("sliding_window_pattern")), "sliding_attention"))
        }
        "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text" => {
            Some((count(section, "full_attention_interval", 4), "linear_attention"))
        }
        _ => None,
    };
    if let Some((period, other)) = every {
        let period = period.max(1);
        let kinds = (1..=num_layers).map(|number| match number % period {
            0 => "full_attention",
            _ => other,
        });
        add(section, "layer_types", json!(kinds.collect::<Vec<_>>()));
        // What older versions computed the list from; it would say something else of fewer layers.
        section.remove("sliding_window_pattern");
        section.remove("full_attention_interval");
        section.remove("global_attn_every_n_layers");
    }
    match family.as_str() {
        "smollm3" | "llama4_text" => {
            let period = count(section, "no_rope_layer_interval", 4).max(1);
            let rotated = (1..=num_layers).map(|number| u8::from(number % period != 0));
            add(section, "no_rope_layers", json!(rotated.collect::<Vec<_>>()));
            if family == "llama4_text" {
                let period = count(section, "interleave_moe_layer_step", 1).max(1);
                let experts = (0..num_layers).filter(|layer| (layer + 1) % period == 0);
                add(section, "moe_layers", json!(experts.collect::<Vec<_>>()));
                section.remove("interleave_moe_layer_step");
            }
        }
        // Only odd ones of the first layers have a window.
        "qwen2_moe" => {
            let first = count(section, "max_window_layers", 28);
            let slides = section.get("use_sliding_window") == Some(&Value::Bool(true));
            let kinds =
                (0..num_layers).map(|layer| match slides && layer % 2 == 0 && layer < first {
                    true => "sliding_attention",
                    false => "full_attention",
                });
            add(section, "layer_types", json!(kinds.collect::<Vec<_>>()));
        }
        "qwen2" | "qwen3" if section.get("use_sliding_window") == Some(&Value::Bool(true)) => {
            let first = count(section, "max_window_layers", 28);
            section.insert("max_window_layers".into(), json!(first));
        }
        "minimax" => {
            let kinds = (0..num_layers).map(|layer| match layer % 2 {
                0 => "full_attention",
                _ => "linear_attention",
            });
            add(section, "layer_types", json!(kinds.collect::<Vec<_>>()));
        }
        "recurrent_gemma" => repeat_block_types(section, num_layers),
        "gpt_neo" => spread_attention_types(section, num_layers),
        _ => {}
    }
    spread_experts(section, &family, num_layers);
}

/// Every how many layers one attends to all tokens: a number, or a text such as `LLLG`.
fn pattern(value: Option<&Value>) -> usize {
    match value {
        Some(Value::String(text)) => text.chars().count(),
        Some(value) => value.as_u64().and_then(|count| count.try_into().ok()).unwrap_or(4),
        None => 4,
    }
}

/// Qwen has experts in every so many layers; which of them have none can be listed.
fn spread_experts(section: &mut Map<String, Value>, family: &str, num_layers: usize) {
    let step = section.get("decoder_sparse_step").and_then(Value::as_u64).unwrap_or(1);
    if !family.starts_with("qwen") || step <= 1 {
        return;
    }
    let listed = section.get("mlp_only_layers").and_then(Value::as_array).cloned();
    let listed = listed.unwrap_or_default();
    let dense = (0..num_layers as u64)
        .filter(|&layer| (layer + 1) % step != 0 || listed.contains(&Value::from(layer)));
    let dense: Vec<u64> = dense.collect();
    section.insert("mlp_only_layers".into(), json!(dense));
    section.insert("decoder_sparse_step".into(), json!(1));
}

/// `RecurrentGemma` repeats a short list of kinds over all layers.
fn repeat_block_types(section: &mut Map<String, Value>, num_layers: usize) {
    let usual = || ["recurrent", "recurrent", "attention"].map(Value::from).to_vec();
    let given = section.get("block_types").or(section.get("_block_types"));
    let kinds = given.and_then(Value::as_array).cloned().filter(|kinds| !kinds.is_empty());
    let all = kinds.unwrap_or_else(usual).into_iter().cycle().take(num_layers);
    let all: Vec<Value> = all.collect();
    section.insert("block_types".into(), all.into());
}

/// GPT-Neo repeats groups of kinds: `[[["global", "local"], 12]]` is of 24 layers.
fn spread_attention_types(section: &mut Map<String, Value>, num_layers: usize) {
    let Some(Value::Array(groups)) = section.get("attention_types") else { return };
    let mut kinds: Vec<Value> = Vec::new();
    for group in groups {
        let (Some(Value::Array(of)), Some(times)) =
            (group.get(0), group.get(1).and_then(Value::as_u64))
        else {
            return;
        };
        for _ in 0..times {
            if kinds.len() > num_layers {
                return;
            }
            kinds.extend(of.iter().cloned());
        }
    }
    if kinds.len() == num_layers {
        let one = |kind: Value| json!([[kind], 1]);
        section.insert("attention_types".into(), kinds.into_iter().map(one).collect());
    }
}

fn add(section: &mut Map<String, Value>, key: &str, list: Value) {
    // Llama 4 says nothing by an empty list; in other families it says that no layer is meant.
    let is_llama4 = section.get("model_type").is_some_and(|kind| kind == "llama4_text");
    let nothing = |value: &Value| value.is_null() || (is_llama4 && *value == json!([]));
    let there = section.get(key).is_some_and(|value| !nothing(value));
    if !there {
        section.insert(key.to_owned(), list);
    }
}
