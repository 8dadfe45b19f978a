//! Why a model could not be run or trained.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use collective::CollectiveError;
use dataset::{DatasetError, Place};
use evidence::EvidenceError;
use fused::FusedError;

use crate::train::Difference;

/// Why a model could not be loaded, trained or evaluated.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum FinetuneError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error("libtorch refused an operation")]
    Torch(#[from] tch::TchError),
    #[error(transparent)]
    Fused(#[from] FusedError),
    #[error("no CUDA device can be used: {0}; take `--device cpu`, or see `gradpruner doctor`")]
    NoCuda(String),
    #[error(
        "step {step}: the {what} is not finite ({found}); these rows caused it: {}; lower \
         the learning rate or compute in f32",
        rows.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NotFinite { step: usize, what: &'static str, found: f64, rows: Vec<Place> },
    #[error(
        "the model's output is not a number: it overflows; compute in f32, or look whether its \
         weights are sound"
    )]
    NotANumber,
    #[error(
        "`{name}` holds a number that is not finite, so nothing was written; lower the learning \
         rate or compute in f32"
    )]
    NotFiniteWeight { name: String },
    #[error(
        "the rows hold token {token}, and the embedding has {embedding} tokens; are tokenizer and \
         model of one model?"
    )]
    Token { token: i64, embedding: usize },
    #[error("{}: the adapter does not fit the model: {what}", path.display())]
    OtherModel { path: PathBuf, what: String },
    #[error("{}: the saved state of the training is gone; start again in a new folder", path.display())]
    NoState { path: PathBuf },
    #[error(
        "{}: saved by another training: {}; train as that one did, or remove it to start over",
        path.display(), differing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    OtherRun { path: PathBuf, differing: Vec<Difference> },
    #[error("{}: not a saved training to go on from: {what}; remove it to start over", path.display())]
    BrokenState { path: PathBuf, what: String },
    #[error(
        "{}: this model cannot be the teacher: {what}; take the model that layers were cut from, or one of \
         its tokenizer",
        path.display()
    )]
    OtherTeacher { path: PathBuf, what: String },
    #[error("a step's gradients could not be taken up")]
    Sink(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "stopped as asked after step {step}, which is saved; the same command goes on from there"
    )]
    Stopped { step: usize },
    #[error(
        "stopped as asked; nothing of this stage is kept, and the same command begins it again"
    )]
    StoppedUnsaved,
    #[error("the settings cannot be used: {0}")]
    Settings(String),
}
