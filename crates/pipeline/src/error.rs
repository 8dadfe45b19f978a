//! Why a run could not go on.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use dataset::DatasetError;
use finetune::FinetuneError;
use prune::PruneError;

/// Why a stage or a run could not be done.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum PipelineError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Finetune(#[from] FinetuneError),
    #[error(transparent)]
    Prune(#[from] PruneError),
    #[error(
        "{}: the tokenizer has ids up to {largest} (tokenizer {}, embedding {embedding}); are both of \
         one model? If tokens were added, resize the embedding and save the model again",
        path.display(), largest + 1
    )]
    Tokenizer { path: PathBuf, largest: usize, embedding: usize },
    #[error("the disk is too full: {0}")]
    Disk(String),
    #[error("memory is too short for the training: {0}")]
    Memory(String),
    #[error(
        "{}: holds a run with other settings ({differing}); choose another folder, or remove it",
        path.display()
    )]
    OtherRun { path: PathBuf, differing: String },
    #[error("{}: not a run's settings: {what}", path.display())]
    RunFile { path: PathBuf, what: String },
    #[error("the settings cannot be used: {0}")]
    Settings(String),
}

impl From<std::io::Error> for PipelineError {
    fn from(error: std::io::Error) -> Self {
        Self::Checkpoint(error.into()) // From `fs_err`, which names the file.
    }
}
