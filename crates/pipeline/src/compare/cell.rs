//! One cell: its recipes, and what becomes of them.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use checkpoint::{
    Checkpoint, Record, Staging, locate, read_json, remove_if_there, require_companions,
    sha256_bytes, sha256_file,
};
use evidence::LossProbe;
use finetune::{Continuation, EvalReport, Evaluated};
use repair::{PruneSettings, Size, apply};
use selection::{Criterion, Keep, Plan, Repair, Selection, Share};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CompareSettings;
use crate::data::digest_data;
use crate::lock::RunLock;
use crate::log::LogTargets;
use crate::run::write_json;
use crate::stage::{
    CollectTargets, FinetuneTarget, LossesOf, MapsTarget, StageInputs, StateOf, collect_record,
    evaluate_model, finetune_model, fit_maps, with_losses,
};
use crate::store::{Slot, Store};
use crate::{
    Event, FinetuneMethod, Named, Result, RunSettings, Stage, TrainingSettings, check_outputs,
};

/// How a model is pruned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// How much.
    pub prune: Share,
    /// By what.
    pub criterion: Criterion,
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
    /// What all recipes depend on.
    model_digest: String,
    train_digest: String,
    eval_digests: Vec<String>,
    dtype: String,
    /// Whether rows are held out to choose layers by; if for one cell then for all, so that all train on the same.
    holds_out: bool,
    _lock: RunLock,
}

/// A model to be tuned or evaluated, and what stands for it in recipes.
struct Base {
    folder: PathBuf,
    digest: String,
    /// Each of its layers' number in the dense model.
    origin: Vec<usize>,
    /// Seconds it took to choose, fit and prune.
    seconds: f64,
}

impl<'a> CellRunner<'a> {
    pub(super) fn new(settings: &'a CompareSettings, folder: &Path) -> Result<Self> {
        let base = &settings.base;
        let model = locate(&base.model)?;
        let mut inputs = vec![Named::of("--model", &*model), Named::of("--train", &*base.train)];
        inputs.extend(settings.evals.iter().map(|path| Named::of("--eval", &**path)));
        check_outputs(&[Named::of("--out", folder)], &inputs)?;
        require_companions(&model)?;
        let config = Checkpoint::open(&model)?.config().clone();
        for cell in settings.cells() {
            // What would fail late is looked at early.
            let settings = settings.of(&cell);
            let request = settings.choice().request(config.num_layers)?;
            settings.planning().check(request.count)?;
        }
        fs_err::create_dir_all(folder)?;
        let lock = RunLock::take(folder)?;
        let store = Store::open(&folder.join("store"))?;
        Ok(Self {
            settings,
            dtype: dtype_of(base, &folder.join("store/dtype"))?,
            store,
            model_digest: digest_model(&model)?,
            train_digest: digest_data(&base.train)?,
            eval_digests: settings
                .evals
                .iter()
                .map(|path| digest_data(path))
                .collect::<Result<_>>()?,
            holds_out: settings.cells().iter().any(|cell| settings.of(cell).held_out().is_some()),
            model,
            _lock: lock,
        })
    }

    /// The settings of one cell, the type of the products decided.
    fn of(&self, cell: &Cell) -> RunSettings {
        let mut settings = self.settings.of(cell);
        settings.compute.dtype.clone_from(&self.dtype);
        settings
    }

    /// A model and the rows it is trained on.
    fn training_inputs<'b>(&self, settings: &'b RunSettings, model: &'b Path) -> StageInputs<'b> {
        let held_out = self.holds_out.then_some((settings.choose, settings.seed));
        StageInputs { held_out, ..settings.training_inputs(model) }
    }

    /// What every recipe depends on.
    fn common(&self, settings: &RunSettings) -> Value {
        json!({
            "model": self.model_digest, "train": self.train_digest, "seed": settings.seed, "dtype": self.dtype,
            "ignore_fields": settings.ignore_fields, "held_out": self.holds_out.then_some(settings.choose),
        })
    }

    /// What of a training its result depends on.
    fn lasting(training: &TrainingSettings) -> TrainingSettings {
        TrainingSettings { remat: false, save_every: None, ..training.clone() }
    }

