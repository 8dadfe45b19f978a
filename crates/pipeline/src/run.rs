//! A whole run into one folder, each stage complete or absent.

use std::path::{Path, PathBuf};

use ::finetune::{Answer, ComputeChoice, EvalReport, Evaluated, Rounding};
use checkpoint::{
    Checkpoint, locate, read_json, remove_if_there, require_companions, sha256_file, write_json,
};
use repair::{LinearMaps, MapsHeader, Size};
use selection::{Plan, Repair, Scores};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cell::{
    Amount, Base, CollectedSlots, Decision, Digests, Race, Stages, Subject, TestSet, digest_model,
    digest_teacher,
};
use crate::data::{digest_data, read_data, rows_in_common};
use crate::estimate::require_disk;
use crate::lock::RunLock;
use crate::log::{LogLine, LogTargets, read_log};
use crate::run_file::{Inputs, RunFile};
use crate::stage::{EncodedRows, StageContext, read_encoder};
use crate::store::{Slot, Store};
use crate::timing::{StageTime, read_timings};
use crate::{
    Computing, Done, Event, FinetuneMethod, Named, Result, RunSettings, Sample, Stage, Verdict,
    check_outputs, estimate,
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
    /// What they answered to the first rows.
    #[serde(default)]
    pub answers: FirstAnswers,
    /// How many of the evaluated rows were trained on too; the figures are honest at 0.
    pub rows_trained_on: usize,
}

/// What each model answered to the first rows with choices, for a person to look at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are those of `Evaluations`")]
pub struct FirstAnswers {
    pub dense: Vec<Answer>,
    pub dense_tuned: Vec<Answer>,
    pub pruned: Vec<Answer>,
    pub pruned_tuned: Vec<Answer>,
}

/// How many answers are kept.
const FIRST_ANSWERS: usize = 5;

/// What a finished run holds.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOutcome {
    /// The run's folder.
    pub run: PathBuf,
    /// The settings in force, the type of the products decided.
    pub settings: RunSettings,
    /// The plan it carried out.
    pub plan: Plan,
    /// Whether a person has put other layers into the plan than were chosen.
    pub plan_is_edited: bool,
    /// The layers' scores, if a criterion that was asked gives them.
    pub scores: Option<Scores>,
    /// How it was found how many layers go, if it was said how much may be lost.
    pub amount: Option<Amount>,
    /// How the choices of several criteria came out, if they raced.
    pub race: Option<Race>,
    /// What the plan's repair does to what is lost, if it has one.
    pub verdict: Option<Verdict>,
    /// How well linear maps fit, if the plan repairs by them.
    pub maps: Option<MapsHeader>,
    /// Every step that was taken, and every look of a training at the rows held out.
    pub log: Vec<LogLine>,
    /// How long stages took, where the folder says so.
    pub timings: Vec<StageTime>,
    /// The models' figures.
    pub evaluations: Evaluations,
    /// The result to use: a checkpoint, or the adapter that belongs on `pruned/`.
    pub result: PathBuf,
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
    let (lines, events) = (run.at("metrics.jsonl"), run.at("tensorboard"));
    let log = LogTargets {
        lines: Some(&lines),
        events: run.settings.tensorboard.then_some(events.as_path()),
    };
    let collected = run.collect(&run.stages(log), observe)?;
    let amount = run.stages(log).amount(&collected, observe)?;
    if let Some(amount) = &amount {
        run.settings = run.settings.pruning(amount.layers);
    }
    let stages = run.stages(log);
    let Planned { scores, race, plan, is_edited } = run.plan(&stages, &collected, observe)?;
    let pruned = stages.prune(&collected, &plan, observe)?;
    if run.is_watched {
        stages.watch(&collected, &pruned, observe)?;
    }
    let merged = run.settings.save_merged.then(|| run.at("merged"));
    if merged.is_some() && run.settings.compute.rounding() != Rounding::NONE {
        tracing::warn!(
            "the adapter is merged into the weights as they are stored, and evaluated on the rounded ones; evaluate \
             the merged model by `gradpruner eval`"
        );
    }
    let tuned = stages.tune(&collected, &pruned, merged, observe)?;
    let dense = stages.dense();
    let dense_tuned = match run.settings.tunes_dense() {
        true => stages.tune(&collected, &dense, None, observe)?,
        false => None,
    };
    let models = Evaluating {
        dense: Subject { base: &dense, tuned: dense_tuned.as_ref() },
        pruned: Subject { base: &pruned, tuned: tuned.as_ref() },
    };
    let evaluations = run.evaluate(&stages, models, observe)?;
    if let Some(state) = &collected.state {
        remove_if_there(&state.path)?;
    }
    let verdict = pruned.verdict.clone();
    // What was carried out.
    let plan = verdict.as_ref().map_or(plan, |verdict| verdict.plan.clone());
    Ok(RunOutcome {
        run: folder.to_owned(),
        verdict,
        maps: run.maps(&plan)?,
        log: read_log(&lines)?,
        timings: read_timings(folder)?,
        result: run.result(tuned.as_ref(), &pruned),
        settings: run.settings,
        plan,
        plan_is_edited: is_edited,
        scores,
        amount,
        race,
        evaluations,
    })
}

