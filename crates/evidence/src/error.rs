//! Why evidence cannot be used.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use igia::ScoreError;

use crate::Need;

/// Why evidence cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum EvidenceError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: step {step}, layer {layer} {module} cannot be scored", path.display())]
    Score { path: PathBuf, step: usize, layer: usize, module: String, source: ScoreError },
    #[error("a step's gradient of layer {layer} {module} cannot be scored")]
    Step { layer: usize, module: String, source: ScoreError },
    #[error("{}: it has no gradients of layer {layer}", path.display())]
    NoLayer { path: PathBuf, layer: usize },
    #[error("{}: not usable evidence: {what}", path.display())]
    File { path: PathBuf, what: String },
    #[error("`{selector}` needs {need}; {}", need.remedy())]
    Missing { selector: &'static str, need: Need },
    #[error("the loss without layers {without:?} could not be computed")]
    Loss { without: Vec<usize>, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{what} could not be computed")]
    Probe { what: String, source: Box<dyn std::error::Error + Send + Sync> },
}