    fn collecting(settings: &RunSettings) -> Value {
        let mut collecting = settings.collecting();
        collecting.training = Self::lasting(&collecting.training);
        json!(collecting)
    }

    /// Whether a cell's result is there.
    pub(super) fn has(&self, cell: &Cell) -> Result<bool> {
        Ok(self.result_slot(cell)?.is_there())
    }

    fn result_slot(&self, cell: &Cell) -> Result<Slot> {
        let settings = self.of(cell);
        let recipe = json!({
            "common": self.common(&settings), "cell": cell, "keep": settings.keep, "refine": settings.refine,
            "merge": settings.merge, "density": settings.density, "linear_map": settings.linear_map,
            "collect": Self::collecting(&settings), "training": Self::lasting(&settings.training), "restart": settings.restart,
            "evaluation": settings.evaluation, "evals": self.eval_digests,
        });
        self.store.slot("cell", &recipe)
    }

    /// A cell's result, made if it is not there.
    pub(super) fn run(&self, cell: &Cell, observe: &mut dyn FnMut(Event)) -> Result<CellResult> {
        let slot = self.result_slot(cell)?;
        if slot.is_there() {
            return Ok(read_json(&slot.path)?);
        }
        let settings = self.of(cell);
        let collected = self.collect(&settings, observe)?;
        let base = match cell.way {
            None => Base {
                folder: self.model.clone(),
                digest: self.model_digest.clone(),
                origin: (0..Checkpoint::open(&self.model)?.config().num_layers).collect(),
                seconds: 0.0,
            },
            Some(_) => self.prune(&settings, &collected, observe)?,
        };
        let tuned = self.tune(&settings, &collected, &base, observe)?;
        let mut evaluations = Vec::new();
        for (data, digest) in self.settings.evals.iter().zip(&self.eval_digests) {
            let set = (data.as_path(), digest.as_str());
            let before = self.evaluate(&settings, &base, None, set, observe)?.report;
            let Evaluated { report, answers } =
                self.evaluate(&settings, &base, tuned.as_ref(), set, observe)?;
            evaluations.push(EvaluatedOn {
                data: data.display().to_string(),
                before,
                after: report,
                right: answers.iter().map(|answer| answer.right).collect(),
            });
        }
        let checkpoint = Checkpoint::open(&base.folder)?;
        let num_layers = Checkpoint::open(&self.model)?.config().num_layers;
        let result = CellResult {
            cell: cell.clone(),
            pruned: (0..num_layers).filter(|layer| !base.origin.contains(layer)).collect(),
            size: Size::of(checkpoint.config(), checkpoint.weights()),
            evaluations,
            seconds: collected.record.seconds()
                + base.seconds
                + tuned.as_ref().map_or(0.0, Slot::seconds),
        };
        write_json(&slot.path, &result)?;
        Ok(result)
    }

    /// The record, and the training's state if the training goes on from it.
    fn collect(&self, settings: &RunSettings, observe: &mut dyn FnMut(Event)) -> Result<Collected> {
        let common = self.common(settings);
        let recipe = json!({"common": common, "collect": Self::collecting(settings), "goes_on": settings.goes_on()});
        let record = self.store.slot("record", &recipe)?;
        let state = settings.goes_on().then(|| self.store.slot("state", &recipe)).transpose()?;
        if !record.is_there() || state.as_ref().is_some_and(|state| !state.is_there()) {
            remove_if_there(&record.path)?;
            observe(Event::Started(Stage::Collect));
            let targets = CollectTargets {
                record: Some(&record.path),
                state: state.as_ref().map(|slot| slot.path.as_path()),
                model_name: &settings.model,
                // They say how far an order has settled, which is asked for nothing here.
                criterion: Criterion::IGIA,
                prune: Share::Layers(1),
                keep: Keep::NONE,
            };
            record.make(|| {
                collect_record(
                    self.training_inputs(settings, &self.model),
                    &settings.collecting(),
                    &settings.compute,
                    settings.seed,
                    targets,
                    observe,
                )
                .map(|_| ())
            })?;
        }
        Ok(Collected { record, state })
    }

