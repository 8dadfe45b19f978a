//! Why layers cannot be chosen as asked.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use evidence::EvidenceError;

/// Why layers cannot be scored or chosen as asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum SelectionError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("{}: not a usable {kind}: {what}", path.display())]
    File { path: PathBuf, kind: &'static str, what: String },
    #[error("--prune {0}")]
    Share(String),
    #[error("--keep {0}")]
    Keep(String),
    #[error("`{0}` gives layers no score; choose layers with it by `plan` or `run`")]
    NoScores(&'static str),
    #[error("the plan cannot hold: {0}")]
    Plan(String),
}
