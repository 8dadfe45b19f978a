//! Makes the cells of a comparison, each from what is in the store already.

use std::path::Path;

use ::finetune::{ComputeChoice, Evaluated};
use checkpoint::{Checkpoint, Staging, read_json};
use repair::Size;
use selection::{Criterion, Plan, Share};
use serde_json::json;

use super::inputs::{Inputs, Unpruned};
use super::models::LeftModel;
use super::{Cell, CellResult, CompareSettings, EvaluatedOn, TriedRate};
use crate::cell::{
    Base, CollectedSlots, DecidedIn, Decision, RULES, Stages, Subject, TestSet, lasting,
};
use crate::lock::RunLock;
use crate::log::LogTargets;
use crate::stage::{EncodedRows, Until};
use crate::store::{Slot, Store};
use crate::{Event, FinetuneMethod, LoraLayers, Result, RunSettings};

/// Raised whenever a cell's result holds something else.
const RESULTS: u32 = 3;

/// Makes cells, each from what is there already.
pub(super) struct CellRunner<'a> {
    settings: &'a CompareSettings,
    store: Store,
    inputs: Inputs,
    dtype: ComputeChoice,
    encoded: EncodedRows,
    _lock: RunLock,
}

impl<'a> CellRunner<'a> {
    pub(super) fn new(settings: &'a CompareSettings, folder: &Path) -> Result<Self> {
        let inputs = Inputs::read(settings, folder)?;
        fs_err::create_dir_all(folder)?;
        let lock = RunLock::take(folder)?;
        let store = Store::of_many(&folder.join("store"))?;
        store.sweep()?;
        let dtype = dtype_of(&settings.base, &folder.join("store/dtype"))?;
        Ok(Self { settings, store, inputs, dtype, encoded: EncodedRows::default(), _lock: lock })
    }

    /// The settings of one cell, the type of the products decided.
    fn of(&self, cell: &Cell) -> RunSettings {
        self.at_rate(cell, None)
    }

    /// The same at a learning rate.
    fn at_rate(&self, cell: &Cell, rate: Option<f64>) -> RunSettings {
        let mut settings = self.settings.at_rate(cell, rate);
        settings.compute.dtype = self.dtype;
        settings
    }

