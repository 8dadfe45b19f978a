//! Why data could not be used.

use std::io;
use std::path::PathBuf;

/// Why rows, a template or a tokenizer could not be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum DatasetError {
    #[error(transparent)]
    Io(#[from] io::Error), // From `fs_err`, which names the file.
    #[error("{} line {line}: {what}", path.display())]
    Row { path: PathBuf, line: usize, what: String },
    #[error("{}: there are no rows in it", path.display())]
    Empty { path: PathBuf },
    #[error("{}: not valid JSON", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a usable tokenizer: {what}", path.display())]
    Tokenizer { path: PathBuf, what: String },
    #[error("the chat template could not be rendered; does it take these roles in this order?")]
    Template { source: Box<minijinja::Error> },
    #[error("row {row} cannot be encoded: {what}")]
    Encode { row: usize, what: String },
}

impl From<minijinja::Error> for DatasetError {
    fn from(source: minijinja::Error) -> Self {
        Self::Template { source: Box::new(source) }
    }
}
