//! The fields of a row or message: each is used, known to carry nothing to learn, or refused.

use serde_json::{Map, Value};

use crate::json::parse;

/// Fields that carry nothing to learn, by what they say; passed over in rows, messages and parts of
/// messages alike.
const NOTHING_TO_LEARN: [(&str, &str); 4] = [
    (
        "which row it is",
        "id, _id, uid, uuid, guid, hash, idx, index, row_id, row_idx, example_id, sample_id, \
         prompt_id, question_id, conversation_id, conv_id, dialog_id, message_id, \
         __index_level_0__, Unnamed: 0",
    ),
    (
        "where it comes from",
        "source, sources, origin, dataset, dataset_name, subset, split, url, uri, filename, \
         file_name, license, licence, author, annotator, annotator_id",
    ),
    (
        "what it is about, how good it is",
        "category, categories, subcategory, topic, subject, domain, task_id, tags, difficulty, score, \
         scores, rating, ratings, quality, quality_score, lang, language, locale",
    ),
    (
        "when and by what it was made",
        "created, created_at, updated_at, date, timestamp, version, metadata, meta, model, \
         model_name, num_turns, num_tokens, token_count, finish_reason",
    ),
];

/// Fields that this tool understands somewhere; misspellings of these are pointed out.
const UNDERSTOOD: &str = "messages conversations conversation instruction input output history \
    prompt completion question answer query response text system system_prompt tools choices \
    answerKey role from content value name weight train tool_calls tool_call_id function_call \
    reasoning_content";

/// The fields of an object, less those already used.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// What the object is called in errors: `messages[2]`, or nothing for a row.
    pub(crate) name: String,
    left: Map<String, Value>,
    /// The fields to pass over at the user's word.
    ignored: &'a [String],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(name: String, object: Map<String, Value>, ignored: &'a [String]) -> Self {
        let left = object
            .into_iter()
            .filter(|(key, value)| !value.is_null() && !ignored.contains(key))
            .collect();
        Self { name, left, ignored }
    }

    /// The fields of an object inside this one.
    pub(crate) fn inner(&self, name: String, value: Value) -> Result<Self, String> {
        match value {
            Value::Object(fields) => Ok(Self::new(name, fields, self.ignored)),
            other => Err(format!("`{name}` is {}; it must be an object", kind(&other))),
        }
    }

    /// Whether a field is there with a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// Whether a field is there and a list.
    pub(crate) fn is_list(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(Value::is_array)
    }

    /// Whether a field is there with something in it.
    pub(crate) fn has_more_than_nothing(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(|value| !is_nothing(value))
    }

    /// The first of some fields that is there.
    pub(crate) fn first<'k>(&self, keys: &[&'k str]) -> Option<&'k str> {
        keys.iter().copied().find(|key| self.has(key))
    }

    /// The first of some fields that has something in it.
    pub(crate) fn first_filled<'k>(&self, keys: &[&'k str]) -> Option<&'k str> {
        keys.iter().copied().find(|key| self.has_more_than_nothing(key))
    }

    /// Takes a field.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.shift_remove(key)
    }

    /// Takes a field that has something in it.
    pub(crate) fn take_more_than_nothing(&mut self, key: &str) -> Option<Value> {
        self.take(key).filter(|value| !is_nothing(value))
    }

    /// Takes a text, if it is there.
    pub(crate) fn take_text(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(format!("`{}` is {}; it must be a string", self.path(key), kind(&other)))
            }
        }
    }

    /// Takes a list, if it is there and not empty; also one that is stored as its JSON text.
    pub(crate) fn take_list(&mut self, key: &str) -> Result<Vec<Value>, String> {
        let wrong = |what: &str, path: String| format!("`{path}` is {what}; it must be a list");
        match self.take_more_than_nothing(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(Value::String(text)) => match parse(&text) {
                Ok(Value::Array(list)) => Ok(list),
                _ => Err(wrong("a string that holds no JSON list", self.path(key))),
            },
            Some(other) => Err(wrong(kind(&other), self.path(key))),
        }
    }

    /// What a field is called in errors.
    pub(crate) fn path(&self, key: &str) -> String {
        match self.name.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.name),
        }
    }

    /// Refuses fields that were not used and may carry something to learn.
    pub(crate) fn finish(self) -> Result<(), String> {
        let unused: Vec<&str> = self
            .left
            .iter()
            .filter(|(key, value)| !is_nothing(value) && !is_nothing_to_learn(key))
            .map(|(key, _)| key.as_str())
            .take(8)
            .collect();
        let named: Vec<String> =
            unused.iter().map(|key| format!("`{}`{}", self.path(key), advice(key))).collect();
        let (are, them) = match unused.as_slice() {
            [] => return Ok(()),
            [_] => ("is", "it"),
            _ => ("are", "them"),
        };
        Err(format!(
            "{} {are} not understood here; pass `--ignore-fields {}` to skip {them}",
            named.join(", "),
            unused.join(",")
        ))
    }
}

/// What may have been meant.
fn advice(key: &str) -> String {
    let near = |known: &&str| strsim::osa_distance(key, known) <= 1 + key.len() / 8;
    let meant = match key {
        "reasoning" | "thinking" | "thought" => Some("reasoning_content"),
        _ if key.len() > 40 => None,
        _ => UNDERSTOOD.split_whitespace().find(near),
    };
    match meant {
        Some(known) if known != key => format!(" (did you mean `{known}`?)"),
        _ => String::new(),
    }
}

fn is_nothing_to_learn(key: &str) -> bool {
    NOTHING_TO_LEARN.iter().any(|(_, keys)| keys.split(", ").any(|known| known == key))
}

/// Null, and what is empty, says nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documented() -> String {
        fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats.md"))
            .unwrap()
    }

    #[test]
    fn formats_md_has_the_table_in_force() {
        let mut table = "| what they say | fields |\n|---|---|\n".to_owned();
        for (what, keys) in NOTHING_TO_LEARN {
            let keys: Vec<String> = keys.split(", ").map(|key| format!("`{key}`")).collect();
            table.push_str(&format!("| {what} | {} |\n", keys.join(", ")));
        }
        assert!(documented().contains(&format!("\n{table}\n")), "docs/formats.md lacks\n{table}");
    }

    #[test]
    fn formats_md_says_what_becomes_of_every_field() {
        let text = documented();
        for key in UNDERSTOOD.split_whitespace() {
            assert!(text.contains(&format!("`{key}`")), "{key} is not in docs/formats.md");
            assert!(!is_nothing_to_learn(key), "{key} is both used and passed over");
        }
    }
}