    /// The pruned checkpoint.
    fn prune(
        &self,
        settings: &RunSettings,
        collected: &Collected,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Base> {
        let adapters = collected
            .state
            .as_ref()
            .map(|state| StateOf { folder: &state.path, training: &settings.training });
        let (plan, plan_seconds) = self.plan(settings, collected, adapters, observe)?;
        let state = collected.state.as_ref().map(|slot| &slot.digest);
        let mut recipe = json!({"model": self.model_digest, "plan": plan});
        let maps = match plan.repair() {
            Repair::LinearMap => {
                let recipe = json!({
                    "common": self.common(settings), "pruned": plan.pruned, "settings": settings.linear_map,
                    "state": state, "max_tokens": settings.training.max_tokens,
                });
                let slot = self.store.slot("maps", &recipe)?;
                if !slot.is_there() {
                    observe(Event::Started(Stage::Fit));
                    let target = MapsTarget {
                        plan: &plan,
                        model_name: &settings.model,
                        max_tokens: settings.training.max_tokens,
                        adapters,
                        target: &slot.path,
                    };
                    slot.make(|| {
                        let inputs = self.training_inputs(settings, &self.model);
                        let (map, compute) = (&settings.linear_map, &settings.compute);
                        fit_maps(inputs, map, compute, settings.seed, target, observe).map(|_| ())
                    })?;
                }
                Some(slot)
            }
            Repair::Drop | Repair::SameSign => None,
        };
        let maps_seconds = maps.as_ref().map_or(0.0, Slot::seconds);
        recipe["maps"] = json!(maps.as_ref().map(|slot| &slot.digest));
        if plan.repair() == Repair::SameSign {
            recipe["record"] = json!(collected.record.digest);
        }
        let slot = self.store.slot("pruned", &recipe)?;
        if !slot.is_there() {
            observe(Event::Started(Stage::Prune));
            let settings = PruneSettings {
                model: self.model.clone(),
                plan: plan.clone(),
                record: Some(collected.record.path.clone()),
                maps: maps.as_ref().map(|slot| slot.path.clone()),
                target: slot.path.clone(),
                shard_bytes: settings.shard_bytes,
                verify: false,
            };
            let mut observe = |done, total| observe(Event::Tensors { done, total });
            slot.make(|| Ok(apply(&settings, &mut observe).map(|_| ())?))?;
        }
        let seconds = slot.seconds() + maps_seconds + plan_seconds;
        Ok(Base { folder: slot.path, digest: slot.digest, origin: plan.retained(), seconds })
    }

    fn plan(
        &self,
        settings: &RunSettings,
        collected: &Collected,
        adapters: Option<StateOf<'_>>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<(Plan, f64)> {
        let choice = settings.choice();
        let recipe = json!({
            "common": self.common(settings), "record": collected.record.digest, "criterion": choice.criterion,
            "prune": choice.prune, "keep": choice.keep, "refine": choice.refine,
        });
        // Of all repairs alike: what is done to the others has no part in the choice.
        let slot = self.store.slot("selection", &recipe)?;
        let record = Record::open(&collected.record.path)?;
        let plan = |slot: &Slot| -> Result<(Plan, f64)> {
            let selection = Selection { removed: read_json(&slot.path)?, scores: None };
            let plan = Plan::of(record.num_layers(), &selection, &settings.planning())?;
            Ok((plan, slot.seconds()))
        };
        if slot.is_there() {
            return plan(&slot);
        }
        observe(Event::Started(Stage::Score));
        let model = Checkpoint::open(&self.model)?;
        let losses = LossesOf {
            inputs: self.training_inputs(settings, &self.model),
            max_tokens: settings.training.max_tokens,
            adapters,
        };
        slot.make(|| {
            let by = |losses: Option<&mut dyn LossProbe>| {
                choice.of_record(&record, Some(&model), losses)
            };
            let selection = if choice.needs_losses() {
                let (compute, seed) = (&settings.compute, settings.seed);
                with_losses(losses, compute, seed, observe, |losses| by(Some(losses)))?
            } else {
                by(None)?
            };
            write_json(&slot.path, &selection.removed)
        })?;
        plan(&slot)
    }

    /// The tuned adapter or checkpoint; `None` if nothing is tuned.
    fn tune(
        &self,
        settings: &RunSettings,
        collected: &Collected,
        base: &Base,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<Slot>> {
        if settings.finetune == FinetuneMethod::None {
            return Ok(None);
        }
        let state = collected.state.as_ref();
        let recipe = json!({
            "common": self.common(settings), "base": base.digest, "finetune": settings.finetune,
            "training": Self::lasting(&settings.training), "state": state.map(|slot| &slot.digest),
        });
        let slot = self.store.slot("tuned", &recipe)?;
        let saves = slot.path.with_extension("state");
        if slot.is_there() {
            remove_if_there(&saves)?; // A kill between the two leaves it.
            return Ok(Some(slot));
        }
        observe(Event::Started(Stage::Finetune));
        let num_layers = Checkpoint::open(&self.model)?.config().num_layers;
        let target = FinetuneTarget {
            target: slot.path.clone(),
            merged: None,
            saves,
            from: state.map(|slot| Continuation {
                folder: slot.path.clone(),
                num_layers,
                origin: base.origin.clone(),
            }),
            shard_bytes: settings.shard_bytes,
        };
        slot.make(|| {
            finetune_model(
                self.training_inputs(settings, &base.folder),
                (settings.finetune, &settings.training),
                &settings.compute,
                settings.seed,
                (&target, LogTargets::default()),
                observe,
            )
            .map(|_| ())
        })?;
        Ok(Some(slot))
    }

    fn evaluate(
        &self,
        settings: &RunSettings,
        base: &Base,
        tuned: Option<&Slot>,
        (data, data_digest): (&Path, &str),
        observe: &mut dyn FnMut(Event),
    ) -> Result<Evaluated> {
        let recipe = json!({
            "base": base.digest, "tuned": tuned.map(|slot| &slot.digest), "data": data_digest, "dtype": self.dtype,
            "evaluation": settings.evaluation, "ignore_fields": settings.ignore_fields,
        });
        let slot = self.store.slot("evaluation", &recipe)?;
        if slot.is_there() {
            return Ok(read_json(&slot.path)?);
        }
        observe(Event::Started(Stage::Evaluate));
        let (model, adapter) = match tuned {
            Some(slot) if settings.finetune.trains_weights() => (slot.path.as_path(), None),
            Some(slot) => (base.folder.as_path(), Some(slot.path.as_path())),
            None => (base.folder.as_path(), None),
        };
        let ignored = settings.ignore_fields.as_slice();
        let found = evaluate_model(
            StageInputs { model, data, ignored, held_out: None },
            adapter,
            &settings.evaluation,
            &settings.compute,
            observe,
        )?;
        write_json(&slot.path, &found)?;
        Ok(found)
    }
}

/// The type of the products: the one the comparison began with, if it has.
fn dtype_of(base: &RunSettings, noted: &Path) -> Result<String> {
    if base.compute.dtype == "auto"
        && let Ok(text) = fs_err::read_to_string(noted)
    {
        return Ok(text.trim().to_owned());
    }
    let dtype = base.compute.computing()?.compute.to_string();
    Staging::write(noted, dtype.as_bytes())?;
    Ok(dtype)
}

/// A file of weights is known by its size and when it was written, since to digest it takes as long as to read it.
const DIGESTED_BYTES: u64 = 64 << 20;

/// What stands for a model's folder: the names of its files and what is in them.
fn digest_model(folder: &Path) -> Result<String> {
    let mut lines = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let about = fs_err::metadata(&path)?;
        if !about.is_file() {
            continue;
        }
        let content = match about.len() {
            ..DIGESTED_BYTES => sha256_file(&path)?,
            size => {
                let written =
                    about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                format!("{size} {}", written.unwrap_or_default().as_nanos())
            }
        };
        lines.push(format!("{} {content}\n", path.file_name().unwrap_or_default().display()));
    }
    lines.sort();
    Ok(sha256_bytes(lines.concat().as_bytes()))
}

/// What a collection left.
struct Collected {
    record: Slot,
    state: Option<Slot>,
}
