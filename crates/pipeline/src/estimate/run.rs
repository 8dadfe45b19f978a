//! The stages of a run, one after the other.

use checkpoint::{Dtype, ModelConfig, locate_configuration};
use finetune::{LoraAndLayers, Method, SENSITIVITY_ROWS, TrainSettings};
use selection::{Repair, RepairNeed, Share};

use super::stages::{Estimator, Fitting, Passes, RUNS, Subject, Teaching, Training};
use super::{Sample, StageEstimate};
use crate::cell::most_trials;
use crate::run::watches;
use crate::stage::LOSS_ROWS;
use crate::{
    Choosing, FinetuneMethod, LoraLayers, Result, RunSettings, Stage, TeacherSettings,
    TrainingSettings, Until,
};

/// What a row of the sensitivities takes of what one of a collected step does: the weights' gradients come on top.
const SENSITIVITY_SHARE: f64 = 1.5;

/// What a run is foretold from.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) settings: &'a RunSettings,
    pub(crate) config: &'a ModelConfig,
    pub(crate) train: &'a Sample,
    pub(crate) eval: Option<&'a Sample>,
}

/// A run to be foretold.
pub(super) struct Foretold<'a> {
    settings: &'a RunSettings,
    config: &'a ModelConfig,
    train: &'a Sample,
    eval: Option<&'a Sample>,
    of: Estimator,
    /// How many layers go.
    count: usize,
    pruned: ModelConfig,
    collect: TrainSettings,
    /// How many steps are collected.
    collected: usize,
}

impl<'a> Foretold<'a> {
    pub(super) fn new(known: Known<'a>, of: Estimator) -> Result<Self> {
        let Known { settings, config, train, eval } = known;
        let count = match settings.prune {
            Share::Layers(0) => 0, // What fine-tuning alone would take.
            share => share.layers_of(config.num_layers)?,
        };
        let retained: Vec<usize> = (0..config.num_layers - count).collect();
        let pruned = config.with_layers(&retained)?;
        let collecting = settings.collecting();
        let mut collect = collecting.training.parse(FinetuneMethod::Lora, settings.seed)?;
        collect.restrict_to(config)?;
        let most = steps_of(&collect, train.count);
        let most = if settings.goes_on() { most.div_ceil(2) } else { most };
        let collected = collecting.steps.min(most);
        Ok(Self { settings, config, train, eval, of, count, pruned, collect, collected })
    }

    /// Every stage that takes time or room.
    pub(super) fn stages(&self) -> Result<Vec<StageEstimate>> {
        let mut stages = vec![self.collecting()];
        stages.extend(self.choosing());
        stages.extend(self.fitting());
        // All candidates are there until one is taken.
        let candidates = self.settings.criterion.criteria().len() as u64;
        let amounts = self.amounts().max(1) as u64;
        let disk_bytes = stored(&self.pruned).saturating_mul(candidates * amounts);
        stages.push(StageEstimate { disk_bytes, ..self.of.writing(Stage::Prune) });
        if self.settings.finetune != FinetuneMethod::None {
            self.tuning(&mut stages)?;
        }
        if let Some(eval) = self.eval {
            let subjects = [
                (Stage::EvaluateDense, self.dense()),
                (Stage::EvaluatePruned, Subject { config: &self.pruned, train: &self.collect }),
            ];
            stages.extend(subjects.map(|(stage, subject)| self.evaluating(stage, subject, eval)));
        }
        Ok(stages)
    }

