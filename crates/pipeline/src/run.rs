//! A whole run into one folder, each stage complete or absent.

use std::path::{Path, PathBuf};

use checkpoint::{
    Checkpoint, Record, Staging, locate, read_json, remove_if_there, require_companions,
    sha256_file,
};
use finetune::{Continuation, EvalReport};
use repair::{LinearMaps, PruneSettings, Size, apply};
use selection::{Plan, Repair, Scores};
use serde::{Deserialize, Serialize};

use crate::data::{digest_data, read_data, rows_in_common};
use crate::estimate::require_disk;
use crate::lock::RunLock;
use crate::log::{Log, LogTargets};
use crate::settings::{Inputs, RunFile};
use crate::stage::{
    CollectTargets, FinetuneTarget, LossesOf, MapsTarget, StageInputs, StateOf, collect_record,
    evaluate_model, finetune_model, fit_maps, read_encoder, with_losses,
};
use crate::table::{ComparisonRow, comparison, no_better_than_majority};
use crate::{
    Computing, Event, FinetuneMethod, Named, Result, RunSettings, Sample, Stage, check_outputs,
    estimate, write_report,
};

/// `eval.json` of a run: every evaluation it made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluations {
    format: String,
    version: u64,
    /// The model as it came.
    pub dense: Option<EvalReport>,
    /// The model fine-tuned without pruning.
    pub dense_tuned: Option<EvalReport>,
    /// The pruned model before fine-tuning.
    pub pruned: Option<EvalReport>,
    /// The pruned model after it.
    pub pruned_tuned: Option<EvalReport>,
    /// The dense and the pruned model's sizes.
    pub sizes: (Size, Size),
    /// How many of the evaluated rows were trained on too; the figures are honest at 0.
    pub rows_trained_on: usize,
}

/// What a finished run holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunOutcome {
    /// The run's folder.
    pub run: PathBuf,
    /// The plan it carried out.
    pub plan: Plan,
    /// The layers' scores, if they were chosen by scores.
    pub scores: Option<Scores>,
    /// The models side by side.
    pub comparison: Vec<ComparisonRow>,
    /// The result to use: a checkpoint, or the adapter that belongs on `pruned/`.
    pub result: PathBuf,
    /// The report.
    pub report: PathBuf,
}

/// Runs every stage that is not complete yet.
///
/// # Errors
///
/// If a stage fails, or the folder holds a run with other settings.
pub fn run(
    settings: &RunSettings,
    folder: &Path,
    observe: &mut dyn FnMut(Event),
) -> Result<RunOutcome> {
    let mut run = Run::begin(settings, folder, observe)?;
    run.collect()?;
    let (scores, plan) = run.select()?;
    run.fit(&plan)?;
    run.prune(&plan)?;
    run.finetune(&plan)?;
    let evaluations = run.evaluate()?;
    if evaluations.pruned_tuned.as_ref().is_some_and(no_better_than_majority) {
        tracing::warn!(
            "the result may be no better than always giving the most frequent answer; train longer \
             or on more rows, raise --lr, or prune fewer layers"
        );
    }
    remove_if_there(&run.at(COLLECTED))?;
    let report = run.at("report.html");
    (run.observe)(Event::Started(Stage::Report));
    write_report(folder, &run.settings, scores.as_ref(), &plan, &evaluations)?;
    (run.observe)(Event::Done(Stage::Report, report.display().to_string()));
    Ok(RunOutcome {
        run: folder.to_owned(),
        comparison: comparison(&evaluations),
        result: run.result(),
        plan,
        scores,
        report,
    })
}

/// The settings with the type of the products decided: as the run in the folder has it, if there is
/// one, else by measuring.
fn in_force(settings: &RunSettings, folder: &Path) -> Result<(RunSettings, Computing)> {
    let mut settings = settings.clone();
    if settings.compute.dtype == "auto"
        && let Some(dtype) = RunFile::dtype(&folder.join("run.toml"))
    {
        settings.compute.dtype = dtype;
    }
    let computing = settings.compute.computing()?;
    settings.compute.dtype = computing.compute.to_string();
    Ok((settings, computing))
}

