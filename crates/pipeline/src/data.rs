//! Data that a stage reads: rows, and their digest.

use std::path::Path;

use checkpoint::{sha256_bytes, sha256_file};
use dataset::{Row, data_files, read_rows};

use crate::Result;

/// The rows of a data file, or of a folder of them; fields in `ignored` are skipped.
///
/// # Errors
///
/// If a file or a row cannot be used whole, with the place where.
pub fn read_data(source: &Path, ignored: &[String]) -> Result<Vec<Row>> {
    Ok(read_rows(source, ignored)?)
}

/// The SHA-256 of a data file; of a folder, that of its data files' names and digests, a line each
/// as `sha256sum` writes it.
///
/// # Errors
///
/// If a file cannot be read.
pub fn digest_data(source: &Path) -> Result<String> {
    if !source.is_dir() {
        return Ok(sha256_file(source)?);
    }
    let mut lines = String::new();
    for file in data_files(source)? {
        let name = file.file_name().unwrap_or_default().display();
        lines.push_str(&format!("{}  {name}\n", sha256_file(&file)?));
    }
    Ok(sha256_bytes(lines.as_bytes()))
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
