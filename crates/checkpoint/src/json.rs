//! JSON files: of a size that can be read whole, and with each key of an object once.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{CheckpointError, Result, Staging};

/// The index of the largest dense model takes a hundredth of this; parsed, it takes ten times as much.
const MOST_BYTES: u64 = 32 << 20;

/// Reads a JSON file.
///
/// Which of two values of one key counts is up to each reader, so a file that gives a key twice may
/// mean one thing here and another elsewhere: it is refused.
///
/// # Errors
///
/// If the file cannot be read, is no file or too large, is not JSON, or gives a key twice.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(&read_text(path)?, path)
}

/// Writes a JSON file as people like to read it, with a line end, whole or not at all.
///
/// # Errors
///
/// If a value has no form in JSON, or the disk refuses.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(CheckpointError::json(path))?;
    text.push('\n');
    Staging::write(path, text.as_bytes())
}

/// As [`read_json`], of text that was read already; `path` is for messages only.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    // Of itself it refuses nothing but a second value of a key.
    let unique: serde_json::Result<UniqueKeys> = serde_json::from_str(text);
    unique.map_err(|source| match source.is_data() {
        true => CheckpointError::KeyTwice { path: path.to_owned(), source },
        false => CheckpointError::Json { path: path.to_owned(), source },
    })?;
    serde_json::from_str(text).map_err(CheckpointError::json(path))
}

/// Refuses what is there and is no file: a pipe would be waited for, a device never ends.
pub(crate) fn require_file(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(found) if !found.is_file() => Err(CheckpointError::NotAFile { path: path.to_owned() }),
        // Opening one that is not there says so.
        _ => Ok(()),
    }
}

fn read_text(path: &Path) -> Result<String> {
    require_file(path)?;
    let mut text = String::new();
    fs_err::File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 {
        ..=MOST_BYTES => Ok(text),
        _ => Err(CheckpointError::TooLarge { path: path.to_owned(), most: MOST_BYTES }),
    }
}

/// Any JSON value whose objects give each key once. `dataset`, which imports nothing of ours, has a
/// reader of its own, which counts values too.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("`{key}` is given twice")));
            }
            seen.insert(key);
            map.next_value::<Self>()?;
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self, A::Error> {
        while values.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(text: &str) -> String {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("a.json");
        fs_err::write(&path, text).unwrap();
        match read_json::<Value>(&path).unwrap_err() {
            CheckpointError::Json { source, .. } | CheckpointError::KeyTwice { source, .. } => {
                source.to_string()
            }
            other => other.to_string(),
        }
    }

    #[test]
    fn ambiguous_and_endless_files_are_refused() {
        assert!(check(r#"{"a": 1, "b": {"c": 2, "c": 3}}"#).contains("`c` is given twice"));
        assert!(check(&"[".repeat(100_000)).contains("recursion limit"));
        assert!(check("1e400").contains("out of range"));
        let endless = read_json::<Value>(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(endless, CheckpointError::NotAFile { .. }));
    }
}
