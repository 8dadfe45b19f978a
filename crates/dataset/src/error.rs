//! Why data could not be used.

use std::io;
use std::path::PathBuf;

use crate::{Place, Row};

/// Why rows, a template or a tokenizer could not be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum DatasetError {
    #[error(transparent)]
    Io(#[from] io::Error), // From `fs_err`, which names the file.
    #[error("{place}: {what}")]
    Row { place: Place, what: String },
    #[error("{}: there are no rows in it", path.display())]
    Empty { path: PathBuf },
    #[error(
        "{}: not a known kind of data file; known are .jsonl, .json, .csv and .tsv (each also \
         .gz or .zst) and .parquet",
        path.display()
    )]
    Format { path: PathBuf },
    #[error("{}: there are no data files in the folder", path.display())]
    NoFiles { path: PathBuf },
    #[error(
        "{}: holds a folder, `{}`; name that one, or move its files up",
        path.display(),
        folder.file_name().unwrap_or_default().display()
    )]
    Nested { path: PathBuf, folder: PathBuf },
    #[error("{}: not a usable Parquet file: {what}; it may be truncated, fetch it again", path.display())]
    Parquet { path: PathBuf, what: String },
    #[error("{}: not valid JSON", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a file; put the file itself there", path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: larger than {} MB, too large for such a file", path.display(), most >> 20)]
    TooLarge { path: PathBuf, most: u64 },
    #[error("{}: not UTF-8; is it a text file?", path.display())]
    NotText { path: PathBuf },
    #[error("{}: not a usable tokenizer: {what}", path.display())]
    Tokenizer { path: PathBuf, what: String },
    #[error("{template} line {line}: {what}")]
    Template { template: String, line: usize, what: String },
    #[error("{what}")]
    Encode { what: String },
    #[error("no row has a token to learn from; is `--max-length {max_tokens}` too short?")]
    NothingToLearn { max_tokens: usize },
    #[error("{place} cannot be encoded")]
    At { place: Place, source: Box<DatasetError> },
}

impl DatasetError {
    /// What is wrong with the row at a place.
    pub(crate) fn row(place: &Place, what: impl Into<String>) -> Self {
        Self::Row { place: place.clone(), what: what.into() }
    }

    /// The error as that of a row.
    pub(crate) fn at(self, row: &Row) -> Self {
        Self::At { place: row.place.clone(), source: Box::new(self) }
    }
}
