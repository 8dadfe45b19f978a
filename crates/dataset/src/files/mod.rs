//! Data files of every format, each read as one JSON object after another.

mod array;
mod lines;
mod parquet;
mod stream;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{DatasetError, Place, Result};

/// What is done with each object of a file.
type Each<'a> = dyn FnMut(Place, Map<String, Value>) -> Result<()> + 'a;

/// How rows are laid out in a file, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Objects on lines of their own, or one list of them.
    Json,
    /// Fields with a separator between them, under a header.
    Table { separator: u8 },
    /// Columns, with their types.
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let name = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" | "json" => Some(Self::Json),
            "csv" => Some(Self::Table { separator: b',' }),
            "tsv" => Some(Self::Table { separator: b'\t' }),
            // Its pages are compressed, the file is not.
            "parquet" if path.extension()?.eq_ignore_ascii_case("parquet") => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The files that a file or folder of data stands for: itself, or the folder's, in the order of
/// their names.
///
/// # Errors
///
/// If a name says no known format, or a folder holds no data file or folders of its own.
pub fn data_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        fs_err::File::open(path)?; // A name without an ending may be a file's that is not there.
        return match Format::of(path) {
            Some(_) => Ok(vec![path.to_owned()]),
            None => Err(DatasetError::Format { path: path.to_owned() }),
        };
    }
    let mut files = fs_err::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .filter(|file| !file.as_ref().is_ok_and(|file| holds_no_rows(file)))
        .collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    for file in &files {
        if file.is_dir() {
            return Err(DatasetError::Nested { path: path.to_owned(), folder: file.clone() });
        }
        if Format::of(file).is_none() {
            return Err(DatasetError::Format { path: file.clone() });
        }
    }
    if files.is_empty() {
        return Err(DatasetError::NoFiles { path: path.to_owned() });
    }
    Ok(files)
}

/// Whether a file of a folder is about the data, rather than data itself.
fn holds_no_rows(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (stem, ending) = name.rsplit_once('.').unwrap_or((&name, ""));
    name.starts_with(['.', '_'])
        || ["readme", "license", "licence", "notice", "citation"].contains(&stem)
        || ["dataset_info.json", "dataset_infos.json"].contains(&name.as_str())
        || ["md", "py", "yaml", "yml"].contains(&ending)
}

/// Calls `each` with every object of a file.
///
/// # Errors
///
/// If the file cannot be read, with the place where; and what `each` returns.
pub(crate) fn read_objects(path: &Path, each: &mut Each<'_>) -> Result<()> {
    let file: Arc<Path> = path.into();
    let Some(format) = Format::of(path) else {
        return Err(DatasetError::Format { path: path.to_owned() });
    };
    match format {
        Format::Parquet => parquet::read(&file, each),
        Format::Table { separator } => table::read(stream::open(&file)?, separator, each),
        Format::Json => {
            let mut stream = stream::open(&file)?;
            match stream.next_is(b'[')? {
                true => array::read(stream, each),
                false => lines::read(stream, each),
            }
        }
    }
}

/// The object a value is.
fn object(value: Value, place: &Place) -> Result<Map<String, Value>> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(DatasetError::row(place, "it is not a JSON object")),
    }
}

/// What is wrong with a JSON text that `place` names the line of.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let kind = if error.is_data() { "" } else { "not JSON: " };
    format!("{kind}{what} at column {}", error.column())
}

#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "`expect!` writes them")]
mod tests;
