//! A tokenizer's files as GGUF metadata.

mod byte_level;
mod sentence_piece;
mod special;

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use self::byte_level::byte_level;
use self::sentence_piece::sentence_piece;
use self::special::special_tokens;
use super::writer::Metadata;
use crate::json::read_json;
use crate::{CheckpointError, Family, ModelConfig, Result};

// ggml's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The vocabulary at which Llama's family begins no text with a token, by llama.cpp's rule for Granite and `SmolLM`.
const WITHOUT_BEGIN: usize = 49152;

/// What a folder has of a tokenizer; null where a file is missing.
struct Files<'a> {
    folder: &'a Path,
    /// `tokenizer.json`.
    tokenizer: Value,
    /// `tokenizer_config.json`.
    config: Value,
}

/// A key without `tokenizer.ggml.`, and its value.
type Key = (&'static str, Metadata);

/// What llama.cpp needs to know of the tokenizer and chat template of a model folder.
///
/// # Errors
///
/// If a file cannot be read, or the tokenizer is neither a byte-level BPE that llama.cpp cuts into words alike nor a BPE of
/// `SentencePiece`.
pub(super) fn vocabulary(folder: &Path, config: &ModelConfig) -> Result<Vec<(String, Metadata)>> {
    let path = folder.join("tokenizer.json");
    let files = Files {
        folder,
        tokenizer: match folder.join("tokenizer.model").exists() {
            true => optional(&path)?,
            false => read_json(&path)?,
        },
        config: optional(&folder.join("tokenizer_config.json"))?,
    };
    let (mut keys, most) = match byte_level(&files, config)? {
        Some(keys) => (keys, u64::MAX),
        None => match sentence_piece(&files, config)? {
            Some(keys) => (keys, config.vocab_size as u64),
            None => {
                return Err(CheckpointError::config(
                    &path,
                    "its tokenizer cannot be written as GGUF yet: byte-level BPE as of GPT-2, SmolLM, Llama 3, Qwen and GPT-4o \
                     can, and BPE of SentencePiece",
                ));
            }
        },
    };
    require_each_text_once(folder, &keys)?;
    keys.extend(special_tokens(&files, config, most));
    let of_llama = [Family::Llama, Family::Mistral, Family::SmolLm3, Family::Granite];
    if of_llama.contains(&config.family) {
        if let Some(flag) = files.config.get("add_prefix_space").and_then(Value::as_bool) {
            keys.push(("add_space_prefix", Metadata::Bool(flag)));
        }
        if config.vocab_size == WITHOUT_BEGIN {
            keys.retain(|(key, _)| *key != "add_bos_token");
            keys.push(("add_bos_token", Metadata::Bool(false)));
        }
    }
    let named = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    let mut all: Vec<_> = keys.into_iter().map(named).collect();
    if let Some(template) = chat_template(folder, &files.config)? {
        all.push(("tokenizer.chat_template".into(), Metadata::Text(template)));
    }
    Ok(all)
}

/// Refuses two tokens of one text, with which llama.cpp does not start.
fn require_each_text_once(folder: &Path, keys: &[Key]) -> Result<()> {
    for (_, value) in keys.iter().filter(|(key, _)| *key == "tokens") {
        let Metadata::Texts(tokens) = value else { continue };
        let mut seen = HashMap::new();
        for (id, text) in tokens.iter().enumerate() {
            if let Some(other) = seen.insert(text, id) {
                return Err(CheckpointError::config(
                    &folder.join("tokenizer.json"),
                    format!(
                        "tokens {other} and {id} are both `{text}`, and llama.cpp wants each text once"
                    ),
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn optional(path: &Path) -> Result<Value> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}

/// A token that a tokenizer's files add to its model's.
struct Added<'a> {
    id: u64,
    text: &'a str,
    /// Whether it is marked as special.
    special: bool,
}

impl<'a> Added<'a> {
    fn read(id: Option<u64>, token: &'a Value) -> Option<Self> {
        Some(Self { id: id?, text: token["content"].as_str()?, special: token["special"] == true })
    }

    /// Those that `tokenizer.json` lists.
    fn of_tokenizer(tokenizer: &'a Value) -> Vec<Self> {
        let tokens = tokenizer["added_tokens"].as_array().into_iter().flatten();
        tokens.filter_map(|token| Self::read(token["id"].as_u64(), token)).collect()
    }

    /// Its text in the file and its type, by llama.cpp's rule.
    fn stored(&self) -> (String, i32) {
        match self.special || looks_special(self.text) {
            true => (self.text.to_owned(), CONTROL),
            false => (self.text.replace('▁', " "), USER_DEFINED),
        }
    }
}

/// Whether a text that is not marked as special is meant so, by llama.cpp's rule.
fn looks_special(text: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<｜") && text.ends_with("｜>"))
        || (text.starts_with("<unused") && text.ends_with('>'))
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
