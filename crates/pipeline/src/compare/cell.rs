//! One cell: what it is, and what becomes of it.

use std::path::{Path, PathBuf};

use ::finetune::{ComputeChoice, EvalReport, Evaluated};
use checkpoint::{Checkpoint, Staging, locate, read_json, require_companions};
use repair::Size;
use selection::{Repair, Share};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::CompareSettings;
use crate::cell::{Digests, Race, Stages, Subject, TestSet, digest_model, digest_teacher, lasting};
use crate::data::digest_data;
use crate::lock::RunLock;
use crate::log::LogTargets;
use crate::run::write_json;
use crate::store::{Slot, Store};
use crate::{
    Choosing, Event, FinetuneMethod, HeldOut, Named, Result, RunSettings, Verdict, check_outputs,
};

/// How a model is pruned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// How much.
    pub prune: Share,
    /// By what.
    pub criterion: Choosing,
    /// What is done to the layers that stay.
    pub repair: Repair,
}

/// One cell of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// How the model is pruned; `None` for the dense one.
    pub way: Option<Way>,
    /// How it is fine-tuned.
    pub finetune: FinetuneMethod,
    /// Decides the rows' order and the initial adapters.
    pub seed: u64,
}

/// One model on one set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedOn {
    /// The set.
    pub data: String,
    /// Before fine-tuning.
    pub before: EvalReport,
    /// After it.
    pub after: EvalReport,
    /// Of each row with choices, whether it was answered rightly after fine-tuning.
    pub right: Vec<bool>,
}

/// What a cell came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell.
    pub cell: Cell,
    /// The layers that went.
    pub pruned: Vec<usize>,
    /// Every layer's score, if they were chosen by scores.
    #[serde(default)]
    pub scores: Option<Vec<f64>>,
    /// How the choices of several criteria came out, if they raced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub race: Option<Race>,
    /// What the repair does to what is lost, if there is one.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// How large the model is.
    pub size: Size,
    /// On each set.
    pub evaluations: Vec<EvaluatedOn>,
    /// Seconds that its stages took when they were made, those it shares with other cells among them.
    pub seconds: f64,
}

/// Makes cells, each from what is there already.
pub(super) struct CellRunner<'a> {
    settings: &'a CompareSettings,
    store: Store,
    /// Where the dense model is.
    model: PathBuf,
    num_layers: usize,
    digests: Digests,
    eval_digests: Vec<String>,
    dtype: ComputeChoice,
    /// What is held out to choose layers by; if for one cell then for all, so that all train on the same.
    held_out: Option<HeldOut>,
    _lock: RunLock,
}

impl<'a> CellRunner<'a> {
    pub(super) fn new(settings: &'a CompareSettings, folder: &Path) -> Result<Self> {
        let base = &settings.base;
        let model = locate(&base.model)?;
        let mut inputs = vec![Named::of("--model", &*model), Named::of("--train", &*base.train)];
        inputs.extend(settings.evals.iter().map(|path| Named::of("--eval", &**path)));
        check_outputs(&[Named::of("--out", folder)], &inputs)?;
        require_companions(&model)?;
        let num_layers = Checkpoint::open(&model)?.config().num_layers;
        for cell in settings.cells() {
            // What would fail late is looked at early.
            let settings = settings.of(&cell);
            settings.check(num_layers)?;
        }
        fs_err::create_dir_all(folder)?;
        let lock = RunLock::take(folder)?;
        let store = Store::of_many(&folder.join("store"))?;
        Ok(Self {
            settings,
            dtype: dtype_of(base, &folder.join("store/dtype"))?,
            store,
            num_layers,
            digests: Digests {
                model: digest_model(&model)?,
                train: digest_data(&base.train)?,
                teacher: digest_teacher(&base.training, &model)?,
            },
            eval_digests: settings
                .evals
                .iter()
                .map(|path| digest_data(path))
                .collect::<Result<_>>()?,
            held_out: settings.cells().iter().find_map(|cell| settings.of(cell).held_out()),
            model,
            _lock: lock,
        })
    }

    /// The settings of one cell, the type of the products decided.
    fn of(&self, cell: &Cell) -> RunSettings {
        let mut settings = self.settings.of(cell);
        settings.compute.dtype = self.dtype;
        settings
    }

    fn stages<'b>(&'b self, settings: &'b RunSettings) -> Stages<'b> {
        let Self { store, model, num_layers, digests, held_out, .. } = self;
        let (num_layers, held_out, log) = (*num_layers, *held_out, LogTargets::default());
        Stages { settings, store, home: store, model, num_layers, digests, held_out, log }
    }

    /// Whether a cell's result is there.
    pub(super) fn has(&self, cell: &Cell) -> Result<bool> {
        let settings = self.of(cell);
        self.slot(cell, &self.stages(&settings)).is_there()
    }

    fn slot(&self, cell: &Cell, stages: &Stages<'_>) -> Slot {
        let settings = stages.settings;
        let recipe = json!({
            "common": stages.common(), "cell": cell, "keep": settings.keep, "refine": settings.refine,
            "merge": settings.merge, "density": settings.density, "linear_map": settings.linear_map,
            "collect": stages.collecting(), "training": lasting(&settings.training), "restart": settings.restart,
            "teacher": stages.digests.teacher,
            "repair_always": settings.repair_always,
            "evaluation": settings.evaluation, "evals": self.eval_digests,
        });
        self.store.slot("cell.json", &recipe)
    }

    /// A cell's result, made if it is not there.
    pub(super) fn run(&self, cell: &Cell, observe: &mut dyn FnMut(Event)) -> Result<CellResult> {
        let settings = self.of(cell);
        let stages = self.stages(&settings);
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
        let collected = stages.collect(observe)?;
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
        for (path, digest) in self.settings.evals.iter().zip(&self.eval_digests) {
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
            pruned: (0..self.num_layers).filter(|layer| !base.origin.contains(layer)).collect(),
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
