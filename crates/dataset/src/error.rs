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
    #[error("{}: not valid JSON", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a usable tokenizer: {what}", path.display())]
    Tokenizer { path: PathBuf, what: String },
    #[error("{template} line {line}: {what}")]
    Template { template: String, line: usize, what: String },
    #[error("the tokenizer refuses the text: {what}")]
    Encode { what: String },
    #[error("no row has a token to learn from; is `--max-length {max_tokens}` too short?")]
    NothingToLearn { max_tokens: usize },
    #[error("{place} cannot be encoded")]
    At { place: Place, source: Box<DatasetError> },
}

impl DatasetError {
    /// The error as that of a row.
    pub(crate) fn at(self, row: &Row) -> Self {
        Self::At { place: row.place.clone(), source: Box::new(self) }
    }
}
