//! One cell: its recipes, and what becomes of them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::{Checkpoint, Record, locate, read_json, require_companions, sha256_file};
use finetune::{Continuation, EvalReport, Evaluated};
use repair::{PruneSettings, Size, apply};
use selection::{Criterion, Keep, Plan, Repair, Share};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CompareSettings;
use crate::data::digest_data;
use crate::log::LogTargets;
use crate::run::write_json;
use crate::stage::{
    CollectTargets, FinetuneTarget, LossesOf, MapsTarget, StageInputs, StateOf, collect_record,
    evaluate_model, finetune_model, fit_maps, with_losses,
};
use crate::store::{Slot, Store};
use crate::{Event, FinetuneMethod, Named, Result, RunSettings, Stage, check_outputs};

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
    /// Seconds that its own stages took when they were made; shared ones count for the first cell that needed them.
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
}

/// A model to be tuned or evaluated, and what stands for it in recipes.
struct Base {
    folder: PathBuf,
    digest: String,
    /// Each of its layers' number in the dense model.
    origin: Vec<usize>,
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
            settings.choice().request(config.num_layers)?;
            settings.planning().check()?;
        }
        let computing = base.compute.computing()?;
        Ok(Self {
            settings,
            store: Store::open(&folder.join("store"))?,
            model_digest: sha256_file(&model.join("config.json"))?,
            train_digest: digest_data(&base.train)?,
            eval_digests: settings
                .evals
                .iter()
                .map(|path| digest_data(path))
                .collect::<Result<_>>()?,
            dtype: computing.compute.to_string(),
            holds_out: settings.cells().iter().any(|cell| settings.of(cell).held_out().is_some()),
            model,
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

    /// Whether a cell's result is there.
    pub(super) fn has(&self, cell: &Cell) -> Result<bool> {
        Ok(self.result_slot(cell)?.is_there())
    }

    fn result_slot(&self, cell: &Cell) -> Result<Slot> {
        let settings = self.of(cell);
        let recipe = json!({
            "common": self.common(&settings), "cell": cell, "keep": settings.keep, "refine": settings.refine,
            "merge": settings.merge, "density": settings.density, "linear_map": settings.linear_map,
            "collect": settings.collecting(), "training": settings.training, "restart": settings.restart,
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
        let begun = Instant::now();
        let settings = self.of(cell);
        let collected = self.collect(&settings, observe)?;
        let base = match cell.way {
            None => Base {
                folder: self.model.clone(),
                digest: self.model_digest.clone(),
                origin: (0..Checkpoint::open(&self.model)?.config().num_layers).collect(),
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
            seconds: begun.elapsed().as_secs_f64(),
        };
        write_json(&slot.path, &result)?;
        Ok(result)
    }

    /// The record, and the training's state if the training goes on from it.
    fn collect(&self, settings: &RunSettings, observe: &mut dyn FnMut(Event)) -> Result<Collected> {
        let common = self.common(settings);
        let recipe = json!({"common": common, "collect": settings.collecting(), "goes_on": settings.goes_on()});
        let record = self.store.slot("record", &recipe)?;
        let state = settings.goes_on().then(|| self.store.slot("state", &recipe)).transpose()?;
        if !record.is_there() {
            observe(Event::Started(Stage::Collect));
            let targets = CollectTargets {
                record: Some(&record.path),
                state: state.as_ref().map(|slot| slot.path.as_path()),
                model_name: &settings.model,
                // Nothing depends on them but how far the order is said to be settled.
                criterion: Criterion::IGIA,
                prune: Share::Layers(1),
                keep: Keep::NONE,
            };
            collect_record(
                self.training_inputs(settings, &self.model),
                &settings.collecting(),
                &settings.compute,
                settings.seed,
                targets,
                observe,
            )?;
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
        let plan = self.plan(settings, collected, adapters, observe)?;
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
                    fit_maps(
                        self.training_inputs(settings, &self.model),
                        &settings.linear_map,
                        &settings.compute,
                        settings.seed,
                        target,
                        observe,
                    )?;
                }
                Some(slot)
            }
            Repair::Drop | Repair::SameSign => None,
        };
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
                maps: maps.map(|slot| slot.path),
                target: slot.path.clone(),
                shard_bytes: settings.shard_bytes,
                verify: false,
            };
            apply(&settings, &mut |done, total| observe(Event::Tensors { done, total }))?;
        }
        Ok(Base { folder: slot.path, digest: slot.digest, origin: plan.retained() })
    }

    fn plan(
        &self,
        settings: &RunSettings,
        collected: &Collected,
        adapters: Option<StateOf<'_>>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Plan> {
        let choice = settings.choice();
        let recipe = json!({
            "common": self.common(settings), "record": collected.record.digest, "criterion": choice.criterion,
            "prune": choice.prune, "keep": choice.keep, "refine": choice.refine, "repair": settings.repair,
            "merge": settings.merge, "density": settings.density,
        });
        let slot = self.store.slot("plan", &recipe)?;
        if slot.is_there() {
            return Ok(Plan::read(&slot.path)?);
        }
        observe(Event::Started(Stage::Score));
        let model = Checkpoint::open(&self.model)?;
        let record = Record::open(&collected.record.path)?;
        let losses = LossesOf {
            inputs: self.training_inputs(settings, &self.model),
            max_tokens: settings.training.max_tokens,
            adapters,
        };
        let selection = match choice.needs_losses() {
            false => choice.of_record(&record, Some(&model), None)?,
            true => with_losses(losses, &settings.compute, settings.seed, observe, |losses| {
                choice.of_record(&record, Some(&model), Some(losses))
            })?,
        };
        let plan = Plan::of(record.num_layers(), &selection, &settings.planning())?;
        plan.write(&slot.path)?;
        Ok(plan)
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
            "training": settings.training, "state": state.map(|slot| &slot.digest),
        });
        let slot = self.store.slot("tuned", &recipe)?;
        if slot.is_there() {
            return Ok(Some(slot));
        }
        observe(Event::Started(Stage::Finetune));
        let num_layers = Checkpoint::open(&self.model)?.config().num_layers;
        let target = FinetuneTarget {
            target: slot.path.clone(),
            merged: None,
            saves: slot.path.with_extension("state"),
            from: state.map(|slot| Continuation {
                folder: slot.path.clone(),
                num_layers,
                origin: base.origin.clone(),
            }),
            shard_bytes: settings.shard_bytes,
        };
        finetune_model(
            self.training_inputs(settings, &base.folder),
            (settings.finetune, &settings.training),
            &settings.compute,
            settings.seed,
            (&target, LogTargets::default()),
            observe,
        )?;
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

/// What a collection left.
struct Collected {
    record: Slot,
    state: Option<Slot>,
}
