//! Why a model cannot be pruned as asked.

use std::io;
use std::path::PathBuf;

use checkpoint::CheckpointError;
use igia::ScoreError;

/// Why a model cannot be scored, planned or pruned as asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum PruneError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: step {step}, layer {layer} {module} cannot be scored", path.display())]
    Score { path: PathBuf, step: usize, layer: usize, module: String, source: ScoreError },
    #[error("{}: not a usable {kind}: {what}", path.display())]
    File { path: PathBuf, kind: &'static str, what: String },
    #[error(
        "the record holds no block influence; collect it again with this version, or choose the \
         criterion igia"
    )]
    NoActivations,
    #[error(
        "`{name}` was written otherwise than the plan makes it of the source; is the disk sound?"
    )]
    Differs { name: String },
    #[error("--prune {0}")]
    Share(String),
    #[error("the plan cannot hold: {0}")]
    Plan(String),
    #[error("{}: the record does not fit the model: {what}", path.display())]
    OtherModel { path: PathBuf, what: String },
    #[error("no memory for the importance of a weight; close other programs, or merge no layers")]
    Memory(#[source] io::Error),
    #[error("the plan merges layers, so the gradient record is needed; add `--record`")]
    NoRecord,
}
