//! What everything fitted to the layers of a dense model says of them, and how it is held to a plan and a model.

use std::path::Path;

use checkpoint::ModelConfig;
use selection::Plan;
use serde::{Deserialize, Serialize};

use crate::{RepairError, Result};

/// A run of pruned layers and how well what stands in for it fits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FittedRun {
    /// The retained layer before the run, which is changed.
    pub receiver: usize,
    /// The run's first layer.
    pub first: usize,
    /// The run's last layer.
    pub last: usize,
    /// Relative squared error of the run's output before: `‖x̂ − x‖² / ‖x‖²`.
    pub error_before: f64,
    /// The same afterwards.
    pub error_after: f64,
}

/// The layers that something was fitted to.
pub(crate) struct FittedTo<'a> {
    pub(crate) num_layers: usize,
    pub(crate) hidden_size: usize,
    pub(crate) pruned: &'a [usize],
}

impl FittedTo<'_> {
    /// Why they cannot be, or the plan that drops them.
    pub(crate) fn plan(&self) -> Result<Plan, String> {
        if self.hidden_size == 0 {
            return Err("its hidden size is 0".into());
        }
        let plan = Plan::new(self.num_layers, self.pruned.to_vec(), Vec::new(), 0.0);
        plan.check().map_err(|error| error.to_string())?;
        Ok(plan)
    }

    /// Why the runs are not those of the layers; one from layer 0 on has no layer before it, and is left out.
    pub(crate) fn reason_against(&self, runs: &[FittedRun]) -> Option<String> {
        let plan = match self.plan() {
            Ok(plan) => plan,
            Err(reason) => return Some(reason),
        };
        let expected = plan
            .runs()
            .into_iter()
            .filter_map(|(receiver, run)| Some((receiver?, *run.start(), *run.end())));
        let found = runs.iter().map(|run| (run.receiver, run.first, run.last));
        (!expected.eq(found))
            .then(|| format!("its runs are not those of the pruned layers {:?}", self.pruned))
    }

    /// Refuses another plan or model; `folder` is for the message.
    pub(crate) fn require(&self, folder: &Path, plan: &Plan, config: &ModelConfig) -> Result<()> {
        let Self { num_layers, hidden_size, pruned } = *self;
        let what = "folder of what was fitted";
        let fail =
            |reason: String| Err(RepairError::OtherModel { path: folder.to_owned(), what, reason });
        if (num_layers, hidden_size) != (config.num_layers, config.hidden_size) {
            return fail(format!(
                "it is for {num_layers} layers of {hidden_size}, the model has {} of {}",
                config.num_layers, config.hidden_size
            ));
        }
        if pruned != plan.pruned {
            return fail(format!("it is for {pruned:?} pruned, the plan prunes {:?}", plan.pruned));
        }
        Ok(())
    }
}