impl RunSettings {
    /// A model and the rows it is trained on.
    pub(crate) fn training_inputs<'a>(&'a self, model: &'a Path) -> StageInputs<'a> {
        let held_out = self.held_out().map(|share| (share, self.seed));
        StageInputs { model, data: &self.train, ignored: &self.ignore_fields, held_out }
    }
}

/// Where the training's state after the collected steps lies until the fine-tunings are done.
const COLLECTED: &str = "collected.state";

struct Run<'a> {
    settings: RunSettings,
    folder: PathBuf,
    /// Where the dense model is.
    model: PathBuf,
    observe: &'a mut dyn FnMut(Event),
    _lock: RunLock,
}

impl<'a> Run<'a> {
    fn begin(
        settings: &RunSettings,
        folder: &Path,
        observe: &'a mut dyn FnMut(Event),
    ) -> Result<Self> {
        let model = locate(&settings.model)?;
        let inputs = [
            Named::of("--model", &*model),
            Named::of("--train", &*settings.train),
            Named::of("--eval", settings.eval.as_deref()),
        ];
        check_outputs(&[Named::of("--out", folder)], &inputs)?;
        // What would fail late is looked at early.
        let config = Checkpoint::open(&model)?.config().clone();
        let request = settings.choice().request(config.num_layers)?;
        settings.planning().check(request.count)?;
        require_companions(&model)?;
        let read = |path: &Path| read_data(path, &settings.ignore_fields);
        let mut train = read(&settings.train)?;
        if let Some(share) = settings.held_out() {
            (train, _) = share.split(train, settings.seed)?;
        }
        let eval = settings.eval.as_deref().map(read).transpose()?;
        let inputs = Inputs {
            model_config_sha256: sha256_file(&model.join("config.json"))?,
            train_sha256: digest_data(&settings.train)?,
            eval_sha256: settings.eval.as_deref().map(digest_data).transpose()?,
        };
        settings.compute.parse()?; // A device that cannot be used leaves no folder.
        fs_err::create_dir_all(folder)?;
        let lock = RunLock::take(folder)?;
        let (settings, computing) = in_force(settings, folder)?;
        RunFile::new(settings.clone(), inputs).claim(&folder.join("run.toml"))?;
        if !folder.join("eval.json").exists() {
            let encoder = read_encoder(&model)?;
            let max_tokens = settings.training.max_tokens;
            let train = Sample::training(&train, &encoder, max_tokens)?;
            let most = settings.evaluation.max_rows.unwrap_or(usize::MAX);
            let eval = eval.as_deref().map(|rows| {
                Sample::evaluation(&rows[..most.min(rows.len())], &encoder, max_tokens)
            });
            let needs = estimate(&settings, &config, &train, eval.transpose()?.as_ref())?;
            require_disk(folder, needs.disk_bytes)?;
            observe(Event::Computing(computing));
            observe(Event::Needs(needs));
        }
        Ok(Self { settings, folder: folder.to_owned(), model, observe, _lock: lock })
    }

