//! Byte-level BPE, as GPT-2's: tokens and merges, and how a text is cut into words before.

use std::collections::HashMap;

use serde_json::Value;

use super::{Added, Files, Key, NORMAL, UNUSED};
use crate::gguf::writer::Metadata;
use crate::{CheckpointError, Family, ModelConfig, Result};

/// How the tokenizers of GPT-4 and Llama 3 cut a text.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen's do.
const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How those of GPT-4o and Phi-4 do.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Mistral's newer ones do.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's names for patterns, with whether it looks a whole word up before it merges (`ignore_merges`).
const PATTERNS: [(&str, bool, &str); 5] = [
    (CL100K, true, "llama-bpe"),
    (CL100K, false, "dbrx"),
    (QWEN, false, "qwen2"),
    (O200K, false, "gpt-4o"),
    (TEKKEN, true, "tekken"),
];

/// The vocabulary, if it is one of this kind that llama.cpp knows.
///
/// # Errors
///
/// If it has more tokens than the model.
pub(super) fn byte_level(files: &Files<'_>, config: &ModelConfig) -> Result<Option<Vec<Key>>> {
    let tokenizer = &files.tokenizer;
    let model = &tokenizer["model"];
    let pre = pre_tokenizer(tokenizer, config.family).filter(|_| model["type"] == "BPE");
    let (Some(pre), Some(vocab)) = (pre, model["vocab"].as_object()) else { return Ok(None) };
    let added = Added::of_tokenizer(tokenizer);
    let ids = vocab.values().filter_map(Value::as_u64).chain(added.iter().map(|token| token.id));
    if let Some(id) = ids.into_iter().find(|id| *id >= config.vocab_size as u64) {
        return Err(CheckpointError::config(
            &files.folder.join("tokenizer.json"),
            format!(
                "token {id} is beyond the model's vocabulary of {} tokens; resize the embedding, or remove the token",
                config.vocab_size
            ),
        ));
    }
    let mut found: HashMap<u64, (String, i32)> = vocab
        .iter()
        .filter_map(|(text, id)| Some((id.as_u64()?, (text.clone(), NORMAL))))
        .collect();
    found.extend(added.iter().map(|token| (token.id, token.stored())));
    // Those that no text has pad the embedding.
    let of = |id: u64| found.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
    let (tokens, kinds) = (0..config.vocab_size as u64).map(of).unzip();
    let merges = model["merges"].as_array().into_iter().flatten().filter_map(merge_text).collect();
    Ok(Some(vec![
        ("model", Metadata::Text("gpt2".into())),
        ("pre", Metadata::Text(pre.into())),
        ("tokens", Metadata::Texts(tokens)),
        ("token_type", Metadata::I32s(kinds)),
        ("merges", Metadata::Texts(merges)),
    ]))
}

/// llama.cpp's name for how a text is cut into words, by the steps that `tokenizer.json` lists.
fn pre_tokenizer(tokenizer: &Value, family: Family) -> Option<&'static str> {
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
        // One way to cut, of which llama.cpp has two names.
        ["Digits", "ByteLevel"] if steps[0]["individual_digits"] == true => match family {
            Family::Granite => Some("refact"),
            _ => Some("smollm"),
        },
        ["Split", "ByteLevel"] => {
            let pattern = steps[0]["pattern"]["Regex"].as_str()?;
            let whole = tokenizer["model"]["ignore_merges"] == true;
            let known =
                PATTERNS.iter().find(|(of, by_word, _)| *of == pattern && *by_word == whole);
            known.map(|(.., name)| *name)
        }
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ways_to_cut_a_text() {
        let byte_level = json!({"type": "ByteLevel", "use_regex": false});
        let split = |pattern: &str, whole: bool| {
            json!({"model": {"ignore_merges": whole}, "normalizer": null, "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}, byte_level],
            }})
        };
        for (pattern, whole, name) in PATTERNS {
            assert_eq!(pre_tokenizer(&split(pattern, whole), Family::Llama), Some(name));
        }
        assert_eq!(pre_tokenizer(&split(QWEN, true), Family::Qwen2), None);
        assert_eq!(pre_tokenizer(&split(r"\p{N}{1,3}", false), Family::Olmo2), None);
        let digits = json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel"}]}});
        assert_eq!(pre_tokenizer(&digits, Family::Llama), Some("smollm"));
        assert_eq!(pre_tokenizer(&digits, Family::Granite), Some("refact"));
    }
}
