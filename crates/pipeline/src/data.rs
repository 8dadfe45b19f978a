//! Data that a stage reads: rows, and their digest.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use checkpoint::{locate_data, sha256_bytes, sha256_file};
use dataset::{Row, data_files, read_rows};

use crate::Result;

/// The rows of a data file, of a folder of them, or of a data set of the hub
/// (`hub:owner/name:config:split`, see [`locate_data`]); fields in `ignored` are skipped.
///
/// # Errors
///
/// If a file or a row cannot be used whole, with the place where; or if the hub does not give it.
pub fn read_data(source: &Path, ignored: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in located(source)? {
        rows.append(&mut read_rows(&file, ignored)?);
    }
    Ok(rows)
}

/// The SHA-256 of a data file; of several, that of their names and digests, a line each as
/// `sha256sum` writes it.
///
/// # Errors
///
/// If a file cannot be read, or the hub does not give it.
pub fn digest_data(source: &Path) -> Result<String> {
    let located = located(source)?;
    let files = match located.as_slice() {
        [file] if !file.is_dir() => return Ok(sha256_file(file)?),
        [folder] => data_files(folder)?,
        _ => located,
    };
    let mut lines = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().display();
        lines.push_str(&format!("{}  {name}\n", sha256_file(&file)?));
    }
    Ok(sha256_bytes(lines.as_bytes()))
}

/// How many rows to evaluate on are among those to train on; warns if any is.
pub(crate) fn rows_in_common(
    train: &Path,
    eval: &Path,
    most: Option<usize>,
    ignored: &[String],
) -> Result<usize> {
    let key = |row: &Row| serde_json::json!(row.content).to_string();
    let trained: HashSet<String> = read_data(train, ignored)?.iter().map(key).collect();
    let evaluated = read_data(eval, ignored)?.into_iter().take(most.unwrap_or(usize::MAX));
    let count = evaluated.filter(|row| trained.contains(&key(row))).count();
    if count > 0 {
        tracing::warn!("{count} of the rows to evaluate on are among the rows trained on");
    }
    Ok(count)
}

/// The source itself, or the files of a data set of the hub.
fn located(source: &Path) -> Result<Vec<PathBuf>> {
    // The hub's files may change while a run is under way: each name is looked up once.
    static FOUND: Mutex<Option<HashMap<String, Vec<PathBuf>>>> = Mutex::new(None);
    let Some(name) = source.to_str().filter(|name| name.starts_with("hub:")) else {
        return Ok(vec![source.to_owned()]);
    };
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.get_or_insert_default();
    if let Some(files) = found.get(name) {
        return Ok(files.clone());
    }
    let files = locate_data(name)?;
    found.insert(name.to_owned(), files.clone());
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sha256sum a.jsonl b.jsonl | sha256sum`.
    #[test]
    fn a_folder_is_its_files_digests_and_names() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("b.jsonl", "b\n"), ("a.jsonl", "a\n"), ("README.md", "x")] {
            fs_err::write(at(name), text).unwrap();
        }
        let digest = || digest_data(folder.path()).unwrap();
        let before = digest();
        assert_eq!(before, "4effa42067ea8889a74dac37c737de4ccd2a5d142b3a66e89701200a379f615d");
        fs_err::write(at("README.md"), "y").unwrap();
        assert_eq!(digest(), before);
        fs_err::rename(at("b.jsonl"), at("c.jsonl")).unwrap();
        assert_ne!(digest(), before);
        assert_eq!(digest_data(&at("a.jsonl")).unwrap(), sha256_file(&at("a.jsonl")).unwrap());
    }
}