    /// The dense model with the adapters of the collected steps.
    fn dense(&self) -> Subject<'_> {
        Subject { config: self.config, train: &self.collect }
    }

    fn collecting(&self) -> StageEstimate {
        let Self { of, train, collect, collected, .. } = self;
        let training =
            Training { subject: self.dense(), sample: train, steps: *collected, teaching: None };
        let mut found = of.training(Stage::Collect, training);
        found.disk_bytes = *collected as u64 * of.work(self.dense()).trained_parameters() * 4;
        let seen = collected * collect.batch_rows * collect.accumulate;
        let more = SENSITIVITY_SHARE * seen.min(SENSITIVITY_ROWS) as f64 / seen.max(1) as f64;
        found.flops *= 1.0 + more;
        found.seconds *= 1.0 + more;
        found
    }

    /// Passes by which layers are chosen, if they are chosen by losses.
    fn choosing(&self) -> Option<StageEstimate> {
        let choices = self.settings.choices();
        let by_losses = choices.iter().filter(|choice| choice.needs_losses());
        let rows = self.rows_looked_at();
        let of_row = self.train.tokens() / self.train.count.max(1) as f64;
        let all = (rows as f64 * of_row).max(1.0);
        let share = |tokens: Option<usize>| tokens.map_or(1.0, |most| (most as f64 / all).min(1.0));
        let count: f64 = by_losses
            .map(|choice| choice.criterion.passes(self.count) * share(choice.criterion.tokens()))
            .sum();
        let passes = Passes { rows, count };
        (count > 0.0 && self.count > 0).then(|| self.of.choosing(self.dense(), self.train, passes))
    }

    /// How many amounts of layers are tried at most; 0 if it is said how many go.
    fn amounts(&self) -> usize {
        self.settings.max_drop.map_or(0, |_| most_trials(self.count))
    }

    /// What the repair is fitted, once for each candidate of a race and each amount.
    fn fitting(&self) -> Option<StageEstimate> {
        let RunSettings { repair, linear_map, criterion, .. } = self.settings;
        let fitting = Fitting {
            tokens: linear_map.tokens_for(self.config.hidden_size),
            choices: criterion.criteria().len() * self.amounts().max(1),
            retrains: *repair == Repair::Reconstruct,
        };
        (repair.needs(RepairNeed::Fit) && self.count > 0)
            .then(|| self.of.fitting(self.dense(), self.train, fitting))
    }

    /// What candidates are told apart by, if there are some, and the trainings.
    fn tuning(&self, stages: &mut Vec<StageEstimate>) -> Result<()> {
        let Self { settings, of, train, pruned, config, .. } = self;
        let student = self.trained(pruned)?;
        let subject = Subject { config: pruned, train: &student };
        let steps = steps_of(&student, train.count).min(student.max_steps.unwrap_or(usize::MAX));
        let steps = steps.saturating_sub(if settings.goes_on() { self.collected } else { 0 });
        let teaching = self.teaching()?;
        let teaching = teaching.as_ref();
        let training = Training { subject, sample: train, steps, teaching };
        let rows = self.rows_looked_at();
        if settings.max_drop.is_some() {
            // As if nothing went: how much does is to be found. The one that is taken is the run's own.
            let whole = Subject { config, train: &student };
            let in_vain = steps * self.amounts().saturating_sub(1);
            let in_vain = Training { subject: whole, steps: in_vain, ..training };
            let mut found = of.training(Stage::Amount, in_vain);
            // Each stays as it is until one is taken.
            found.disk_bytes = of.state(whole).saturating_mul(self.amounts() as u64);
            let count = (self.amounts() + 1) as f64;
            found.add(&of.looking(whole, train, Passes { rows, count }));
            stages.push(found);
        }
        if settings.criterion.compares() && self.count > 0 {
            let race = RaceCost::of(&settings.criterion, steps);
            let mut found = of.training(Stage::Race, Training { steps: race.steps, ..training });
            let mut look = |rows, count: usize| {
                found.add(&of.looking(subject, train, Passes { rows, count: count as f64 }));
            };
            look(rows.min(race.until.most_rows()), race.trials);
            // The winner once more, a quarter of its training in; that it has not collapsed is hoped.
            if settings.criterion == Choosing::Auto {
                look(rows, 1);
            }
            stages.push(found);
        }
        let mut found = of.training(Stage::Finetune, training);
        if watches(settings, train, steps) {
            found.add(&of.looking(subject, train, Passes { rows, count: 1.0 }));
        }
        if let Some(looks) = self.looks(steps) {
            found.add(&of.looking(subject, train, Passes { rows, count: looks }));
        }
        found.disk_bytes = self.left_by(subject, settings.save_merged);
        stages.push(found);
        let dense = self.trained(config)?;
        let dense = Subject { config, train: &dense };
        if settings.tunes_dense() || self.dense_teaches() {
            let training = Training { subject: dense, teaching: None, ..training };
            let disk_bytes = self.left_by(dense, false);
            let mut found = of.training(Stage::DenseFinetune, training);
            if let Some(looks) = self.looks(steps) {
                found.add(&of.looking(dense, train, Passes { rows, count: looks }));
            }
            stages.push(StageEstimate { disk_bytes, ..found });
        }
        if let Some(eval) = self.eval {
            stages.push(self.evaluating(Stage::EvaluateTuned, subject, eval));
            if settings.tunes_dense() {
                stages.push(self.evaluating(Stage::EvaluateDenseTuned, dense, eval));
            }
        }
        Ok(())
    }

    fn evaluating(&self, stage: Stage, subject: Subject<'_>, eval: &Sample) -> StageEstimate {
        let evaluation = &self.settings.evaluation;
        let mut found = self.of.evaluating(stage, subject, eval, evaluation.batch_tokens);
        if !eval.has_choices() {
            // Replies are taken to be as long as those of the rows.
            let reply = (eval.labelled() as f64 / eval.examples.len().max(1) as f64)
                .min(evaluation.max_new_tokens as f64);
            let replies = evaluation.generate_rows.min(eval.count) as f64;
            found.seconds += self.of.generating(subject, replies * reply);
        }
        found
    }

    /// How often a training of so many steps looks at the rows held out, if it does.
    fn looks(&self, steps: usize) -> Option<f64> {
        let validation = self.settings.training.validation?;
        Some(steps.div_ceil(validation.every) as f64)
    }

    /// Bytes that a training leaves.
    fn left_by(&self, subject: Subject<'_>, merged: bool) -> u64 {
        let checkpoint = stored(subject.config);
        if self.settings.finetune.trains_weights() {
            return checkpoint;
        }
        let adapter = self.of.work(subject).trained_parameters() * 4;
        adapter + if merged { checkpoint } else { 0 }
    }

    /// Rows that layers are chosen by and that models are looked at on: those held out, or a few of those to train on.
    fn rows_looked_at(&self) -> usize {
        match self.settings.held_out() {
            Some(share) => share.beside(self.train.count),
            None => LOSS_ROWS.min(self.train.count),
        }
    }

    /// Whether the dense model is fine-tuned to teach.
    fn dense_teaches(&self) -> bool {
        let training = &self.settings.training;
        training.distil.is_some() && training.teacher.is_none()
    }

    fn teaching(&self) -> Result<Option<Teaching>> {
        let RunSettings { training, finetune, model, seed, .. } = self.settings;
        let Some(distil) = training.distil else { return Ok(None) };
        let by_lora = *finetune == FinetuneMethod::Lora;
        let (config, train, is_dense) = match &training.teacher {
            None => (self.config.clone(), by_lora.then(|| self.trained(self.config)), true),
            Some(TeacherSettings { model: name, adapter }) => {
                let config = ModelConfig::read(&locate_configuration(name)?)?;
                // Its adapter is taken to be like the student's.
                let alike = TrainingSettings { lora_layers: None, ..training.clone() };
                let train = adapter.is_some().then(|| {
                    let mut train = alike.parse(FinetuneMethod::Lora, *seed)?;
                    train.restrict_to(&config)?;
                    Ok(train)
                });
                (config, train, name == model)
            }
        };
        let adapter_bytes = train.transpose()?.map_or(0, |train| {
            self.of.work(Subject { config: &config, train: &train }).trained_parameters() * 8
        });
        Ok(Some(Teaching { config, adapter_bytes, distil, shares: by_lora && is_dense }))
    }

    /// How a model will be trained. Which layers are beside cuts and which have the highest scores is not known before: those
    /// that train in full are assumed at the top and adapters at the bottom, which takes gradients the whole way.
    fn trained(&self, config: &ModelConfig) -> Result<TrainSettings> {
        let RunSettings { training, finetune, seed, .. } = self.settings;
        let layers = config.num_layers;
        let full = match finetune {
            FinetuneMethod::LoraAndCuts => {
                let runs = RUNS.min(self.config.num_layers.saturating_sub(layers));
                (2 * runs).min(layers.saturating_sub(1))
            }
            _ => 0,
        };
        let first_full = layers - full;
        let mut training = training.clone();
        if training.lora_layers == Some(LoraLayers::Auto) {
            let half = (0..first_full.div_ceil(2)).collect();
            training.lora_layers = Some(LoraLayers::These(half));
        }
        let mut train = training.parse(*finetune, *seed)?;
        train.restrict_to(config)?;
        if full > 0
            && let Method::Lora(lora) = train.method
        {
            let full = (first_full..layers).collect();
            train.method = Method::LoraAndLayers(LoraAndLayers { lora, full });
        }
        Ok(train)
    }
}

/// What telling candidates apart takes beyond the winner's own training, where all chose other layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RaceCost {
    /// Steps that the losers have trained.
    steps: usize,
    /// How often a candidate is looked at.
    trials: usize,
    /// When it is.
    until: Until,
}

impl RaceCost {
    fn of(choosing: &Choosing, steps: usize) -> Self {
        let mut running = choosing.criteria().len();
        if !choosing.races() {
            return Self { steps: 0, trials: running, until: Until::Start };
        }
        let until = Until::Round(1);
        let round = until.step(0, steps);
        let (mut rounds, mut trials) = (0, 0);
        while running > 1 {
            rounds += 1;
            trials += running;
            running = running.div_ceil(2);
        }
        Self { steps: (trials - rounds) * round, trials, until }
    }
}

/// Bytes of a checkpoint.
fn stored(config: &ModelConfig) -> u64 {
    config.parameters() * config.dtype.unwrap_or(Dtype::BF16).size() as u64
}

/// How many steps a schedule spans.
fn steps_of(train: &TrainSettings, rows: usize) -> usize {
    let batch = (train.batch_rows * train.accumulate).max(1);
    ((train.epochs * rows.div_ceil(batch) as f64).round() as usize).max(1)
}
