//! Models that cannot be used, or not be trained, each refused in a sentence that says what can.

use serde_json::{Map, Value};

use super::Family;

/// Which families are supported, as messages say it.
pub(super) fn supported() -> String {
    let names = Family::ALL.map(Family::name);
    let (last, others) = names.split_last().unwrap_or((&"none", &[]));
    format!(
        "{} and {last} are trained here; for other decoders `score`, `plan` and `prune` work with gradients that your own \
         trainer recorded",
        others.join(", ")
    )
}

/// Keys of wrappers around a language model.
const PARTS: [&str; 8] = [
    "vision_config",
    "audio_config",
    "speech_config",
    "text_config",
    "language_config",
    "llm_config",
    "thinker_config",
    "talker_config",
];

/// Keys that count experts.
const EXPERTS: [&str; 4] =
    ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// Why a model with this `config.json` cannot be trained, if its kind says so.
pub(super) fn reason_against(raw: &Map<String, Value>) -> Option<String> {
    multimodal(raw).or_else(|| experts(raw)).or_else(|| without_head(raw))
}

/// Why its weights cannot be used.
pub(crate) fn quantised(raw: &Map<String, Value>) -> Option<String> {
    let (key, found) = ["quantization_config", "compression_config"]
        .iter()
        .find_map(|&key| Some((key, raw.get(key)?)).filter(|(_, found)| !found.is_null()))?;
    let method = found.get("quant_method").and_then(Value::as_str);
    let method = method.map_or_else(String::new, |method| format!(", {method}"));
    let bits = if is_set(found, "load_in_8bit") { " with 8 bits" } else { "" };
    let advice = match is_in_four_bits(raw) {
        true => "`gradpruner convert DIR --out NEW` makes an ordinary one of it",
        false => "use the model's original in BF16, F16 or F32",
    };
    Some(format!("the checkpoint is quantised (`{key}`{method}{bits}); {advice}"))
}

/// Whether its weights are in bitsandbytes' four bits.
pub(crate) fn is_in_four_bits(raw: &Map<String, Value>) -> bool {
    let Some(found) = raw.get("quantization_config") else { return false };
    let method = found.get("quant_method").and_then(Value::as_str);
    method.is_none_or(|method| method == "bitsandbytes") && is_set(found, "load_in_4bit")
}

fn is_set(settings: &Value, key: &str) -> bool {
    settings.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn multimodal(raw: &Map<String, Value>) -> Option<String> {
    let key = PARTS.iter().find(|&&key| raw.get(key).is_some_and(Value::is_object))?;
    Some(format!(
        "the model is multimodal (`{key}`) and only text models are trained here; `score`, `plan` and \
         `prune` work with gradients that your own trainer recorded"
    ))
}

fn experts(raw: &Map<String, Value>) -> Option<String> {
    let (key, count) = EXPERTS.iter().find_map(|&key| {
        let count = raw.get(key).filter(|value| !value.is_null())?;
        (count.as_u64() != Some(0)).then_some((key, count))
    })?;
    Some(format!(
        "the model is a Mixture-of-Experts (`{key}` is {count}) and only dense models are trained here; \
         `score`, `plan` and `prune` work with gradients that your own trainer recorded"
    ))
}

/// A classifier or an encoder has other weights beside or in place of a head.
fn without_head(raw: &Map<String, Value>) -> Option<String> {
    let names: Vec<&str> =
        raw.get("architectures")?.as_array()?.iter().filter_map(Value::as_str).collect();
    let heads = ["forcausallm", "lmheadmodel"];
    let has_head = |name: &&str| {
        let name = name.to_lowercase();
        heads.iter().any(|head| name.ends_with(head))
    };
    if names.is_empty() || names.iter().any(has_head) {
        return None;
    }
    Some(format!(
        "`architectures` is {}, and only causal language models (…ForCausalLM) are trained here",
        names.join(", ")
    ))
}
