//! The tokenizer, whose library panics on some files and texts: here that is an error.

use std::path::{Path, PathBuf};

use tokenizers::Encoding;

use crate::third_party::guarded;
use crate::{DatasetError, Result};

/// The tokenizer of a model.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    library: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs_err::read(path)?;
        let mut library = call(path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // A stored truncation or padding would cut or fill rows behind our back.
        let _ = library.with_truncation(None);
        library.with_padding(None);
        Ok(Self { library, path: path.to_owned() })
    }

    /// A text's tokens, with those that the post-processor adds if `special`.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Encoding> {
        call(&self.path, || self.library.encode(text, special))
    }

    /// A text's tokens and where they stand, in characters.
    pub(crate) fn encode_char_offsets(&self, text: &str) -> Result<Encoding> {
        call(&self.path, || self.library.encode_char_offsets(text, false))
    }

    pub(crate) fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        call(&self.path, || self.library.decode(tokens, skip_special))
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The largest id it can give a token.
    pub(crate) fn largest_id(&self) -> u32 {
        self.library.get_vocab(true).into_values().max().unwrap_or(0)
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
    use serde_json::{Value, json};

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
            r#"decoder {"type": "Strip", "content": " ", "start": 1e400, "stop": 0}"#,
            r#"normalizer {"type": "Precompiled", "precompiled_charsmap": "0"}"#,
            r#"normalizer {"type": "Replace", "pattern": {"String": ""}, "content": "x"}"#,
        ] {
            let error = check(keys);
            assert!(error.contains("gave up: "), "{error}");
        }
    }
}
