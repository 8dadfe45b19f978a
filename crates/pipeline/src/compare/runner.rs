//! Makes the cells of a comparison, each from what is in the store already.

use std::path::Path;

use ::finetune::{ComputeChoice, Evaluated};
use checkpoint::{Checkpoint, Staging, read_json};
use repair::Size;
use serde_json::json;

use super::inputs::{Inputs, Unpruned};
use super::{Cell, CellResult, CompareSettings, EvaluatedOn};
use crate::cell::{Stages, Subject, TestSet, lasting};
use crate::lock::RunLock;
use crate::log::LogTargets;
use crate::run::write_json;
use crate::store::{Slot, Store};
use crate::{Event, Result, RunSettings};

/// Makes cells, each from what is there already.
pub(super) struct CellRunner<'a> {
    settings: &'a CompareSettings,
    store: Store,
    inputs: Inputs,
    dtype: ComputeChoice,
    _lock: RunLock,
}

impl<'a> CellRunner<'a> {
    pub(super) fn new(settings: &'a CompareSettings, folder: &Path) -> Result<Self> {
        let inputs = Inputs::read(settings, folder)?;
        fs_err::create_dir_all(folder)?;
        let lock = RunLock::take(folder)?;
        let store = Store::of_many(&folder.join("store"))?;
        let dtype = dtype_of(&settings.base, &folder.join("store/dtype"))?;
        Ok(Self { settings, store, inputs, dtype, _lock: lock })
    }

    /// The settings of one cell, the type of the products decided.
    fn of(&self, cell: &Cell) -> RunSettings {
        let mut settings = self.settings.of(cell);
        settings.compute.dtype = self.dtype;
        settings
    }

    /// The model that a cell begins with.
    fn model(&self, cell: &Cell) -> &Unpruned {
        let baselines = self.settings.baselines.iter().zip(&self.inputs.baselines);
        let named = |(name, _): &(&String, &Unpruned)| Some(*name) == cell.baseline.as_ref();
        baselines.into_iter().find(named).map_or(&self.inputs.dense, |(_, model)| model)
    }

    fn stages<'b>(&'b self, cell: &Cell, settings: &'b RunSettings) -> Stages<'b> {
        let Unpruned { folder, config, digests, .. } = self.model(cell);
        Stages {
            settings,
            store: &self.store,
            home: &self.store,
            model: folder,
            num_layers: config.num_layers,
            digests,
            held_out: self.inputs.held_out,
            log: LogTargets::default(),
        }
    }

    /// Whether a cell's result is there.
    pub(super) fn has(&self, cell: &Cell) -> Result<bool> {
        let settings = self.of(cell);
        self.slot(cell, &self.stages(cell, &settings)).is_there()
    }

    fn slot(&self, cell: &Cell, stages: &Stages<'_>) -> Slot {
        let settings = stages.settings;
        let recipe = json!({
            "common": stages.common(), "cell": cell, "keep": settings.keep, "refine": settings.refine,
            "merge": settings.merge, "density": settings.density, "linear_map": settings.linear_map,
            "collect": stages.collecting(), "training": lasting(&settings.training), "restart": settings.restart,
            "repair_always": settings.repair_always,
            "evaluation": settings.evaluation, "evals": self.inputs.eval_digests,
        });
        self.store.slot("cell.json", &recipe)
    }

    /// A cell's result, made if it is not there.
    pub(super) fn run(&self, cell: &Cell, observe: &mut dyn FnMut(Event)) -> Result<CellResult> {
        let settings = self.of(cell);
        let stages = self.stages(cell, &settings);
        let slot = self.slot(cell, &stages);
        match slot.is_there()? {
            true => Ok(read_json(&slot.path)?),
            false => slot.make(|| {
                let result = self.make(cell, &stages, observe)?;
                write_json(&slot.path, &result)?;
                Ok(result)
            }),
        }
    }

    fn make(
        &self,
        cell: &Cell,
        stages: &Stages<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<CellResult> {
        let collected = match &cell.baseline {
            Some(_) => stages.collected(), // Nothing is chosen by its steps.
            None => stages.collect(observe)?,
        };
        let (mut base, mut scores, mut race) = (stages.dense(), None, None);
        if cell.way.is_some() {
            let decision = stages.decide(&collected, observe)?;
            let plan = stages.plan_of(&decision.selection)?;
            base = stages.prune(&collected, &plan, observe)?;
            base.seconds += decision.seconds;
            (scores, race) = (decision.selection.scores, decision.race);
        }
        let tuned = stages.tune(&collected, &base, None, observe)?;
        let mut evaluations = Vec::new();
        for (path, digest) in self.settings.evals.iter().zip(&self.inputs.eval_digests) {
            let set = TestSet { path, digest };
            let before = Subject { base: &base, tuned: None };
            let before = stages.evaluate(before, set, observe)?.report;
            let after = Subject { base: &base, tuned: tuned.as_ref() };
            let Evaluated { report, answers } = stages.evaluate(after, set, observe)?;
            evaluations.push(EvaluatedOn {
                data: path.display().to_string(),
                before,
                after: report,
                right: answers.iter().map(|answer| answer.right).collect(),
            });
        }
        let checkpoint = Checkpoint::open(&base.folder)?;
        Ok(CellResult {
            cell: cell.clone(),
            pruned: (0..stages.num_layers).filter(|layer| !base.origin.contains(layer)).collect(),
            scores: scores.map(|scores| scores.layers.iter().map(|layer| layer.score).collect()),
            race,
            verdict: base.verdict.clone(),
            size: Size::of(checkpoint.config(), checkpoint.weights()),
            evaluations,
            seconds: collected.record.seconds()
                + base.seconds
                + tuned.as_ref().map_or(0.0, Slot::seconds),
        })
    }
}

/// The type of the products: the one the comparison began with, if it has.
fn dtype_of(base: &RunSettings, noted: &Path) -> Result<ComputeChoice> {
    if base.compute.dtype == ComputeChoice::Auto
        && let Ok(text) = fs_err::read_to_string(noted)
        && let Ok(dtype) = text.trim().parse()
    {
        return Ok(dtype);
    }
    let dtype = ComputeChoice::Fixed(base.compute.resolve()?);
    Staging::write(noted, dtype.to_string().as_bytes())?;
    Ok(dtype)
}
