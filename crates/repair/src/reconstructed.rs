//! Retrained layers on disk: `reconstructed.json` and `reconstructed.safetensors`, for the repair `reconstruct`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::{
    CheckpointError, CheckpointWriter, DataSource, Dtype, ModelConfig, ModelSource, Module,
    Staging, TensorSpec, TensorView, Weights, narrow, read_json, tensor_name, write_json,
};
use selection::Plan;
use serde::{Deserialize, Serialize};

use crate::fitted::{FittedRun, FittedTo};
use crate::{RepairError, Result};

const FORMAT: &str = "gradpruner-reconstructed";
const VERSION: u64 = 1;
const HEADER: &str = "reconstructed.json";
const WEIGHTS: &str = "reconstructed.safetensors";
const KIND: &str = "reconstructed layers";

/// `reconstructed.json`: whose layers they are, and how well each does what a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReconstructedHeader {
    format: String,
    version: u64,
    /// How many layers the dense model has.
    pub num_layers: usize,
    /// Width of the stream.
    pub hidden_size: usize,
    /// The layers that are pruned.
    pub pruned: Vec<usize>,
    /// How many steps each was trained.
    pub steps: usize,
    /// The highest learning rate.
    pub rate: f64,
    /// On how many tokens; first tokens of rows are left out.
    pub tokens: usize,
    /// The dense model.
    pub model: ModelSource,
    /// The rows.
    pub data: DataSource,
    /// The runs of pruned layers, ascending.
    pub runs: Vec<FittedRun>,
}

/// What layers are retrained by.
#[derive(Debug, Clone, PartialEq)]
pub struct Retraining {
    /// How many steps each.
    pub steps: usize,
    /// The highest learning rate.
    pub rate: f64,
    /// The dense model.
    pub model: ModelSource,
    /// The rows.
    pub data: DataSource,
}

impl ReconstructedHeader {
    /// Of layers that are still to be retrained for a plan.
    pub fn new(plan: &Plan, hidden_size: usize, by: Retraining) -> Self {
        let Retraining { steps, rate, model, data } = by;
        Self {
            format: FORMAT.into(),
            version: VERSION,
            num_layers: plan.num_layers,
            hidden_size,
            pruned: plan.pruned.clone(),
            steps,
            rate,
            tokens: 0,
            model,
            data,
            runs: Vec::new(),
        }
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, runs, .. } = self;
        if format != FORMAT || *version != VERSION {
            return Some(format!("it says `{format}` version {version}, not `{FORMAT}` {VERSION}"));
        }
        self.fitted_to().reason_against(runs)
    }

    fn fitted_to(&self) -> FittedTo<'_> {
        let Self { num_layers, hidden_size, pruned, .. } = self;
        FittedTo { num_layers: *num_layers, hidden_size: *hidden_size, pruned }
    }
}

/// Retrained layers on disk, checked for agreement.
#[derive(Debug)]
pub struct Reconstructed {
    folder: PathBuf,
    header: ReconstructedHeader,
    weights: Weights,
}

impl Reconstructed {
    /// Opens a folder of them.
    ///
    /// # Errors
    ///
    /// If it holds none, or header and weights disagree.
    pub fn open(folder: &Path) -> Result<Self> {
        let header: ReconstructedHeader = read_json(&folder.join(HEADER))?;
        if let Some(what) = header.reason_against() {
            return Err(RepairError::Fit { path: folder.join(HEADER), kind: KIND, what });
        }
        let weights = Weights::open_file(&folder.join(WEIGHTS))?;
        let found = Self { folder: folder.to_owned(), header, weights };
        for receiver in found.receivers() {
            // Which there must be, the model says when it is known.
            for view in found.of_receiver(receiver) {
                if view.dtype()? != Dtype::F32 {
                    let what = format!("`{}` is {:?}, not F32", view.name(), view.stored_dtype());
                    return Err(found.fail(what));
                }
            }
        }
        Ok(found)
    }

    /// What `reconstructed.json` says.
    pub fn header(&self) -> &ReconstructedHeader {
        &self.header
    }

