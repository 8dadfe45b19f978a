//! The stages that need the engine, each from files to files.

mod collect;
mod evaluate;
mod finetune;
mod fit;
mod judge;
mod losses;
mod rows;
mod trial;
mod validate;

use std::path::Path;

use ::finetune::{Continuation, Model, Rounding, Trainer};
use checkpoint::{Adapter, DataSource, ModelSource, sha256_file};
use dataset::Row;

pub use collect::{CollectTargets, Collected, collect_record};
pub use evaluate::evaluate_model;
pub(crate) use finetune::merge_adapter;
pub use finetune::{CutOf, FinetuneSettings, FinetuneTarget, TeacherOf, finetune_model};
pub use fit::{FitTarget, Fitted, fit_name, fit_repair};
pub(crate) use fit::{RETRAINING_RATE, RETRAINING_STEPS, require_foldable, require_judged};
pub(crate) use judge::scales_of;
pub use judge::{Judged, Verdict, judge_repair};
pub(crate) use losses::{JUDGED_ROWS, LOSS_ROWS};
pub use losses::{Judge, LossesOf, with_judge, with_losses};
pub use rows::{EncodedRows, read_encoder};
pub use trial::{Trial, TrialTarget, Until, trial};
pub use validate::ValidationSettings;

use crate::data::{digest_data, read_data};
use crate::{ComputeSettings, FinetuneMethod, HeldOut, Result, TrainingSettings};

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
    /// Rows that a stage before may have made tokens.
    pub encoded: &'a EncodedRows,
}

impl StageContext<'_> {
    fn all_rows(&self) -> Result<Vec<Row>> {
        read_data(self.data, self.ignored)
    }

    /// The rows to train on, and those held out.
    pub(crate) fn rows(&self) -> Result<(Vec<Row>, Vec<Row>)> {
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
    fn load_dense(&self, adapters: Option<StateOf<'_>>) -> Result<Model> {
        let loaded = self.load()?;
        let Some(StateOf { folder, training }) = adapters else { return Ok(loaded) };
        let num_layers = loaded.config().num_layers;
        let train = training.parse(FinetuneMethod::Lora, self.seed)?;
        let examples = self.training_examples(training.max_tokens)?;
        let mut trainer = Trainer::new(loaded, train, examples)?;
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
        true if settings.rounding() == Rounding::NONE && !device.is_cpu()? => {
            Model::load_offloaded(model, device, compute)?
        }
        _ => Model::load_rounded(model, device, compute, settings.rounding())?,
    })
}