/// The settings with the type of the products decided: as the run in the folder has it, if there is
/// one, else by measuring.
fn in_force(settings: &RunSettings, folder: &Path) -> Result<(RunSettings, Computing)> {
    let mut settings = settings.clone();
    if settings.compute.dtype == ComputeChoice::Auto
        && let Some(dtype) = RunFile::dtype(&folder.join("run.toml"))
    {
        settings.compute.dtype = dtype;
    }
    let computing = settings.compute.computing()?;
    settings.compute.dtype = ComputeChoice::Fixed(computing.compute);
    settings.collect = settings.collecting();
    Ok((settings, computing))
}

impl RunSettings {
    /// A model and the rows it is trained on.
    pub(crate) fn context<'a>(
        &'a self,
        model: &'a Path,
        encoded: &'a EncodedRows,
    ) -> StageContext<'a> {
        StageContext {
            model,
            data: &self.train,
            ignored: &self.ignore_fields,
            held_out: self.held_out(),
            compute: &self.compute,
            seed: self.seed,
            encoded,
        }
    }
}

/// The models that a run evaluates, each as it is and, if it was tuned, after that.
#[derive(Clone, Copy)]
struct Evaluating<'a> {
    dense: Subject<'a>,
    pruned: Subject<'a>,
}

/// What a run is going to do, and by what.
struct Planned {
    scores: Option<Scores>,
    race: Option<Race>,
    plan: Plan,
    /// Whether a person has put other layers there than were chosen.
    is_edited: bool,
}

struct Run {
    settings: RunSettings,
    folder: PathBuf,
    store: Store,
    /// Where the dense model is.
    model: PathBuf,
    num_layers: usize,
    digests: Digests,
    /// Whether the training is looked at a quarter in.
    is_watched: bool,
    encoded: EncodedRows,
    _lock: RunLock,
}

/// Fewer steps say nothing at a quarter of them.
const WATCHED_STEPS: usize = 16;

/// Whether a training of so many steps is looked at a quarter in: it answers by choices, is long enough to say something
/// then, and no race looks at it anyway.
pub(crate) fn watches(settings: &RunSettings, train: &Sample, steps: usize) -> bool {
    train.has_choices()
        && !settings.criterion.races()
        && settings.max_drop.is_none()
        && steps >= WATCHED_STEPS
}

