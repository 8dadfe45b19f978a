//! Why a model could not be run or trained.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use collective::CollectiveError;
use dataset::{DatasetError, Place};
use evidence::EvidenceError;
use fused::FusedError;
use tch::TchError;

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
    #[error("libtorch refused an operation: {0}")]
    Torch(String),
    #[error(
        "the GPU refused an operation: {0}; if it can do nothing, set PYTORCH_ALLOC_CONF=expandable_segments:False, which some \
         virtual GPUs need"
    )]
    Driver(String),
    #[error(
        "there is too little memory: {0}; give fewer rows to a pass (`--batch`, and `--accumulate` for as many a step; \
         `--eval-batch-tokens`), keep less of each (`--remat`), or hold less of the weights (`--load-in-4bit`, on a GPU \
         `--offload`)"
    )]
    OutOfMemory(String),
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

impl FinetuneError {
    /// What libtorch says; where in its code it says so is left out.
    fn of_libtorch(text: &str) -> Self {
        let first = text.lines().next().unwrap_or_default();
        let first = first.strip_prefix("Internal torch error: ").unwrap_or(first);
        // What follows is about PyTorch's own accounts.
        let about = [" Including non-PyTorch memory", " Of the allocated memory"];
        let end = about.iter().filter_map(|of| first.find(of)).min().unwrap_or(first.len());
        let what = first[..end].trim_end_matches(['.', ' ']).to_owned();
        match ["out of memory", "can't allocate memory"].iter().any(|of| what.contains(of)) {
            true => Self::OutOfMemory(what),
            false if what.contains("CUDA driver error") => Self::Driver(what),
            false => Self::Torch(what),
        }
    }
}

impl From<TchError> for FinetuneError {
    fn from(error: TchError) -> Self {
        Self::of_libtorch(&error.to_string())
    }
}

impl From<FusedError> for FinetuneError {
    fn from(error: FusedError) -> Self {
        match error {
            FusedError::Torch(error) => error.into(),
            FusedError::Refused(what) => Self::of_libtorch(&what),
            other => Self::Torch(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn libtorch_is_quoted_in_a_line() {
        let [x, y] = [[2, 3], [2, 3]].map(|size| Tensor::ones(size, (Kind::Float, Device::Cpu)));
        let text = FinetuneError::from(x.f_mm(&y).unwrap_err()).to_string();
        let expected = "libtorch refused an operation: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_lack_of_memory_says_what_to_do() {
        let gpu = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5 GiB of which 1.1 GiB is \
                   free. Including non-PyTorch memory, this process has 22 GiB memory in use. Of the allocated memory 20 GiB \
                   is allocated by PyTorch\nException raised from malloc at CUDACachingAllocator.cpp:1";
        let error = FinetuneError::from(FusedError::Refused(gpu.into())).to_string();
        let expected = "there is too little memory: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of \
                        23.5 GiB of which 1.1 GiB is free; give fewer rows";
        assert!(error.starts_with(expected), "{error}");
        let error = FinetuneError::of_libtorch("CUDA driver error: unknown error");
        assert!(matches!(&error, FinetuneError::Driver(_)), "{error}");
        let too_many = Tensor::f_empty([1_i64 << 60], (Kind::Float, Device::Cpu)).unwrap_err();
        let error = FinetuneError::from(too_many);
        assert!(matches!(&error, FinetuneError::OutOfMemory(_)), "{error}");
    }
}
