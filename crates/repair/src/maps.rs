//! Linear maps on disk: `maps.json` and `maps.safetensors`, what the repair `linear-map` folds in.

use std::path::{Path, PathBuf};

use checkpoint::{
    CheckpointError, CheckpointWriter, DataSource, Dtype, ModelConfig, ModelSource, Staging,
    TensorSpec, Weights, narrow, read_json, write_json,
};
use selection::Plan;
use serde::{Deserialize, Serialize};

use crate::fitted::{FittedRun, FittedTo};
use crate::{RepairError, Result};

const FORMAT: &str = "gradpruner-linear-maps";
const VERSION: u64 = 1;
const HEADER: &str = "maps.json";
const MATRICES: &str = "maps.safetensors";
const KIND: &str = "linear maps";

/// `maps.json`: whose maps they are, and how well each fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapsHeader {
    format: String,
    version: u64,
    /// How many layers the dense model has.
    pub num_layers: usize,
    /// The maps' side.
    pub hidden_size: usize,
    /// The layers that are pruned.
    pub pruned: Vec<usize>,
    /// Weight of `‖T − I‖²`, relative to the mean of the squared inputs.
    pub ridge: f64,
    /// How many tokens they are fitted on; first tokens of rows are left out.
    pub tokens: usize,
    /// The dense model.
    pub model: ModelSource,
    /// The rows.
    pub data: DataSource,
    /// The runs of pruned layers, ascending.
    pub runs: Vec<FittedRun>,
}

impl MapsHeader {
    /// Of maps that are still to be fitted for a plan.
    pub fn new(
        plan: &Plan,
        hidden_size: usize,
        ridge: f64,
        sources: (ModelSource, DataSource),
    ) -> Self {
        let (model, data) = sources;
        Self {
            format: FORMAT.into(),
            version: VERSION,
            num_layers: plan.num_layers,
            hidden_size,
            pruned: plan.pruned.clone(),
            ridge,
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

/// Maps on disk, checked for agreement.
#[derive(Debug)]
pub struct LinearMaps {
    folder: PathBuf,
    header: MapsHeader,
    matrices: Weights,
}

impl LinearMaps {
    /// Opens a folder of maps.
    ///
    /// # Errors
    ///
    /// If it holds none, or header and matrices disagree.
    pub fn open(folder: &Path) -> Result<Self> {
        let header: MapsHeader = read_json(&folder.join(HEADER))?;
        let fail =
            |file: &str, what| Err(RepairError::Fit { path: folder.join(file), kind: KIND, what });
        if let Some(reason) = header.reason_against() {
            return fail(HEADER, reason);
        }
        let matrices = Weights::open_file(&folder.join(MATRICES))?;
        let side = header.hidden_size;
        for run in &header.runs {
            let name = name_of(run.receiver);
            match matrices.get(&name) {
                Some(view) if view.shape() == [side, side] && view.dtype()? == Dtype::F32 => {}
                Some(view) => {
                    let what = format!(
                        "`{name}` is {:?} of {:?}, not {:?} of F32",
                        view.shape(),
                        view.stored_dtype(),
                        [side, side]
                    );
                    return fail(MATRICES, what);
                }
                None => return fail(MATRICES, format!("`{name}` is missing")),
            }
        }
        Ok(Self { folder: folder.to_owned(), header, matrices })
    }

    /// What `maps.json` says.
    pub fn header(&self) -> &MapsHeader {
        &self.header
    }

    /// The layers that take a map in.
    pub fn receivers(&self) -> impl Iterator<Item = usize> {
        self.header.runs.iter().map(|run| run.receiver)
    }

    /// The map that a layer takes in, `T`, `[d, d]`, row-major.
    ///
    /// # Errors
    ///
    /// If there is none or it is not finite.
    pub fn matrix(&self, receiver: usize) -> Result<Vec<f32>> {
        let name = name_of(receiver);
        let fail = |what| RepairError::Fit { path: self.folder.join(MATRICES), kind: KIND, what };
        let view = self.matrices.get(&name).ok_or_else(|| fail(format!("`{name}` is missing")))?;
        let matrix = view.to_f32()?;
        match matrix.iter().all(|value| value.is_finite()) {
            true => Ok(matrix),
            false => Err(fail(format!("`{name}` is not finite"))),
        }
    }

    /// Refuses maps of another plan or model.
    pub(crate) fn require_fit(&self, plan: &Plan, config: &ModelConfig) -> Result<()> {
        self.header.fitted_to().require(&self.folder, plan, config)
    }

    /// Whether the matrices are still those that were mapped.
    pub(crate) fn matrices_unchanged(&self) -> Result<()> {
        Ok(self.matrices.require_unchanged()?)
    }
}

fn name_of(receiver: usize) -> String {
    format!("layers.{receiver}.map")
}

/// Writes maps one by one; the folder stands under its name only when it is complete.
#[derive(Debug)]
pub struct MapsWriter {
    staging: Staging,
    header: MapsHeader,
    writer: CheckpointWriter,
}

impl MapsWriter {
    /// Begins a folder of a plan's maps.
    ///
    /// # Errors
    ///
    /// If the plan cannot hold, `target` exists, or the disk refuses.
    pub fn create(target: &Path, plan: &Plan, header: MapsHeader) -> Result<Self> {
        plan.check()?;
        let side = header.hidden_size;
        let spec = |receiver| TensorSpec::new(name_of(receiver), Dtype::F32, &[side, side]);
        let specs =
            plan.runs().into_iter().filter_map(|(receiver, _)| receiver.map(spec)).collect();
        let staging = Staging::folder(target)?;
        let writer = CheckpointWriter::create(staging.path(), specs, u64::MAX)?;
        Ok(Self { staging, header, writer })
    }

    /// Adds the next run's map.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    ///
    /// # Panics
    ///
    /// If the matrix is not as large as the header says.
    pub fn write(&mut self, run: FittedRun, matrix: &[f32]) -> Result<()> {
        let bytes = narrow(matrix, Dtype::F32);
        self.writer.write(&name_of(run.receiver), &bytes)?;
        self.header.runs.push(run);
        Ok(())
    }

    /// Completes the folder; `tokens` is how many the maps were fitted on.
    ///
    /// # Errors
    ///
    /// If a run has no map yet, or the disk refuses.
    pub fn finish(mut self, tokens: usize) -> Result<MapsHeader> {
        self.header.tokens = tokens;
        let target = self.staging.path().to_owned();
        if let Some(what) = self.header.reason_against() {
            return Err(RepairError::Fit { path: target.join(HEADER), kind: KIND, what });
        }
        self.writer.finish()?;
        fs_err::rename(target.join("model.safetensors"), target.join(MATRICES))
            .map_err(CheckpointError::from)?;
        write_json(&target.join(HEADER), &self.header)?;
        self.staging.commit()?;
        Ok(self.header)
    }
}