    /// The file and the folder that steps are logged to.
    fn logs(&self) -> (PathBuf, Option<PathBuf>) {
        let events = self.settings.tensorboard.then(|| self.at("tensorboard"));
        (self.at("metrics.jsonl"), events)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether a stage has left its result; says so.
    fn found(&mut self, stage: Stage, path: &Path) -> bool {
        let found = path.exists();
        (self.observe)(if found { Event::Found(stage) } else { Event::Started(stage) });
        found
    }

    fn done(&mut self, stage: Stage, text: String) {
        (self.observe)(Event::Done(stage, text));
    }

    fn collect(&mut self) -> Result<()> {
        let record = self.at("record");
        if self.found(Stage::Collect, &record) {
            return Ok(());
        }
        let (settings, state) = (self.settings.clone(), self.at(COLLECTED));
        let targets = CollectTargets {
            record: Some(&record),
            state: settings.goes_on().then_some(state.as_path()),
            model_name: &settings.model,
            criterion: settings.criterion,
            prune: settings.prune,
            keep: settings.keep,
        };
        let (lines, events) = self.logs();
        let to = LogTargets { lines: Some(&lines), events: events.as_deref() };
        let mut log = Log::new(to, Stage::Collect);
        let mut logged = Ok(());
        let observe = &mut *self.observe;
        let found = collect_record(
            settings.training_inputs(&self.model),
            &settings.collecting(),
            &settings.compute,
            settings.seed,
            targets,
            &mut |event| logging(&mut log, &mut logged, event, observe),
        )?;
        logged?;
        let text = match found.stability {
            Some(stability) => format!("{} steps; {stability}", found.steps.len()),
            None => format!("{} steps", found.steps.len()),
        };
        self.done(Stage::Collect, text);
        Ok(())
    }

    /// The layers' scores, if the criterion gives them, and the plan.
    fn select(&mut self) -> Result<(Option<Scores>, Plan)> {
        let (scores_path, plan_path) = (self.at("scores.json"), self.at("plan.json"));
        if plan_path.exists() {
            let scores = scores_path.exists().then(|| Scores::read(&scores_path)).transpose()?;
            if scores.is_some() {
                (self.observe)(Event::Found(Stage::Score));
            }
            (self.observe)(Event::Found(Stage::Plan));
            return Ok((scores, Plan::read(&plan_path)?));
        }
        let settings = self.settings.clone();
        (self.observe)(Event::Started(Stage::Score));
        let model = Checkpoint::open(&self.model)?;
        let record = Record::open(&self.at("record"))?;
        let (num_layers, choice) = (record.num_layers(), settings.choice());
        let state = self.at(COLLECTED);
        let losses = LossesOf {
            inputs: settings.training_inputs(&self.model),
            max_tokens: settings.training.max_tokens,
            adapters: settings
                .goes_on()
                .then_some(StateOf { folder: &state, training: &settings.training }),
        };
        let selection = match choice.needs_losses() {
            false => choice.of_record(&record, Some(&model), None)?,
            true => {
                with_losses(losses, &settings.compute, settings.seed, self.observe, |losses| {
                    choice.of_record(&record, Some(&model), Some(losses))
                })?
            }
        };
        if let Some(scores) = &selection.scores {
            scores.write(&scores_path)?;
            let lowest: Vec<_> = scores.ranking().iter().take(5).map(usize::to_string).collect();
            let name = settings.criterion.name();
            let text = format!("by {name}; lowest: {} …", lowest.join(" "));
            self.done(Stage::Score, text);
        }
        (self.observe)(Event::Started(Stage::Plan));
        let plan = Plan::of(num_layers, &selection, &self.settings.planning())?;
        plan.write(&plan_path)?;
        self.done(Stage::Plan, crate::layer_strip(&plan));
        Ok((selection.scores, plan))
    }

    /// The linear maps, if the plan repairs by them.
    fn fit(&mut self, plan: &Plan) -> Result<()> {
        if plan.repair() != Repair::LinearMap {
            return Ok(());
        }
        let (target, state) = (self.at("maps"), self.at(COLLECTED));
        // Once they are folded in they are of no use.
        if self.at("pruned").exists() {
            return Ok(());
        }
        // Those of a plan that was edited since are of none either.
        if target.exists() && LinearMaps::open(&target)?.header().pruned != plan.pruned {
            remove_if_there(&target)?;
        }
        if self.found(Stage::Fit, &target) {
            return Ok(());
        }
        let settings = self.settings.clone();
        let inputs = settings.training_inputs(&self.model);
        let target = MapsTarget {
            plan,
            model_name: &settings.model,
            max_tokens: settings.training.max_tokens,
            adapters: settings
                .goes_on()
                .then_some(StateOf { folder: &state, training: &settings.training }),
            target: &target,
        };
        let found = fit_maps(
            inputs,
            &settings.linear_map,
            &settings.compute,
            settings.seed,
            target,
            self.observe,
        )?;
        self.done(Stage::Fit, format!("{} fitted on {} tokens", found.runs.len(), found.tokens));
        Ok(())
    }

    fn prune(&mut self, plan: &Plan) -> Result<()> {
        let target = self.at("pruned");
        if self.found(Stage::Prune, &target) {
            return Ok(());
        }
        let settings = PruneSettings {
            model: self.model.clone(),
            plan: plan.clone(),
            record: Some(self.at("record")),
            maps: Some(self.at("maps")),
            target,
            shard_bytes: self.settings.shard_bytes,
            verify: false,
        };
        let report = apply(&settings, &mut |done, total| {
            (self.observe)(Event::Tensors { done, total });
        })?;
        let share = 1.0 - report.after.parameters as f64 / report.before.parameters as f64;
        let flops =
            1.0 - report.after.flops_per_token as f64 / report.before.flops_per_token as f64;
        self.done(
            Stage::Prune,
            format!(
                "{} of {} layers left; {:.1} % fewer parameters, {:.1} % fewer FLOPs a token",
                report.after.num_layers,
                report.before.num_layers,
                share * 100.0,
                flops * 100.0
            ),
        );
        Ok(())
    }

    fn finetune(&mut self, plan: &Plan) -> Result<()> {
        let method = self.settings.finetune;
        if method == FinetuneMethod::None {
            return Ok(());
        }
        let (target, merged) = (self.tuned(), self.settings.save_merged.then(|| self.at("merged")));
        let (goes_on, folder, num_layers) =
            (self.settings.goes_on(), self.at(COLLECTED), plan.num_layers);
        let from = |origin: Vec<usize>| {
            goes_on.then(|| Continuation { folder: folder.clone(), num_layers, origin })
        };
        let model = self.at("pruned");
        self.train(Stage::Finetune, &model, &target, (merged, from(plan.retained())))?;
        if self.settings.with_dense {
            let (model, target) = (self.model.clone(), self.dense_tuned());
            // Dense, the collected steps are the first ones of the very same training.
            let all = (0..plan.num_layers).collect();
            self.train(Stage::DenseFinetune, &model, &target, (None, from(all)))?;
        }
        Ok(())
    }

    fn train(
        &mut self,
        stage: Stage,
        model: &Path,
        target: &Path,
        (merged, from): (Option<PathBuf>, Option<Continuation>),
    ) -> Result<()> {
        let saves = target.with_extension("state");
        if self.found(stage, target) {
            return Ok(remove_if_there(&saves)?);
        }
        // It is written before `target`, so it may be there when `target` is not.
        if let Some(merged) = &merged {
            remove_if_there(merged)?;
        }
        let settings = self.settings.clone();
        let target = FinetuneTarget {
            target: target.to_owned(),
            merged,
            saves,
            from,
            shard_bytes: settings.shard_bytes,
        };
        let (lines, events) = self.logs();
        let to = LogTargets { lines: Some(&lines), events: events.as_deref() };
        let mut log = Log::new(to, stage);
        let mut logged = Ok(());
        let observe = &mut *self.observe;
        let report = finetune_model(
            settings.training_inputs(model),
            (settings.finetune, &settings.training),
            &settings.compute,
            settings.seed,
            (&target, LogTargets::default()), // Logged below, under the run's own stages.
            &mut |event| logging(&mut log, &mut logged, event, observe),
        )?;
        logged?;
        self.done(
            stage,
            format!(
                "{} steps, {} tokens, last loss {:.4}",
                report.steps, report.tokens, report.last_loss
            ),
        );
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Evaluations> {
        let path = self.at("eval.json");
        if path.exists() {
            return Ok(read_json(&path)?);
        }
        let (model, pruned) = (self.model.clone(), self.at("pruned"));
        let size = |folder: &Path| -> Result<Size> {
            let checkpoint = Checkpoint::open(folder)?;
            Ok(Size::of(checkpoint.config(), checkpoint.weights()))
        };
        let mut found = Evaluations {
            format: "gradpruner-evaluations".into(),
            version: 1,
            dense: None,
            dense_tuned: None,
            pruned: None,
            pruned_tuned: None,
            sizes: (size(&model)?, size(&pruned)?),
            rows_trained_on: self.rows_trained_on()?,
        };
        if let Some(data) = self.settings.eval.clone() {
            let tunes = self.settings.finetune != FinetuneMethod::None;
            let (tuned, dense_tuned) = (self.tuned(), self.dense_tuned());
            found.dense = Some(self.evaluation(Stage::EvaluateDense, &model, None, &data)?);
            found.pruned = Some(self.evaluation(Stage::EvaluatePruned, &pruned, None, &data)?);
            if tunes {
                let (model, adapter) = self.on(&pruned, &tuned);
                let report =
                    self.evaluation(Stage::EvaluateTuned, &model, adapter.as_deref(), &data)?;
                found.pruned_tuned = Some(report);
            }
            if tunes && self.settings.with_dense {
                let (model, adapter) = self.on(&model, &dense_tuned);
                let stage = Stage::EvaluateDenseTuned;
                found.dense_tuned =
                    Some(self.evaluation(stage, &model, adapter.as_deref(), &data)?);
            }
        }
        write_json(&path, &found)?;
        remove_if_there(&self.at("evaluations"))?;
        Ok(found)
    }

    /// How many rows to evaluate on are among those to train on.
    fn rows_trained_on(&self) -> Result<usize> {
        let RunSettings { train, eval, ignore_fields, .. } = &self.settings;
        eval.as_deref().map_or(Ok(0), |eval| rows_in_common(train, eval, ignore_fields))
    }

    /// One evaluation, kept by itself until all are done.
    fn evaluation(
        &mut self,
        stage: Stage,
        model: &Path,
        adapter: Option<&Path>,
        data: &Path,
    ) -> Result<EvalReport> {
        let name = serde_json::to_value(stage).unwrap_or_default();
        let path = self.at("evaluations").join(format!("{}.json", name.as_str().unwrap_or("x")));
        if self.found(stage, &path) {
            return Ok(read_json(&path)?);
        }
        let report = evaluate_model(
            StageInputs { model, data, ignored: &self.settings.ignore_fields, held_out: None },
            adapter,
            &self.settings.evaluation,
            &self.settings.compute,
            self.observe,
        )?
        .report;
        write_json(&path, &report)?;
        let acc =
            report.acc.map_or_else(String::new, |acc| format!("accuracy {:.1} %, ", acc * 100.0));
        let perplexity =
            report.perplexity.map_or("not finite".into(), |value| format!("{value:.4}"));
        self.done(stage, format!("{acc}perplexity {perplexity}"));
        Ok(report)
    }

    /// The model and adapter to load for a tuned model.
    fn on(&self, base: &Path, tuned: &Path) -> (PathBuf, Option<PathBuf>) {
        match self.settings.finetune {
            method if method.trains_weights() => (tuned.to_owned(), None),
            _ => (base.to_owned(), Some(tuned.to_owned())),
        }
    }

    fn tuned(&self) -> PathBuf {
        match self.settings.finetune {
            method if method.trains_weights() => self.at("tuned"),
            _ => self.at("adapter"),
        }
    }

    fn dense_tuned(&self) -> PathBuf {
        match self.settings.finetune {
            method if method.trains_weights() => self.at("dense-tuned"),
            _ => self.at("dense-adapter"),
        }
    }

    /// What the user takes away.
    fn result(&self) -> PathBuf {
        match self.settings.finetune {
            FinetuneMethod::None => self.at("pruned"),
            FinetuneMethod::Lora if self.settings.save_merged => self.at("merged"),
            _ => self.tuned(),
        }
    }
}

/// Passes an event on, steps into the log first; the first failure to log is kept.
fn logging(
    log: &mut Log<'_>,
    logged: &mut Result<()>,
    event: Event,
    observe: &mut dyn FnMut(Event),
) {
    if let (Event::Step(metrics), Ok(())) = (&event, &logged) {
        *logged = log.add(metrics);
    }
    observe(event);
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| checkpoint::CheckpointError::Json { path: path.to_owned(), source })?;
    text.push('\n');
    Ok(Staging::write(path, text.as_bytes())?)
}