    /// The model that a cell begins with.
    pub(super) fn model(&self, cell: &Cell) -> &Unpruned {
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
            encoded: &self.encoded,
        }
    }

    /// Whether a cell's result is there.
    pub(super) fn has(&self, cell: &Cell) -> Result<bool> {
        let settings = self.of(cell);
        self.slot(cell, &self.stages(cell, &settings)).is_there()
    }

    fn slot(&self, cell: &Cell, stages: &Stages<'_>) -> Slot {
        let settings = stages.settings;
        let mut recipe = json!({
            "common": stages.common(), "cell": cell, "keep": settings.keep, "refine": settings.refine,
            "merge": settings.merge, "density": settings.density, "linear_map": settings.linear_map,
            "collect": stages.collecting(), "training": lasting(&settings.training), "restart": settings.restart,
            "repair_always": settings.repair_always, "teacher": stages.digests.teacher,
            "evaluation": settings.evaluation, "evals": self.inputs.eval_digests, "version": RESULTS,
        });
        if cell.way.as_ref().is_some_and(|way| !way.paper) {
            recipe["rules"] = json!(RULES);
        }
        if self.settings.tries_rates() {
            recipe["rates"] = json!(self.settings.learning_rates);
        }
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
                let result = self.make(cell, observe)?;
                slot.write(&result)?;
                Ok(result)
            }),
        }
    }

    /// The type of the products of all cells.
    pub(super) fn dtype(&self) -> ComputeChoice {
        self.dtype
    }

    /// What is compared.
    pub(super) fn settings(&self) -> &CompareSettings {
        self.settings
    }

    /// A cell's settings to foretell it by: of a whole model no layer goes, and nobody teaches it.
    pub(super) fn foretold(&self, cell: &Cell) -> RunSettings {
        let mut settings = self.of(cell);
        if cell.way.is_none() {
            settings.prune = Share::Layers(0);
            settings.training = settings.training.untaught();
        }
        settings
    }

    /// Whether steps are collected for a cell: on a baseline nothing is chosen by them but the layers that get adapters.
    pub(super) fn collects(&self, cell: &Cell) -> bool {
        let settings = self.settings.of(cell);
        let by_scores = settings.training.lora_layers == Some(LoraLayers::Auto);
        cell.baseline.is_none() || (settings.finetune.has_adapters() && by_scores)
    }

    /// Whether the steps that a cell begins with are collected.
    pub(super) fn has_collected(&self, cell: &Cell) -> Result<bool> {
        let settings = self.of(cell);
        self.stages(cell, &settings).collected().record.is_there()
    }

    /// The models that a finished cell, or an earlier one that came to the same, has left.
    pub(super) fn left_by(&self, cell: &Cell) -> Result<Vec<LeftModel>> {
        let mut models = Vec::new();
        for rate in self.settings.rates() {
            models.extend(self.left_at(cell, rate)?);
        }
        Ok(models)
    }

    fn left_at(&self, cell: &Cell, rate: Option<f64>) -> Result<Vec<LeftModel>> {
        let settings = self.at_rate(cell, rate);
        let stages = self.stages(cell, &settings);
        let collected = stages.collected();
        let of_base = |base: &Base, criterion: Option<Criterion>| -> Result<LeftModel> {
            let tuned = stages.tuned(&collected, base)?;
            Ok(LeftModel {
                cell: cell.clone(),
                criterion,
                pruned: criterion.map(|_| base.folder.clone()),
                state: tuned.path.with_extension("state"),
                teaches: cell.is_dense() && settings.training.learns_from_dense(),
                tuned: settings.finetune.trains_weights().then_some(tuned.path),
            })
        };
        let Some(way) = &cell.way else { return Ok(vec![of_base(&stages.dense(), None)?]) };
        let mut models = Vec::new();
        for criterion in way.criterion.criteria() {
            // In a race some may have had no choice.
            if let Some(selection) = stages.chosen(criterion, &collected)? {
                let base = stages.base(&collected, &stages.plan_of(&selection)?);
                models.push(of_base(&base, Some(criterion))?);
            }
        }
        Ok(models)
    }

    /// Where results lie.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The learning rates that are tried, if several are, the one whose model stands best first.
    fn rates(&self, cell: &Cell, observe: &mut dyn FnMut(Event)) -> Result<Vec<TriedRate>> {
        let mut tried = Vec::new();
        if cell.finetune == FinetuneMethod::None {
            return Ok(tried);
        }
        for learning_rate in self.settings.rates().into_iter().flatten() {
            let settings = self.at_rate(cell, Some(learning_rate));
            let stages = self.stages(cell, &settings);
            let Decided { collected, plan, mut base, .. } = self.decide(cell, &stages, observe)?;
            if !stages.has_trial(&collected, &base, Until::End)?
                && let Some(plan) = &plan
            {
                base = stages.prune(&collected, plan, observe)?;
            }
            let trial = stages.trial(&base, &collected, Until::End, observe)?;
            tried.push(TriedRate { learning_rate, trial });
        }
        // Stable: of equals the one that was named first stays.
        tried.sort_by(|one, other| one.trial.rank().total_cmp(&other.trial.rank()));
        Ok(tried)
    }

    /// What is pruned, and where the model is, whether it is there or not.
    fn decide(
        &self,
        cell: &Cell,
        stages: &Stages<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Decided> {
        let collected = match self.collects(cell) {
            true => stages.collect(observe)?,
            false => stages.collected(),
        };
        let decision = match &cell.way {
            Some(_) => Some(stages.decide(&collected, observe)?),
            None => None,
        };
        let plan = decision.as_ref().map(|decision| stages.plan_of(&decision.selection));
        let plan = plan.transpose()?;
        if let Some(plan) = &plan {
            stages.settle(&collected, plan, observe)?; // What is carried out says where the model is.
        }
        let base_of = |plan: &Plan| stages.base(&collected, plan);
        let base = plan.as_ref().map_or_else(|| stages.dense(), base_of);
        Ok(Decided { collected, decision, plan, base })
    }

    fn make(&self, cell: &Cell, observe: &mut dyn FnMut(Event)) -> Result<CellResult> {
        let rates = self.rates(cell, observe)?;
        let settings = self.at_rate(cell, rates.first().map(|taken| taken.learning_rate));
        let stages = &self.stages(cell, &settings);
        let Decided { collected, decision, plan, mut base } = self.decide(cell, stages, observe)?;
        let trains = stages.settings.finetune != FinetuneMethod::None;
        let tuned = trains.then(|| stages.tuned(&collected, &base)).transpose()?;
        // What other cells have found of the same model is enough, and models go when their cells are done.
        if !self.is_evaluated(stages, &base, tuned.as_ref())? {
            if let Some(plan) = &plan {
                base = stages.prune(&collected, plan, observe)?;
            }
            stages.tune(&collected, &base, None, observe)?;
        }
        let mut evaluations = Vec::new();
        for set in self.sets() {
            let before = Subject { base: &base, tuned: None };
            let before = stages.evaluate(before, set, observe)?.report;
            let after = Subject { base: &base, tuned: tuned.as_ref() };
            let Evaluated { report, answers, losses } = stages.evaluate(after, set, observe)?;
            evaluations.push(EvaluatedOn {
                data: set.path.display().to_string(),
                before,
                after: report,
                right: answers.iter().map(|answer| answer.right).collect(),
                losses,
            });
        }
        let took = match &decision {
            Some(decision) => stages.decided_in(&collected, decision)?,
            None => DecidedIn::default(),
        };
        let seconds_choosing = took.choosing + base.seconds;
        let tried = match rates.is_empty() {
            true => 0.0,
            false => stages.trial_seconds(&collected, &base, Until::End)?,
        };
        let seconds_training = took.training + tried + tuned.as_ref().map_or(0.0, Slot::seconds);
        let (scores, race) =
            decision.map_or((None, None), |found| (found.selection.scores, found.race));
        Ok(CellResult {
            cell: cell.clone(),
            pruned: plan.map_or_else(Vec::new, |plan| plan.pruned),
            scores: scores.map(|scores| scores.layers.iter().map(|layer| layer.score).collect()),
            race,
            verdict: base.verdict.clone(),
            rates,
            size: self.size(&base)?,
            evaluations,
            seconds: collected.record.seconds() + seconds_choosing + seconds_training,
            seconds_choosing,
        })
    }

    fn sets(&self) -> impl Iterator<Item = TestSet<'_>> {
        let digests = self.inputs.eval_digests.iter();
        self.settings.evals.iter().zip(digests).map(|(path, digest)| TestSet { path, digest })
    }

    /// Whether all that is asked of a model is known already.
    fn is_evaluated(&self, stages: &Stages<'_>, base: &Base, tuned: Option<&Slot>) -> Result<bool> {
        let subjects = [Subject { base, tuned: None }, Subject { base, tuned }];
        for set in self.sets() {
            for subject in subjects {
                if !stages.evaluation(subject, set).1.is_there()? {
                    return Ok(false);
                }
            }
        }
        self.size_slot(base).is_there()
    }

    /// How large a model is, noted for when it is gone.
    fn size(&self, base: &Base) -> Result<Size> {
        let slot = self.size_slot(base);
        if slot.is_there()? {
            return Ok(read_json(&slot.path)?);
        }
        slot.make(|| {
            let checkpoint = Checkpoint::open(&base.folder)?;
            let size = Size::of(&checkpoint);
            slot.write(&size)?;
            Ok(size)
        })
    }

    fn size_slot(&self, base: &Base) -> Slot {
        self.store.slot("size.json", json!({"base": base.digest}))
    }
}

/// What of a model is pruned.
struct Decided {
    collected: CollectedSlots,
    decision: Option<Decision>,
    plan: Option<Plan>,
    base: Base,
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
