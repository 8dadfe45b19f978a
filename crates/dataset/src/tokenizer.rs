//! The tokenizer, whose library panics on some files and texts: here that becomes an error.

use std::cell::Cell;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Once;

use tokenizers::Encoding;

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
        let parsed = guarded(path, || tokenizers::Tokenizer::from_bytes(&bytes));
        let mut library = parsed.map_err(|error| DatasetError::Tokenizer {
            path: path.to_owned(),
            what: error.to_string(),
        })?;
        // A stored truncation or padding would cut or fill rows behind our back.
        let _ = library.with_truncation(None);
        library.with_padding(None);
        Ok(Self { library, path: path.to_owned() })
    }

    pub(crate) fn encode(&self, text: &str, add_special: bool) -> tokenizers::Result<Encoding> {
        guarded(&self.path, || self.library.encode(text, add_special))
    }

    pub(crate) fn decode(&self, tokens: &[u32], skip_special: bool) -> tokenizers::Result<String> {
        guarded(&self.path, || self.library.decode(tokens, skip_special))
    }
}

impl Deref for Tokenizer {
    type Target = tokenizers::Tokenizer;

    fn deref(&self) -> &tokenizers::Tokenizer {
        &self.library
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Turns a panic of the library into an error.
///
/// It takes what a `tokenizer.json` says for granted in places (a number out of range, a pattern
/// that matches nothing, a merge shorter than its prefix), and a file is not to end the program.
fn guarded<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    static SILENCED: Once = Once::new();
    // The error says what is wrong; the hook would print a trace before it.
    SILENCED.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                others(panic);
            }
        }));
    });
    let before = GUARDED.replace(true);
    // Nothing is used after a panic but the error.
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    result.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason");
        Err(format!("the library for `{}` gave up: {said}", path.display()).into())
    })
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
            assert!(error.contains("tokenizer.json` gave up: "), "{error}");
        }
    }
}
