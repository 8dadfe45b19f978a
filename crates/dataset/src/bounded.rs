//! Files of a model, which may come from anywhere: regular ones, of a size that can be read whole.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::json::parse_file;
use crate::{DatasetError, Result};

/// The most bytes of a template or a configuration.
pub(crate) const MOST_BYTES: u64 = 4 << 20;
/// The most bytes of a `tokenizer.json`; a vocabulary of 256,000 tokens takes half as much.
pub(crate) const MOST_TOKENIZER_BYTES: u64 = 64 << 20;

/// Reads a text of so many bytes at most.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    // A pipe would be waited for, a device never ends. Opening what is not there says so.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err(DatasetError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if most < bytes.len() as u64 {
        return Err(DatasetError::TooLarge { path: path.to_owned(), most });
    }
    String::from_utf8(bytes).map_err(|_| DatasetError::NotText { path: path.to_owned() })
}

/// Reads a JSON file, or nothing if there is none.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    parse_file(&read_text(path, MOST_BYTES)?)
        .map_err(|source| DatasetError::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatTemplate, Encoder};

    /// What is said of a model folder with one file of this content.
    fn check(name: &str, bytes: &[u8], expected: &str) {
        let folder = testkit::temporary_folder();
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        let error = match name {
            "tokenizer.json" => Encoder::read(folder.path()).unwrap_err(),
            _ => ChatTemplate::read(folder.path()).unwrap_err(),
        };
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let found = format!("{error} {}", source.unwrap_or_default());
        assert!(found.contains(name) && found.contains(expected), "{found}");
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let large = vec![b' '; (4 << 20) + 1];
        for name in ["chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"] {
            check(name, &large, "larger than 4 MB");
            check(name, b"\xff", "not UTF-8");
        }
        check("tokenizer.json", &vec![b' '; (64 << 20) + 1], "larger than 64 MB");
        let twice = br#"{"eos_token": "a", "eos_token": "b"}"#;
        for name in ["tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"] {
            check(name, twice, "the key `eos_token` stands twice");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let error = read_text(Path::new("/dev/zero"), MOST_BYTES).unwrap_err();
        assert!(matches!(error, DatasetError::NotAFile { .. }));
    }
}
