//! The keys of `adapter_config.json`: used, known to change nothing, or refused by name.

use serde_json::{Map, Value};

use super::AdapterConfig;
use crate::MOST_WIDTH;

/// Keys that are read elsewhere, and those that say where an adapter comes from or how to train it.
const KNOWN: [&str; 28] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_version",
    "unsloth_fixed",
    "inference_mode",
    "lora_dropout",
    "runtime_config",
    "megatron_core",
    "eva_config",
    "ensure_weight_tying",
    "qalora_group_size",
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
];

/// Ways to begin that leave the base model's weights as they are.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Why an adapter with this `adapter_config.json` would not be computed as PEFT computes it.
pub(super) fn reason_against(raw: &Map<String, Value>) -> Option<String> {
    let get = |key: &str| raw.get(key).filter(|value| is_set(value));
    match get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        found => {
            let found = found.unwrap_or("missing");
            return Some(format!("`peft_type` is `{found}`; only LORA is supported"));
        }
    }
    if let Some(bias) = get("bias").filter(|bias| bias.as_str() != Some("none")) {
        return Some(format!("`bias` is {bias}, and biases of adapters are not supported"));
    }
    for key in ["fan_in_fan_out", "modules_to_save"] {
        if let Some(value) = get(key) {
            return Some(format!("`{key}` is {value}, which is not supported"));
        }
    }
    if let Some(start) = get("init_lora_weights")
        && !(start.is_boolean() || start.as_str().is_some_and(|name| PLAIN_STARTS.contains(&name)))
    {
        return Some(format!(
            "`init_lora_weights` is {start}, which may change the base model's weights; save the \
             adapter with PEFT's `path_initial_model_for_weight_conversion`"
        ));
    }
    let pattern = get("layers_pattern").filter(|pattern| {
        let names = pattern.as_array().map_or(std::slice::from_ref(*pattern), Vec::as_slice);
        names.iter().any(|name| name.as_str() != Some("layers"))
    });
    if let Some(pattern) = pattern {
        return Some(format!("`layers_pattern` is {pattern}; only `layers` is supported"));
    }
    let unknown = raw.iter().find(|(key, value)| is_set(value) && !KNOWN.contains(&key.as_str()));
    unknown.map(|(key, value)| format!("`{key}` is {value}, which is not supported"))
}

/// Why numbers of an adapter's configuration cannot be.
pub(super) fn out_of_bounds(config: &AdapterConfig) -> Option<String> {
    let ranks = config.rank_pattern.iter().map(|(key, rank)| (key.as_str(), rank.as_u64()));
    for (key, rank) in ranks.chain([("r", Some(config.r as u64))]) {
        if !rank.is_some_and(|rank| (1..=MOST_WIDTH as u64).contains(&rank)) {
            return Some(format!("the rank `{key}` is not between 1 and {MOST_WIDTH}"));
        }
    }
    let alphas = config.alpha_pattern.iter().map(|(key, alpha)| (key.as_str(), alpha.as_f64()));
    for (key, alpha) in alphas.chain([("lora_alpha", Some(config.lora_alpha))]) {
        if !alpha.is_some_and(f64::is_finite) {
            return Some(format!("the alpha `{key}` is not a number"));
        }
    }
    let keys = config.rank_pattern.keys().chain(config.alpha_pattern.keys());
    keys.filter(|key| !is_plain(key))
        .map(|key| {
            format!("the pattern `{key}` is not supported; only names of modules and layers are")
        })
        .next()
}

/// The value a pattern gives a module: that of the first name which is the module's or its end.
pub(super) fn of_pattern<'a>(patterns: &'a Map<String, Value>, module: &str) -> Option<&'a Value> {
    let matches = |key: &str| match key.strip_prefix('^') {
        Some(whole) => whole == module,
        None => is_end(module, key),
    };
    patterns.iter().find(|(key, _)| matches(key)).map(|(_, value)| value)
}

/// Whether a module is called `name`, or ends in it from a dot on.
pub(super) fn is_end(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// PEFT takes regular expressions; what is no name is not understood here.
fn is_plain(key: &str) -> bool {
    let name = key.strip_prefix('^').unwrap_or(key);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c))
}

/// Whether a value says anything: PEFT writes every key, most of them empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(map) => map.values().any(is_set),
        _ => true,
    }
}
