//! What lies on disk: Hugging Face checkpoints, GGUF files, gradient records and PEFT adapters.
//!
//! Every file format has its reader and its writer side by side, and nothing above this crate
//! knows how bytes are laid out. Weights are mapped, never read whole; whatever is written is
//! written aside first and renamed when it is complete ([`Staging`]).

mod adapter;
pub mod bitsandbytes;
mod checkpoint;
mod companions;
mod config;
mod copying;
mod digest;
mod disk;
mod dtype;
mod error;
pub mod gguf;
mod hub;
mod json;
mod mmap;
mod names;
mod nf4;
mod other_formats;
mod outline;
mod record;
mod staging;
mod unused;
mod weights;
mod writer;

pub use adapter::{Adapter, AdapterConfig, AdapterPair, write_adapter};
pub use checkpoint::{Checkpoint, LinearView};
pub use companions::{copy_companions, require_companions};
pub use config::{
    Activation, Design, Family, LayerKind, MOST_LAYERS, MOST_WIDTH, ModelConfig, NormNames, Norms,
    QkNorm, Rope, RopeScaling, YarnTurns,
};
pub use digest::{sha256_bytes, sha256_file};
pub use disk::free_disk_bytes;
pub use dtype::{Dtype, narrow, widen};
pub use error::CheckpointError;
pub use hub::{
    PushEvent, PushReport, PushSettings, Pushed, PushedFile, locate, locate_configuration,
    locate_data, push,
};
pub use json::{read_json, write_json};
pub use mmap::MappedFile;
pub use names::{LayerTensor, Module, ModuleName, tensor_name};
pub use nf4::{NF4_BLOCK, Nf4};
pub use outline::Outline;
pub use record::{
    Activations, DataSource, LoraSettings, Manifest, ModelSource, Record, RecordWriter,
    RecordedPair, StepEntry, StepGradients, StepReport,
};
pub use staging::{Staging, remove_if_there};
pub use weights::{TensorReader, TensorView, Weights};
pub use writer::{CheckpointWriter, TensorSpec};

/// What every function here returns.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;
