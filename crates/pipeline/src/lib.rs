//! The stages a model goes through, each complete or absent, and runs made of them.
//!
//! [`run`] does all of it into one folder: collect, score, plan, repair, prune, fine-tune,
//! evaluate. The stages stand alone too ([`collect_record`], [`finetune_model`], [`evaluate_model`]),
//! which is what the single commands call.

mod cell;
mod choice;
mod choosing;
mod compare;
mod data;
mod error;
mod estimate;
mod event;
mod held_out;
mod lock;
mod log;
mod lora_layers;
mod max_drop;
mod outputs;
mod run;
mod run_file;
mod settings;
mod stability;
mod stage;
mod store;
mod tensorboard;
mod timing;

pub use cell::{Amount, Candidate, Race, TriedAmount};
pub use choice::Choice;
pub use choosing::Choosing;
pub use compare::{
    Cell, CellDone, CellResult, CompareSettings, Comparison, ComparisonNeeds, EvaluatedOn,
    Impossible, TriedRate, Way, compare,
};
pub use data::{digest_data, read_data};
pub use error::PipelineError;
pub use estimate::{Estimate, FasterType, Sample, StageEstimate, estimate};
pub use event::{Done, Event, Stage};
pub use held_out::HeldOut;
pub use log::{LogLine, LogTargets, LoggedLook, LoggedStep, read_log};
pub use lora_layers::LoraLayers;
pub use max_drop::MaxDrop;
pub use outputs::{Named, beside, check_outputs};
pub use run::{Evaluations, FirstAnswers, RunOutcome, run};
pub use settings::{
    CollectSettings, ComputeSettings, Computing, EvaluationSettings, FinetuneMethod,
    LinearMapSettings, LoraTargets, RunSettings, TeacherSettings, TrainingSettings,
};
pub use stability::Stability;
pub use stage::{
    CollectTargets, Collected, CutOf, EncodedRows, FinetuneSettings, FinetuneTarget, FitTarget,
    Fitted, Judge, Judged, LossesOf, StageContext, StateOf, TeacherOf, Verdict, collect_record,
    evaluate_model, finetune_model, fit_name, fit_repair, judge_repair, load_adapted, read_encoder,
    with_judge, with_losses,
};
pub use stage::{Trial, TrialTarget, Until, ValidationSettings, trial};
pub use timing::{StageTime, read_timings};

/// What every function here returns.
pub type Result<T, E = PipelineError> = std::result::Result<T, E>;
