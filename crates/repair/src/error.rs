//! Why a model cannot be pruned as planned.

use std::io;
use std::path::PathBuf;

use checkpoint::CheckpointError;
use evidence::EvidenceError;
use selection::{Repair, SelectionError};

/// Why a model cannot be pruned as planned.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum RepairError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Plan(#[from] SelectionError),
    #[error(
        "`{name}` was written otherwise than the plan makes it of the source; is the disk sound?"
    )]
    Differs { name: String },
    #[error("{}: the {what} does not fit the model: {reason}", path.display())]
    OtherModel { path: PathBuf, what: &'static str, reason: String },
    #[error(
        "layer {donor} has no weight like `{receiver}`, so it cannot be merged into that layer; merge other layers, or \
         take `--repair drop`"
    )]
    Unlike { donor: usize, receiver: String },
    #[error(
        "`{name}` holds the experts of a layer in one tensor, which `laco` does not merge, and their router it would; take \
         `--repair drop` or same-sign"
    )]
    StackedExperts { name: String },
    #[error("{}: not usable {kind}: {what}", path.display())]
    Fit { path: PathBuf, kind: &'static str, what: String },
    #[error("no memory for the importance of a weight; close other programs, or merge no layers")]
    Memory(#[source] io::Error),
    #[error("the plan merges layers, so the gradient record is needed; add `--record`")]
    NoRecord,
    #[error(
        "the plan repairs by `{repair}`, which is fitted on rows; add `--train`, or take `--repair drop`"
    )]
    NoFit { repair: Repair },
}
