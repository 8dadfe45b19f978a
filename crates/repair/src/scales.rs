//! `scales.json`: by how much each run of pruned layers makes the stream larger, for the repair `scale`.

use std::path::{Path, PathBuf};

use checkpoint::{DataSource, ModelConfig, ModelSource, Staging, read_json, write_json};
use selection::Plan;
use serde::{Deserialize, Serialize};

use crate::fitted::FittedTo;
use crate::{RepairError, Result};

const FORMAT: &str = "gradpruner-scales";
const VERSION: u64 = 1;
const FILE: &str = "scales.json";
const KIND: &str = "scales";
/// The least and the most that all cuts together may make of the stream; beyond, weights would leave their type.
const RANGE: std::ops::RangeInclusive<f64> = 1e-4..=1e4;

/// A run of pruned layers, and what it makes of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// The run's first layer.
    pub first: usize,
    /// The run's last layer.
    pub last: usize,
    /// `α = E|x_out| / E|x_in|` in the dense model, over channels and tokens.
    pub factor: f64,
}

/// What the cuts of a plan were measured on.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Width of the stream.
    pub hidden_size: usize,
    /// How many tokens; first tokens of rows are left out.
    pub tokens: usize,
    /// The dense model.
    pub model: ModelSource,
    /// The rows.
    pub data: DataSource,
    /// The runs of pruned layers, ascending.
    pub cuts: Vec<Cut>,
}

/// The scales of a plan's cuts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scales {
    format: String,
    version: u64,
    /// How many layers the dense model has.
    pub num_layers: usize,
    /// Width of the stream.
    pub hidden_size: usize,
    /// The layers that are pruned.
    pub pruned: Vec<usize>,
    /// How many tokens they were measured on; first tokens of rows are left out.
    pub tokens: usize,
    /// The dense model.
    pub model: ModelSource,
    /// The rows.
    pub data: DataSource,
    /// The runs of pruned layers, ascending.
    pub cuts: Vec<Cut>,
}

impl Scales {
    /// The scales of a plan.
    ///
    /// # Errors
    ///
    /// [`RepairError::Fit`] if they are not those of the plan's runs, or are of no use.
    pub fn new(plan: &Plan, measured: Measured) -> Result<Self> {
        let Measured { hidden_size, tokens, model, data, cuts } = measured;
        let scales = Self {
            format: FORMAT.into(),
            version: VERSION,
            num_layers: plan.num_layers,
            hidden_size,
            pruned: plan.pruned.clone(),
            tokens,
            model,
            data,
            cuts,
        };
        match scales.reason_against() {
            None => Ok(scales),
            Some(what) => Err(RepairError::Fit { path: PathBuf::from(FILE), kind: KIND, what }),
        }
    }

    /// Reads a folder of them.
    ///
    /// # Errors
    ///
    /// If it holds none, or they cannot be used.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let scales: Self = read_json(&path)?;
        match scales.reason_against() {
            None => Ok(scales),
            Some(what) => Err(RepairError::Fit { path, kind: KIND, what }),
        }
    }

    /// Writes a folder of them, whole or not at all.
    ///
    /// # Errors
    ///
    /// If `folder` exists or the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let staging = Staging::folder(folder)?;
        write_json(&staging.path().join(FILE), self)?;
        Ok(staging.commit()?)
    }

    /// By how much the stream is smaller before a layer of the dense model than it should be: the product of the
    /// factors of all cuts before it.
    pub fn before(&self, layer: usize) -> f64 {
        self.cuts.iter().filter(|cut| cut.last < layer).map(|cut| cut.factor).product()
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, pruned, cuts, .. } = self;
        if format != FORMAT || *version != VERSION {
            return Some(format!("it says `{format}` version {version}, not `{FORMAT}` {VERSION}"));
        }
        let plan = match self.fitted_to().plan() {
            Ok(plan) => plan,
            Err(reason) => return Some(reason),
        };
        let expected = plan.runs().into_iter().map(|(_, run)| (*run.start(), *run.end()));
        if !expected.eq(cuts.iter().map(|cut| (cut.first, cut.last))) {
            return Some(format!("its cuts are not those of the pruned layers {pruned:?}"));
        }
        let mut together = 1.0;
        for Cut { first, factor, .. } in cuts {
            together *= factor;
            if !RANGE.contains(factor) || !RANGE.contains(&together) {
                return Some(format!(
                    "the factor at layer {first} is {factor} and with those before it {together}, not from {} to {}",
                    RANGE.start(),
                    RANGE.end()
                ));
            }
        }
        None
    }

    fn fitted_to(&self) -> FittedTo<'_> {
        let Self { num_layers, hidden_size, pruned, .. } = self;
        FittedTo { num_layers: *num_layers, hidden_size: *hidden_size, pruned }
    }

    /// Refuses scales of another plan or model.
    pub(crate) fn require_fit(
        &self,
        folder: &Path,
        plan: &Plan,
        config: &ModelConfig,
    ) -> Result<()> {
        self.fitted_to().require(folder, plan, config)
    }
}
