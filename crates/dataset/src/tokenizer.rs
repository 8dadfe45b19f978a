//! The tokenizer, whose library panics on some files and texts: here that is an error.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Encoding;

use crate::bounded::{MOST_TOKENIZER_BYTES, read_text};
use crate::json::parse_file;
use crate::third_party::guarded;
use crate::{DatasetError, Result};

/// The tokenizer of a model.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, MOST_TOKENIZER_BYTES)?;
        // The library builds its tables while it reads: what is too much for it is refused first.
        let excess = match parse_file(&text) {
            Ok(value) => excess(&value),
            Err(error) if error.is_data() => Some(error.to_string()),
            Err(error) => Some(format!("not JSON: {error}")),
        };
        if let Some(what) = excess {
            return Err(DatasetError::Tokenizer { path: path.to_owned(), what });
        }
        let mut inner = call(path, || tokenizers::Tokenizer::from_bytes(text.as_bytes()))?;
        // A stored truncation or padding would cut or fill rows behind our back.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        Ok(Self { inner, path: path.to_owned() })
    }

    /// A text's tokens, with those that the post-processor adds if `special`.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Encoding> {
        call(&self.path, || self.inner.encode(text, special))
    }

    /// A text's tokens and where they stand, in characters.
    pub(crate) fn encode_char_offsets(&self, text: &str) -> Result<Encoding> {
        call(&self.path, || self.inner.encode_char_offsets(text, false))
    }

    pub(crate) fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        call(&self.path, || self.inner.decode(tokens, skip_special))
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The largest id it can give a token.
    pub(crate) fn largest_id(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().unwrap_or(0)
    }
}

/// The longest string a `tokenizer.json` may hold: the library takes time quadratic in a token's
/// length, and recurses once a character.
const LONGEST_STRING: usize = 4096;
/// The most steps of one kind (normalizers, pre-tokenizers, decoders): each may lengthen the text
/// many times.
const MOST_STEPS: usize = 16;

/// What the file has too much of for the library, if anything.
fn excess(value: &Value) -> Option<String> {
    let too_long = |text: &str| {
        (LONGEST_STRING < text.len()).then(|| {
            format!("it holds a string of {} bytes; {LONGEST_STRING} are the most", text.len())
        })
    };
    match value {
        Value::String(text) => too_long(text),
        Value::Array(values) => values.iter().find_map(excess),
        Value::Object(object) => object.iter().find_map(|(key, value)| {
            if key == "precompiled_charsmap" {
                return None; // A table, which is as long as it is.
            }
            let steps = ["normalizers", "pretokenizers", "decoders"].contains(&key.as_str());
            let count = value.as_array().map_or(0, Vec::len);
            if steps && MOST_STEPS < count {
                return Some(format!("`{key}` has {count} steps; {MOST_STEPS} are the most"));
            }
            too_long(key).or_else(|| excess(value))
        }),
        _ => None,
    }
}

/// Calls the library. It takes what a `tokenizer.json` says for granted in places: a number out of
/// range, a pattern that matches nothing, a merge shorter than its prefix.
fn call<T>(path: &Path, action: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let what = match guarded(action) {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("the library that reads it gave up: {panic}"),
    };
    Err(DatasetError::Tokenizer { path: path.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer of single bytes with some of its keys set.
    fn check(keys: &str) -> String {
        let folder = testkit::temporary_folder();
        testkit::tiny_checkpoint(folder.path());
        let path = folder.path().join("tokenizer.json");
        let Value::Object(mut raw) = testkit::json(&path) else { panic!("an object") };
        let (key, value) = keys.split_once(' ').unwrap();
        raw.insert(key.into(), json!("here"));
        let text = Value::Object(raw).to_string().replace("\"here\"", value);
        fs_err::write(&path, text).unwrap();
        match Tokenizer::read(&path) {
            Ok(tokenizer) => tokenizer.encode("a b", false).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn panics_of_the_library_are_errors() {
        for keys in [
            r#"normalizer {"type": "Precompiled", "precompiled_charsmap": "0"}"#,
            r#"normalizer {"type": "Replace", "pattern": {"String": ""}, "content": "x"}"#,
        ] {
            let error = check(keys);
            assert!(error.contains("gave up: "), "{error}");
        }
    }

    #[test]
    fn what_is_too_much_for_the_library_is_refused() {
        let steps = vec![r#"{"type": "Lowercase"}"#; MOST_STEPS + 1].join(",");
        for (keys, expected) in [
            (
                format!(r#"added_tokens [{{"content": "{}"}}]"#, "x".repeat(5000)),
                "it holds a string of 5000 bytes; 4096 are the most",
            ),
            (
                format!(r#"normalizer {{"type": "Sequence", "normalizers": [{steps}]}}"#),
                "`normalizers` has 17 steps; 16 are the most",
            ),
            ("normalizer 1e400".to_owned(), "not JSON: number out of range"),
        ] {
            let error = check(&keys);
            assert!(error.contains(expected), "{error}");
        }
    }
}
