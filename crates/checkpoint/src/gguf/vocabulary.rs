//! A tokenizer's files as GGUF metadata.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::writer::Metadata;
use crate::json::read_json;
use crate::{CheckpointError, Family, ModelConfig, Result};

// ggml's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Special tokens' names in Hugging Face's files and in GGUF.
const SPECIAL: [(&str, &str); 4] =
    [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")];

/// What llama.cpp needs to know of the tokenizer and chat template of a model folder.
///
/// # Errors
///
/// If a file cannot be read, or the tokenizer is no byte-level BPE that llama.cpp cuts into words alike.
pub(super) fn vocabulary(folder: &Path, config: &ModelConfig) -> Result<Vec<(String, Metadata)>> {
    let path = folder.join("tokenizer.json");
    let fail = |what: String| Err(CheckpointError::config(&path, what));
    let tokenizer: Value = read_json(&path)?;
    let of_config = optional(&folder.join("tokenizer_config.json"))?;
    let model = &tokenizer["model"];
    let Some(pre) = pre_tokenizer(&tokenizer).filter(|_| model["type"] == "BPE") else {
        return fail(
            "its tokenizer cannot be written as GGUF yet: byte-level BPE as of GPT-2, SmolLM, Llama 3 and Qwen can".into(),
        );
    };
    let Some(vocab) = model["vocab"].as_object() else {
        return fail("it has no vocabulary".into());
    };
    let added = tokenizer["added_tokens"].as_array().cloned().unwrap_or_default();
    let ids = vocab.values().chain(added.iter().map(|token| &token["id"]));
    if let Some(id) = ids.filter_map(Value::as_u64).find(|id| *id >= config.vocab_size as u64) {
        return fail(format!(
            "token {id} is beyond the model's vocabulary of {} tokens; resize the embedding, or remove the token",
            config.vocab_size
        ));
    }
    let (tokens, kinds) = tokens(vocab, &added, config.vocab_size);
    let merges: Vec<String> =
        model["merges"].as_array().into_iter().flatten().filter_map(merge_text).collect();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut all = Vec::new();
    let is_llama = matches!(config.family, Family::Llama | Family::Mistral);
    if let Some(flag) = of_config.get("add_prefix_space").and_then(Value::as_bool)
        && is_llama
    {
        all.push((key("add_space_prefix"), Metadata::Bool(flag)));
    }
    all.push((key("model"), Metadata::Text("gpt2".into())));
    all.push((key("pre"), Metadata::Text(pre.into())));
    all.push((key("tokens"), Metadata::Texts(tokens)));
    all.push((key("token_type"), Metadata::I32s(kinds)));
    all.push((key("merges"), Metadata::Texts(merges)));
    for (ours, theirs) in SPECIAL {
        let of_text = token_text(&of_config[&format!("{ours}_token")])
            .and_then(|text| added.iter().find(|token| token["content"] == *text)?["id"].as_u64());
        let of_model = || match config.raw().get(&format!("{ours}_token_id")) {
            Some(Value::Number(id)) => id.as_u64(),
            _ => None,
        };
        if let Some(id) = of_text.or_else(of_model).and_then(|id| u32::try_from(id).ok()) {
            all.push((key(&format!("{theirs}_token_id")), Metadata::U32(id)));
        }
    }
    for side in ["bos", "eos"] {
        let given = of_config.get(format!("add_{side}_token")).and_then(Value::as_bool);
        let adds = given.or_else(|| adds(&tokenizer, side, &of_config));
        if let Some(flag) = adds {
            all.push((key(&format!("add_{side}_token")), Metadata::Bool(flag)));
        }
    }
    if let Some(template) = chat_template(folder, &of_config)? {
        all.push(("tokenizer.chat_template".into(), Metadata::Text(template)));
    }
    Ok(all)
}

pub(super) fn optional(path: &Path) -> Result<Value> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}

/// llama.cpp's name for how a text is cut into words, by the steps that `tokenizer.json` lists.
fn pre_tokenizer(tokenizer: &Value) -> Option<&'static str> {
    // llama.cpp composes characters (NFC) for none of these; text is composed nearly always.
    let normalizer = &tokenizer["normalizer"];
    if !normalizer.is_null() && normalizer["type"] != "NFC" {
        return None;
    }
    let step = &tokenizer["pre_tokenizer"];
    let steps: Vec<&Value> = match step["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![step],
    };
    let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
    match kinds.as_slice() {
        ["ByteLevel"] if steps[0]["use_regex"] != false => Some("gpt-2"),
        ["Digits", "ByteLevel"] if steps[0]["individual_digits"] == true => Some("smollm"),
        ["Split", "ByteLevel"] => {
            let pattern = steps[0]["pattern"]["Regex"].as_str()?;
            let starts = pattern.starts_with("(?i:'s|'t|'re|'ve|'m|'ll|'d)");
            match (starts, pattern.contains(r"\p{N}{1,3}"), pattern.contains(r"|\p{N}|")) {
                (true, true, _) => Some("llama-bpe"),
                (true, _, true) => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Every token's text and type, `count` of them; those that no text has pad the embedding.
fn tokens(vocab: &Map<String, Value>, added: &[Value], count: usize) -> (Vec<String>, Vec<i32>) {
    let mut found: HashMap<u64, (&str, i32)> = vocab
        .iter()
        .filter_map(|(text, id)| Some((id.as_u64()?, (text.as_str(), NORMAL))))
        .collect();
    for token in added {
        if let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) {
            let is_control = token["special"] == true || looks_special(text);
            found.insert(id, (text, if is_control { CONTROL } else { USER_DEFINED }));
        }
    }
    let of = |id: u64| match found.get(&id) {
        Some(&(text, kind)) => (text.to_owned(), kind),
        None => (format!("[PAD{id}]"), UNUSED),
    };
    (0..count as u64).map(of).unzip()
}

/// Whether a text that is not marked as special is meant so, by llama.cpp's rule.
fn looks_special(text: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<｜") && text.ends_with("｜>"))
        || text.starts_with("<unused")
}

/// A merge as a text with one space: a list of two in newer files, in which texts may have spaces of their own.
fn merge_text(merge: &Value) -> Option<String> {
    match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => {
            let part = |at: usize| Some(pair.get(at)?.as_str()?.replace(' ', "Ġ"));
            Some(format!("{} {}", part(0)?, part(1)?))
        }
        _ => None,
    }
}

/// A special token's text, which may be an object.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// Whether a text gets the token put before it, or behind it, by the post-processor.
fn adds(tokenizer: &Value, side: &str, config: &Value) -> Option<bool> {
    let processor = &tokenizer["post_processor"];
    let steps: Vec<&Value> = match processor["processors"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![processor],
    };
    let mut found = None;
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => found = found.or(Some(false)),
            Some("TemplateProcessing") => {
                let parts = step["single"].as_array()?;
                let part = if side == "bos" { parts.first() } else { parts.last() }?;
                let id = part["SpecialToken"]["id"].as_str();
                found = Some(id.is_some() && id == token_text(&config[&format!("{side}_token")]));
            }
            _ => {}
        }
    }
    found
}

pub(super) fn chat_template(folder: &Path, config: &Value) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return Ok(Some(fs_err::read_to_string(path)?));
    }
    let given = &config["chat_template"];
    // Several templates have names; the one for plain chats is the model's.
    let of_list = || given.as_array()?.iter().find(|one| one["name"] == "default");
    let template = match of_list() {
        Some(entry) => &entry["template"],
        None => given,
    };
    Ok(template.as_str().map(str::to_owned))
}