    /// The layers that were retrained.
    pub fn receivers(&self) -> impl Iterator<Item = usize> {
        self.header.runs.iter().map(|run| run.receiver)
    }

    /// A retrained weight, `[out, in]`, F32.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn weight(&self, receiver: usize, module: Module) -> Result<TensorView<'_>> {
        let name = tensor_name(receiver, module);
        self.weights.get(&name).ok_or_else(|| self.fail(format!("`{name}` is missing")))
    }

    fn of_receiver(&self, receiver: usize) -> impl Iterator<Item = TensorView<'_>> {
        let of = move |module| self.weights.get(&tensor_name(receiver, module));
        Module::ALL.into_iter().filter_map(of)
    }

    pub(crate) fn fail(&self, what: String) -> RepairError {
        RepairError::Fit { path: self.folder.join(WEIGHTS), kind: KIND, what }
    }

    /// Refuses those of another plan or model.
    pub(crate) fn require_fit(&self, plan: &Plan, config: &ModelConfig) -> Result<()> {
        self.header.fitted_to().require(&self.folder, plan, config)?;
        for receiver in self.receivers() {
            for &module in config.modules() {
                let (view, (out, inner)) =
                    (self.weight(receiver, module)?, config.linear_shape(module));
                if view.shape() != [out, inner] {
                    let (name, found) = (view.name(), view.shape());
                    return Err(self.fail(format!(
                        "`{name}` is {found:?}, and the model's is {:?}",
                        [out, inner]
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether the weights are still those that were mapped.
    pub(crate) fn weights_unchanged(&self) -> Result<()> {
        Ok(self.weights.require_unchanged()?)
    }
}

/// Writes retrained layers one by one; the folder stands under its name only when it is complete.
#[derive(Debug)]
pub struct ReconstructedWriter {
    staging: Staging,
    header: ReconstructedHeader,
    writer: CheckpointWriter,
}

impl ReconstructedWriter {
    /// Begins a folder of a plan's retrained layers; `config` is the dense model's.
    ///
    /// # Errors
    ///
    /// If the plan cannot hold, `target` exists, or the disk refuses.
    pub fn create(
        target: &Path,
        plan: &Plan,
        config: &ModelConfig,
        header: ReconstructedHeader,
    ) -> Result<Self> {
        plan.check()?;
        let specs = plan.runs().into_iter().filter_map(|(receiver, _)| receiver);
        let specs = specs.flat_map(|receiver| {
            config.modules().iter().map(move |&module| {
                let (out, inner) = config.linear_shape(module);
                TensorSpec::new(tensor_name(receiver, module), Dtype::F32, &[out, inner])
            })
        });
        let staging = Staging::folder(target)?;
        let writer = CheckpointWriter::create(staging.path(), specs.collect(), u64::MAX)?;
        Ok(Self { staging, header, writer })
    }

    /// Adds the next run's receiver, all its linear weights.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    ///
    /// # Panics
    ///
    /// If a weight is not as large as the model's.
    pub fn write(&mut self, run: FittedRun, weights: &BTreeMap<Module, Vec<f32>>) -> Result<()> {
        for (&module, values) in weights {
            let bytes = narrow(values, Dtype::F32);
            self.writer.write(&tensor_name(run.receiver, module), &bytes)?;
        }
        self.header.runs.push(run);
        Ok(())
    }

    /// Completes the folder; `tokens` is how many the layers were trained on.
    ///
    /// # Errors
    ///
    /// If a run has no layer yet, or the disk refuses.
    pub fn finish(mut self, tokens: usize) -> Result<ReconstructedHeader> {
        self.header.tokens = tokens;
        let target = self.staging.path().to_owned();
        if let Some(what) = self.header.reason_against() {
            return Err(RepairError::Fit { path: target.join(HEADER), kind: KIND, what });
        }
        self.writer.finish()?;
        fs_err::rename(target.join("model.safetensors"), target.join(WEIGHTS))
            .map_err(CheckpointError::from)?;
        write_json(&target.join(HEADER), &self.header)?;
        self.staging.commit()?;
        Ok(self.header)
    }
}
