//! Which tokens begin, end and fill a text, and which of them a tokenizer adds: by llama.cpp's rules (`SpecialVocab`).

use std::collections::HashMap;

use serde_json::Value;

use super::{Files, Key};
use crate::ModelConfig;
use crate::gguf::writer::Metadata;

/// Special tokens' names in Hugging Face's files and keys in GGUF, with its misspelling.
const IDS: [(&str, &str); 7] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("mask", "mask_token_id"),
    ("eot", "eot_token_id"),
];

/// Those that may be added to a text.
const ADDED: [(&str, &str); 3] =
    [("bos", "add_bos_token"), ("eos", "add_eos_token"), ("sep", "add_sep_token")];

/// Special tokens by their names.
#[derive(Default)]
struct Found<'a> {
    texts: HashMap<&'static str, &'a str>,
    adds: HashMap<&'static str, bool>,
}

/// The keys of special tokens with ids below `most`.
pub(super) fn special_tokens(files: &Files<'_>, config: &ModelConfig, most: u64) -> Vec<Key> {
    let Files { tokenizer, config: of_config, .. } = files;
    let mut found = Found::default();
    for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
        if let Some(text) = token_text(&of_config[&format!("{name}_token")]) {
            found.texts.insert(name, text);
        }
    }
    if tokenizer.is_object() {
        found.read_processor(&tokenizer["post_processor"]);
    }
    for (name, key) in ADDED {
        if let Some(flag) = of_config[key].as_bool() {
            found.adds.entry(name).or_insert(flag);
        }
    }
    let added = tokenizer["added_tokens"].as_array();
    let mut keys = Vec::new();
    for (name, key) in IDS {
        let of_text =
            found.texts.get(name).filter(|_| of_config.is_object()).and_then(|text| {
                added?.iter().find(|token| token["content"] == *text)?["id"].as_u64()
            });
        let of_model = || config.raw().get(&format!("{name}_token_id")).and_then(Value::as_u64);
        let fits = |id: &u64| *id < most;
        let id = of_text.filter(fits).or_else(of_model).filter(fits);
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            keys.push((key, Metadata::U32(id)));
        }
    }
    for (name, key) in ADDED {
        if let Some(flag) = found.adds.get(name) {
            keys.push((key, Metadata::Bool(*flag)));
        }
    }
    keys
}

impl<'a> Found<'a> {
    fn read_processor(&mut self, processor: &'a Value) {
        for (name, other) in [("bos", "cls"), ("eos", "sep")] {
            if let Some(text) = self.texts.get(other).copied() {
                self.texts.entry(name).or_insert(text);
            }
        }
        let steps: Vec<&Value> = match processor["processors"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![processor],
        };
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => {
                    self.adds.entry("bos").or_insert(false);
                    self.adds.entry("eos").or_insert(false);
                }
                Some("TemplateProcessing") => self.read_template(step),
                _ => {}
            }
        }
    }

    /// What stands before and behind a text, and between two.
    fn read_template(&mut self, step: &'a Value) {
        let parts = |name: &str| step[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let (mut first, mut last) = (None, None);
        if let [begin, .., end] = parts("single") {
            (first, last) = (special(begin), special(end));
        }
        if let Some(text) = first {
            let is = |found: &Self, name| found.texts.get(name) == Some(&text);
            if !is(self, "bos") && !is(self, "cls") {
                self.texts.entry("bos").or_insert(text);
                self.texts.entry("cls").or_insert(text);
            }
            let adds = is(self, "bos") || is(self, "cls");
            self.adds.insert("bos", adds);
        }
        if let Some(text) = last {
            match self.texts.insert("eos", text) {
                Some(other) if other != text => self.texts.insert("eot", other),
                _ => None,
            };
            self.adds.insert("eos", true);
        }
        let mut pair = parts("pair");
        if let [begin, rest @ ..] = pair
            && first.is_some()
            && special(begin) == first
        {
            pair = rest;
        }
        if let [rest @ .., end] = pair
            && last.is_some()
            && special(end) == last
        {
            pair = rest;
        }
        if let [a, between @ .., b] = pair
            && (&a["Sequence"]["id"], &b["Sequence"]["id"]) == (&"A".into(), &"B".into())
            && !between.is_empty()
        {
            let is = |part: Option<&Value>, name: &str| {
                let text = part.and_then(special);
                text.is_some() && text == self.texts.get(name).copied()
            };
            let of_first =
                (is(between.first(), "sep") || is(between.first(), "eos")) && last.is_none();
            let second = between.get(1).filter(|_| between.len() == 2);
            let adds = of_first || is(second, "sep") || is(second, "eos");
            self.adds.insert("sep", adds);
            if let Some(eos) = self.texts.get("eos").copied().filter(|_| adds) {
                self.texts.entry("sep").or_insert(eos);
            }
        }
    }
}

/// The text of a part of a template that is a special token.
fn special(part: &Value) -> Option<&str> {
    part["SpecialToken"]["id"].as_str()
}

/// A special token's text, which may be an object.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}
