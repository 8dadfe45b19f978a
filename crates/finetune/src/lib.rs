//! Fine-tuning of Llama-family checkpoints with libtorch: weights and data to losses, gradients
//! and tuned weights.
//!
//! One decoder serves all families, each a description in its configuration. Rows are
//! packed without padding, the head runs on labelled positions only, and after clipping each
//! step's adapter gradients go to a [`GradientSink`].

mod attention;
mod bridge;
mod collect;
mod decoder;
mod device;
mod discrepancy;
mod distil;
mod error;
mod estimate;
mod evaluate;
mod gated;
mod gates;
mod generate;
mod head;
mod hidden;
mod layer;
mod linear;
mod linear_map;
mod lora;
mod loss;
mod magnitude;
mod memory;
mod norm;
mod observer;
mod offload;
mod optimizer;
mod origin;
mod pack;
mod parameter;
mod probe;
mod product;
mod rate;
mod reconstruct;
mod record_sink;
mod replicas;
mod rope;
mod run_errors;
mod save;
mod scale;
mod schedule;
mod sensitivity;
mod state;
mod stop;
mod train;
mod update_mask;
mod walk;
mod weight;

pub use collect::{CollectSettings, Collected, Listeners, SENSITIVITY_ROWS, collect};
pub use collective::{Backend, CollectiveError, Group, processes};
pub use decoder::{KvCache, Model};
pub use device::{ComputeChoice, ComputeType, DeviceChoice, num_threads, usable_gpus};
pub use discrepancy::Discrepancy;
pub use distil::{DistilSettings, DistilTerms, Teacher, require_same_tokens};
pub use error::FinetuneError;
pub use estimate::{BatchShape, MemoryEstimate, Workload, largest_batch};
pub use evaluate::{
    Answer, EvalData, EvalReport, EvalRows, EvalSettings, Evaluated, GeneratedText, RowLoss,
    Standing, evaluate, standing,
};
pub use generate::{Generation, SIDE_BY_SIDE, generate, generate_all};
pub use linear_map::{FittedMap, MapSettings, fit_linear_maps};
pub use lora::LoraSettings;
pub use memory::{available_memory_bytes, peak_memory_bytes, reset_peak_memory};
pub use optimizer::AdamWSettings;
pub use origin::Origin;
pub use probe::SkipProbe;
pub use rate::{ProductRates, WeightSize, product_rate, product_rates};
pub use reconstruct::{ReconstructSettings, ReconstructedLayer, reconstruct};
pub use record_sink::RecordSink;
pub use save::{save_adapter, save_checkpoint, trained_adapter};
pub use scale::{MeasuredScales, RunScale, ScaleSettings, measure_scales};
pub use schedule::{Decay, Schedule};
pub use sensitivity::{SensitivitySettings, sensitivity};
pub use stop::stop_flag;
pub use train::{
    Continuation, Difference, GradientSink, Gradients, KeptStep, LoraAndLayers, Method,
    StepMetrics, TrainReport, TrainSettings, Trainer,
};
pub use weight::Rounding;

/// What every function here returns.
pub type Result<T, E = FinetuneError> = std::result::Result<T, E>;
