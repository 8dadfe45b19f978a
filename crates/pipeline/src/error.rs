//! Why a run could not go on.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use dataset::DatasetError;
use evidence::EvidenceError;
use finetune::FinetuneError;
use repair::RepairError;
use selection::SelectionError;

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
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Selection(#[from] SelectionError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error(
        "{}: it has more tokens than the model's embedding (tokenizer {tokens}, embedding \
         {embedding}); use the model's own tokenizer, or save the model with its embedding resized",
        path.display()
    )]
    Tokenizer { path: PathBuf, tokens: usize, embedding: usize },
    #[error("the disk is too full: {0}")]
    Disk(String),
    #[error("memory is too short for the training: {0}")]
    Memory(String),
    #[error(
        "{}: holds a run with different settings ({differing}); choose another folder, or remove it",
        path.display()
    )]
    OtherRun { path: PathBuf, differing: String },
    #[error(
        "{}: it was made with different settings ({differing}); delete it to make it again, or choose another folder",
        path.display()
    )]
    OtherRecipe { path: PathBuf, differing: String },
    #[error(
        "{}: another run is using it ({holder}); wait for it, or choose another folder",
        path.display()
    )]
    Busy { path: PathBuf, holder: String },
    #[error("{what}; choose another place for the result")]
    Output { what: String },
    #[error("{output} cannot be written")]
    Unwritable { output: String, source: std::io::Error },
    #[error("{}: not a run's settings: {what}", path.display())]
    RunFile { path: PathBuf, what: String },
    #[error("{what} cannot be used")]
    Unusable { what: String, source: Box<PipelineError> },
    #[error("the settings cannot be used: {0}")]
    Settings(String),
    #[error("{0}")]
    NoAmount(String),
}

impl From<std::io::Error> for PipelineError {
    fn from(error: std::io::Error) -> Self {
        Self::Checkpoint(error.into()) // From `fs_err`, which names the file.
    }
}