impl Run {
    fn begin(
        settings: &RunSettings,
        folder: &Path,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let model = locate(&settings.model)?;
        let inputs = [
            Named::of("--model", &*model),
            Named::of("--train", &*settings.train),
            Named::of("--eval", settings.eval.as_deref()),
        ];
        check_outputs(&[Named::of("--out", folder)], &inputs)?;
        // What would fail late is looked at early.
        let config = Checkpoint::open(&model)?.config()?.clone();
        settings.check(&config)?;
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
        let digests = Digests {
            model: digest_model(&model)?,
            train: inputs.train_sha256.clone(),
            teacher: digest_teacher(&settings.training, &model)?,
        };
        settings.compute.resolve()?; // A device that cannot be used leaves no folder.
        fs_err::create_dir_all(folder)?;
        let lock = RunLock::take(folder)?;
        let (settings, computing) = in_force(settings, folder)?;
        RunFile::new(settings.clone(), inputs).claim(&folder.join("run.toml"))?;
        let mut is_watched = false;
        if !folder.join(EVALUATIONS).exists() {
            let encoder = read_encoder(&model)?;
            let max_tokens = settings.training.max_tokens;
            let train = Sample::training(&train, &encoder, max_tokens)?;
            let most = settings.evaluation.max_rows.unwrap_or(usize::MAX);
            let eval = eval.as_deref().map(|rows| {
                Sample::evaluation(&rows[..most.min(rows.len())], &encoder, max_tokens)
            });
            let needs = estimate(&settings, &config, &train, eval.transpose()?.as_ref())?;
            require_disk(folder, needs.disk_bytes)?;
            let steps = needs.stages.iter().find(|needs| needs.stage == Stage::Finetune);
            is_watched = steps.is_some_and(|needs| watches(&settings, &train, needs.steps));
            observe(Event::Computing(computing));
            observe(Event::Needs(needs));
        }
        let (store, num_layers) = (Store::of_one(folder), config.num_layers);
        let folder = folder.to_owned();
        Ok(Self {
            settings,
            folder,
            store,
            model,
            num_layers,
            digests,
            is_watched,
            encoded: EncodedRows::default(),
            _lock: lock,
        })
    }

