//! The stages that need the engine, each from files to files.

mod collect;
mod evaluate;
mod finetune;
mod fit;
mod judge;
mod losses;
mod trial;

use std::path::Path;

use ::finetune::{Continuation, Model, Trainer};
use checkpoint::{Adapter, DataSource, ModelConfig, ModelSource, sha256_file};
use dataset::{Encoded, Encoder, Row};

pub use collect::{CollectTargets, Collected, collect_record};
pub use evaluate::evaluate_model;
pub use finetune::{CutOf, FinetuneSettings, FinetuneTarget, TeacherOf, finetune_model};
pub use fit::{FitTarget, Fitted, fit_name, fit_repair};
pub(crate) use fit::{RETRAINING_RATE, RETRAINING_STEPS};
pub(crate) use judge::scales_of;
pub use judge::{Judged, Verdict, judge_repair};
pub(crate) use losses::LOSS_ROWS;
pub use losses::{Judge, LossesOf, with_judge, with_losses};
pub use trial::{Trial, TrialTarget, Until, trial};

use crate::data::{digest_data, read_data};
use crate::{ComputeSettings, FinetuneMethod, HeldOut, PipelineError, Result, TrainingSettings};

/// Tokens of a forward pass in which nothing is kept for a backward one.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// What a stage computes with.
#[derive(Debug, Clone, Copy)]
pub struct StageContext<'a> {
    /// The model's folder.
    pub model: &'a Path,
    /// The data, a file or a folder of them.
    pub data: &'a Path,
    /// Fields of its rows to skip.
    pub ignored: &'a [String],
    /// What of the rows is held out of training.
    pub held_out: Option<HeldOut>,
    /// Where and in what type to compute.
    pub compute: &'a ComputeSettings,
    /// Decides the rows' order, which of them are held out, and the initial adapters.
    pub seed: u64,
}

impl StageContext<'_> {
    fn all_rows(&self) -> Result<Vec<Row>> {
        read_data(self.data, self.ignored)
    }

    /// The rows to train on, and those held out.
    fn rows(&self) -> Result<(Vec<Row>, Vec<Row>)> {
        let rows = self.all_rows()?;
        match self.held_out {
            Some(share) => share.split(rows, self.seed),
            None => Ok((rows, Vec::new())),
        }
    }

    fn load(&self) -> Result<Model> {
        load(self.model, self.compute)
    }

    /// The dense model with the adapters it has by then.
    fn load_dense(&self, adapters: Option<StateOf<'_>>, examples: &Encoded) -> Result<Model> {
        let loaded = self.load()?;
        let Some(StateOf { folder, training }) = adapters else { return Ok(loaded) };
        let num_layers = loaded.config().num_layers;
        let train = training.parse(FinetuneMethod::Lora, self.seed)?;
        let mut trainer = Trainer::new(loaded, train, examples.clone())?;
        let (folder, origin) = (folder.to_owned(), (0..num_layers).collect());
        trainer.go_on(&Continuation { folder, num_layers, origin, scales: Vec::new() })?;
        Ok(trainer.into_model())
    }

    /// What files made of the model and `rows` rows of the data say of both.
    fn sources(&self, model_name: &str, rows: usize) -> Result<(ModelSource, DataSource)> {
        let config_sha256 = sha256_file(&self.model.join("config.json"))?;
        let (path, sha256) = (self.data.display().to_string(), digest_data(self.data)?);
        let model = ModelSource { name: model_name.to_owned(), config_sha256 };
        Ok((model, DataSource { path, sha256, rows }))
    }
}

/// What a training left.
#[derive(Debug, Clone, Copy)]
pub struct StateOf<'a> {
    /// Where it left it.
    pub folder: &'a Path,
    /// Its settings.
    pub training: &'a TrainingSettings,
}

/// Reads a model folder's tokenizer and chat template.
///
/// # Errors
///
/// If either cannot be used, or the tokenizer has ids that the model's embedding does not have. An
/// embedding with more is padded, and fine.
pub fn read_encoder(model: &Path) -> Result<Encoder> {
    let embedding = ModelConfig::read(model)?.vocab_size;
    let encoder = Encoder::read(model)?;
    let tokens = encoder.largest_id() as usize + 1;
    if tokens > embedding {
        let path = model.join("tokenizer.json");
        return Err(PipelineError::Tokenizer { path, tokens, embedding });
    }
    Ok(encoder)
}

/// Loads a model folder, and an adapter onto it if one is given.
///
/// # Errors
///
/// If either cannot be used.
pub fn load_adapted(
    model: &Path,
    adapter: Option<&Path>,
    compute: &ComputeSettings,
) -> Result<Model> {
    let mut loaded = load(model, compute)?;
    if let Some(path) = adapter {
        loaded.add_adapter(&Adapter::read(path)?, path)?;
    }
    Ok(loaded)
}

fn load(model: &Path, settings: &ComputeSettings) -> Result<Model> {
    let (device, compute) = (settings.device, settings.resolve()?);
    Ok(match settings.offload {
        // On the CPU the weights are read from the mapped file in either case.
        true if !device.is_cpu()? => Model::load_offloaded(model, device, compute)?,
        _ => Model::load(model, device, compute)?,
    })
}
