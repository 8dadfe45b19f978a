//! Linear maps on disk: `maps.json` and `maps.safetensors`, what the repair `linear-map` folds in.

use std::path::{Path, PathBuf};

use checkpoint::{
    CheckpointError, CheckpointWriter, DataSource, Dtype, ModelConfig, ModelSource, Staging,
    TensorSpec, Weights, narrow, read_json,
};
use selection::Plan;
use serde::{Deserialize, Serialize};

use crate::{RepairError, Result};

const FORMAT: &str = "gradpruner-linear-maps";
const VERSION: u64 = 1;
const HEADER: &str = "maps.json";
const MATRICES: &str = "maps.safetensors";

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

/// A run of pruned layers and the map in its place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FittedRun {
    /// The retained layer before the run, which takes the map in.
    pub receiver: usize,
    /// The run's first layer.
    pub first: usize,
    /// The run's last layer.
    pub last: usize,
    /// Relative squared error of the run's output without a map: `‖x̂ − x‖² / ‖x‖²`.
    pub error_before: f64,
    /// The same with the map.
    pub error_after: f64,
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
        let Self { format, version, num_layers, hidden_size, pruned, runs, .. } = self;
        if format != FORMAT || *version != VERSION {
            return Some(format!("it says `{format}` version {version}, not `{FORMAT}` {VERSION}"));
        }
        let plan = Plan::new(*num_layers, pruned.clone(), Vec::new(), 0.0);
        if let Err(error) = plan.check() {
            return Some(error.to_string());
        }
        // A run from layer 0 on has no layer before it to take a map in.
        let expected = plan
            .runs()
            .into_iter()
            .filter_map(|(receiver, run)| Some((receiver?, *run.start(), *run.end())));
        let found = runs.iter().map(|run| (run.receiver, run.first, run.last));
        if !expected.eq(found) {
            return Some(format!("its runs are not those of the pruned layers {pruned:?}"));
        }
        (*hidden_size == 0).then(|| "its hidden size is 0".into())
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
        let fail = |file: &str, what| Err(RepairError::Maps { path: folder.join(file), what });
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
        let fail = |what| RepairError::Maps { path: self.folder.join(MATRICES), what };
        let view = self.matrices.get(&name).ok_or_else(|| fail(format!("`{name}` is missing")))?;
        let matrix = view.to_f32()?;
        match matrix.iter().all(|value| value.is_finite()) {
            true => Ok(matrix),
            false => Err(fail(format!("`{name}` is not finite"))),
        }
    }

    /// Refuses maps of another plan or model.
    pub(crate) fn require_fit(&self, plan: &Plan, config: &ModelConfig) -> Result<()> {
        let MapsHeader { num_layers, hidden_size, pruned, .. } = &self.header;
        let fail = |reason: String| {
            let path = self.folder.clone();
            Err(RepairError::OtherModel { path, what: "folder of linear maps", reason })
        };
        if (*num_layers, *hidden_size) != (config.num_layers, config.hidden_size) {
            return fail(format!(
                "it is for {num_layers} layers of {hidden_size}, the model has {} of {}",
                config.num_layers, config.hidden_size
            ));
        }
        if *pruned != plan.pruned {
            return fail(format!("it is for {pruned:?} pruned, the plan prunes {:?}", plan.pruned));
        }
        Ok(())
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
            return Err(RepairError::Maps { path: target.join(HEADER), what });
        }
        self.writer.finish()?;
        fs_err::rename(target.join("model.safetensors"), target.join(MATRICES))
            .map_err(CheckpointError::from)?;
        let mut text = serde_json::to_string_pretty(&self.header)
            .map_err(|source| CheckpointError::Json { path: target.join(HEADER), source })?;
        text.push('\n');
        fs_err::write(target.join(HEADER), text).map_err(CheckpointError::from)?;
        self.staging.commit()?;
        Ok(self.header)
    }
}