    fn stages<'a>(&'a self, log: LogTargets<'a>) -> Stages<'a> {
        let Self { settings, store, model, num_layers, digests, encoded, .. } = self;
        let held_out = settings.held_out();
        let num_layers = *num_layers;
        Stages { settings, store, home: store, model, num_layers, digests, held_out, log, encoded }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn collect(
        &self,
        stages: &Stages<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<CollectedSlots> {
        let (of, of_dense) = match self.settings.finetune {
            FinetuneMethod::None => ("pruned", None),
            method if method.trains_weights() => ("tuned", Some("dense-tuned")),
            _ => ("adapter", Some("dense-adapter")),
        };
        let of_dense = of_dense.filter(|_| self.settings.tunes_dense());
        let mut made = ["pruned", of].into_iter().chain(of_dense);
        // Of a run that is done nothing goes on any more, and the state to go on from is gone.
        if self.at(EVALUATIONS).exists() && made.all(|name| self.at(name).exists()) {
            observe(Event::Found(Stage::Collect));
            return Ok(stages.collected());
        }
        stages.collect(observe)
    }

    /// The layers' scores, if the criterion gives them, and the plan: as it was written, or as a person has edited it
    /// since.
    fn plan(
        &self,
        stages: &Stages<'_>,
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Planned> {
        let (scores_path, plan_path) = (self.at("scores.json"), self.at("plan.json"));
        if plan_path.exists() {
            let scores = scores_path.exists().then(|| Scores::read(&scores_path)).transpose()?;
            observe(Event::Found(Stage::Score));
            observe(Event::Found(Stage::Plan));
            let race = stages.raced(collected)?;
            let plan = Plan::read(&plan_path)?;
            let chosen = match (&race, self.settings.criterion.criterion()) {
                (Some(race), _) => Some(race.selection.clone()),
                (None, Some(criterion)) => stages.chosen(criterion, collected)?,
                (None, None) => None,
            };
            let is_edited = chosen.is_some_and(|chosen| {
                stages.plan_of(&chosen).is_ok_and(|chosen| chosen.pruned != plan.pruned)
            });
            return Ok(Planned { scores, race, plan, is_edited });
        }
        let Decision { selection, race } = stages.decide(collected, observe)?;
        let scores = race.as_ref().map_or(&selection.scores, |race| &race.scores).clone();
        if let Some(scores) = &scores {
            scores.write(&scores_path)?;
        }
        observe(Event::Started(Stage::Plan));
        let plan = Plan::of(self.num_layers, &selection, &self.settings.planning())?;
        plan.write(&plan_path)?;
        observe(Event::Done(Stage::Plan, Done::Planned(plan.clone())));
        Ok(Planned { scores, race, plan, is_edited: false })
    }

    /// How well the plan's linear maps fit, if it has any and they are still there.
    fn maps(&self, plan: &Plan) -> Result<Option<MapsHeader>> {
        let folder = self.at("maps");
        if plan.repair() != Repair::LinearMap || !folder.exists() {
            return Ok(None);
        }
        let header = LinearMaps::open(&folder)?.header().clone();
        Ok((header.pruned == plan.pruned).then_some(header))
    }

    fn evaluate(
        &self,
        stages: &Stages<'_>,
        models: Evaluating<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Evaluations> {
        let Evaluating { dense, pruned } = models;
        let RunSettings { train, eval, ignore_fields, evaluation, compute, .. } = &self.settings;
        let digest = eval.as_deref().map(digest_data).transpose()?;
        let of = |subject: Subject<'_>| json!({"base": subject.base.digest, "tuned": subject.tuned.map(|slot| &slot.digest)});
        let recipe = json!({
            "dense": of(dense), "pruned": of(pruned), "data": digest, "evaluation": evaluation,
            "ignore_fields": ignore_fields, "dtype": compute.dtype,
        });
        let slot = self.store.slot(EVALUATIONS, &recipe);
        slot.clear_other()?; // That of a plan that was edited since.
        if slot.is_there()? {
            return Ok(read_json(&slot.path)?);
        }
        let size = |folder: &Path| -> Result<Size> {
            let checkpoint = Checkpoint::open(folder)?;
            Ok(Size::of(&checkpoint))
        };
        let mut found = Evaluations {
            format: "gradpruner-evaluations".into(),
            version: 1,
            dense: None,
            dense_tuned: None,
            pruned: None,
            pruned_tuned: None,
            sizes: (size(&dense.base.folder)?, size(&pruned.base.folder)?),
            answers: FirstAnswers::default(),
            rows_trained_on: 0,
        };
        if let Some((eval, digest)) = eval.as_deref().zip(digest.as_deref()) {
            found.rows_trained_on =
                rows_in_common(train, eval, evaluation.max_rows, ignore_fields)?;
            let set = TestSet { path: eval, digest };
            let mut of = |subject, answered: &mut Vec<Answer>| -> Result<EvalReport> {
                let Evaluated { report, mut answers, .. } =
                    stages.evaluate(subject, set, observe)?;
                answers.truncate(FIRST_ANSWERS);
                *answered = answers;
                Ok(report)
            };
            let answers = &mut found.answers;
            let untuned = |subject| Subject { tuned: None, ..subject };
            found.dense = Some(of(untuned(dense), &mut answers.dense)?);
            found.pruned = Some(of(untuned(pruned), &mut answers.pruned)?);
            if pruned.tuned.is_some() {
                found.pruned_tuned = Some(of(pruned, &mut answers.pruned_tuned)?);
            }
            if dense.tuned.is_some() {
                found.dense_tuned = Some(of(dense, &mut answers.dense_tuned)?);
            }
        }
        slot.gather(|| Ok(write_json(&slot.path, &found)?))?;
        remove_if_there(&self.at("evaluations"))?;
        Ok(found)
    }

    /// What the user takes away.
    fn result(&self, tuned: Option<&Slot>, pruned: &Base) -> PathBuf {
        match (tuned, self.settings.finetune) {
            (Some(_), FinetuneMethod::Lora) if self.settings.save_merged => self.at("merged"),
            (Some(tuned), _) => tuned.path.clone(),
            (None, _) => pruned.folder.clone(),
        }
    }
}

/// Where a run's evaluations lie; they are its last stage but for the report.
const EVALUATIONS: &str = "eval.json";
