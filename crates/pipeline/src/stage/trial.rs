//! A part of a fine-tuning, and how good the model is by then.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use ::finetune::{Continuation, EvalRows, FinetuneError, Standing, standing};
use dataset::{Row, Sampler};
use metrics::Interval;
use serde::{Deserialize, Serialize};

use super::finetune::trainer;
use super::{FinetuneSettings, StageContext};
use crate::log::{Log, LogTargets};
use crate::{EvaluationSettings, Event, HeldOut, Result, Stage};

/// How far a trial goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// Its beginning: nothing is trained.
    Start,
    /// The end of a round of a race, counted from 1: an eighteenth of the training each, of four to twelve steps.
    Round(usize),
    /// A quarter of the training.
    Quarter,
    /// All of it.
    End,
}

/// Rounds that a long enough training has at least, if all were run.
const ROUNDS: usize = 18;
/// Steps of a round: after fewer nothing can be told, and more say little else.
const ROUND_STEPS: RangeInclusive<usize> = 4..=12;
/// Rows that a round is judged by at most. All candidates are judged by the same ones, so fewer do than for an
/// accuracy.
const ROUND_ROWS: usize = 64;

impl Until {
    /// The step it ends after, of a training that takes the steps after `first` up to `last`.
    pub(crate) fn step(self, first: usize, last: usize) -> usize {
        let all = last.saturating_sub(first);
        let taken = match self {
            Self::Start => 0,
            Self::Round(number) => {
                number * (all / ROUNDS).clamp(*ROUND_STEPS.start(), *ROUND_STEPS.end())
            }
            Self::Quarter => all.div_ceil(4),
            Self::End => all,
        };
        first + taken.min(all)
    }

    /// How many rows a model is looked at with then, at most.
    pub(crate) fn most_rows(self) -> usize {
        match self {
            Self::Round(_) => ROUND_ROWS,
            Self::Start | Self::Quarter | Self::End => usize::MAX,
        }
    }
}

/// Where a trial goes on from and what it leaves.
#[derive(Debug, Clone)]
pub struct TrialTarget<'a> {
    /// Folder of the training's state, to go on from and to leave, if there is anything to leave.
    pub saves: Option<PathBuf>,
    /// What the training goes on from, if it does not begin.
    pub from: Option<Continuation>,
    /// How far it goes.
    pub until: Until,
    /// How the model is evaluated then.
    pub evaluation: &'a EvaluationSettings,
    /// The stage they are logged under.
    pub stage: Stage,
    /// Where its steps are logged.
    pub log: LogTargets<'a>,
}

/// How good a model is in the middle of its training, on rows held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Steps behind it.
    pub step: usize,
    /// Mean loss of the assistant's tokens; `None` if it is not finite.
    pub loss: Option<f64>,
    /// Accuracy, of rows with choices.
    pub acc: Option<f64>,
    /// Its 95 % interval.
    pub acc_interval: Option<Interval>,
    /// What always giving the most frequent answer would get.
    pub majority: Option<f64>,
}

impl Trial {
    pub(super) fn new(step: usize, standing: Standing) -> Self {
        let Standing { acc, acc_interval, majority, loss, .. } = standing;
        Self { step, loss: loss.filter(|loss| loss.is_finite()), acc, acc_interval, majority }
    }

    /// Of a model whose numbers are no longer finite.
    pub(super) fn lost(step: usize) -> Self {
        Self { step, loss: None, acc: None, acc_interval: None, majority: None }
    }

    /// What is compared: the loss, infinite if it is not finite.
    pub(crate) fn rank(&self) -> f64 {
        self.loss.unwrap_or(f64::INFINITY)
    }

    /// Whether its accuracy may be no better than that of always giving the most frequent answer.
    pub fn has_collapsed(&self) -> bool {
        let found = self.acc_interval.zip(self.majority);
        found.is_some_and(|(accuracy, majority)| accuracy.low <= majority)
    }
}

/// Trains a model's folder for a part of its training, and evaluates it on the rows held out; if none are, on 128 of
/// those to train on.
///
/// # Errors
///
/// If the model, the data or the settings cannot be used, training fails, or the disk refuses.
pub fn trial(
    context: StageContext<'_>,
    settings: FinetuneSettings<'_>,
    target: &TrialTarget<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<Trial> {
    let mut trainer = trainer(context, settings, target.from.as_ref(), observe)?;
    let until = target.until.step(trainer.steps_done(), trainer.total_steps());
    // A state from further on says nothing of here: the steps are taken again, and that state is left alone.
    let saves = target.saves.as_deref();
    let saved = saves.map(|saves| trainer.saved_step(saves)).transpose()?.flatten();
    let is_beyond = saved.is_some_and(|step| step > until);
    let mut log =
        Log::new(if is_beyond { LogTargets::default() } else { target.log }, target.stage);
    let trained = trainer.run_until(until, saves.filter(|_| !is_beyond), &mut |metrics| {
        log.add(metrics);
        observe(Event::Step(*metrics));
    });
    log.finish()?;
    let step = trainer.steps_done();
    match trained {
        Ok(_) => {}
        Err(FinetuneError::NotFinite { .. }) => return Ok(Trial::lost(step)),
        Err(error) => return Err(error.into()),
    }
    let encoder = context.encoder()?;
    let mut rows = rows_to_try(context)?;
    rows.truncate(target.until.most_rows());
    let total = rows.len();
    let rows = EvalRows::encode(&encoder, &rows, target.evaluation.max_tokens)?;
    let found = standing(trainer.model(), &rows, target.evaluation.batch_tokens, &mut |done| {
        observe(Event::Rows { done: done.min(total), total });
    });
    match found {
        Ok(found) => Ok(Trial::new(step, found)),
        Err(FinetuneError::NotANumber) => Ok(Trial::lost(step)),
        Err(error) => Err(error.into()),
    }
}

fn rows_to_try(context: StageContext<'_>) -> Result<Vec<Row>> {
    let (train, held_out) = context.rows()?;
    if !held_out.is_empty() {
        return Ok(held_out);
    }
    let order = Sampler::new(train.len(), train.len(), context.seed).epoch(usize::MAX);
    let mut rows: Vec<Option<Row>> = train.into_iter().map(Some).collect();
    Ok(order.into_iter().take(HeldOut::MOST).filter_map(|row| rows[row].take()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_short_and_end() {
        let steps = |until: Until, first, last| until.step(first, last);
        // 107 steps after 40: rounds of 5.
        assert_eq!([1, 2, 3].map(|round| steps(Until::Round(round), 40, 147)), [45, 50, 55]);
        assert_eq!([Until::Start, Until::Quarter].map(|until| steps(until, 40, 147)), [40, 67]);
        // Twelve steps at most, four at least, and never beyond the last.
        assert_eq!(steps(Until::Round(1), 0, 10_000), 12);
        assert_eq!([1, 2, 3].map(|round| steps(Until::Round(round), 3, 12)), [7, 11, 12]);
        assert_eq!(steps(Until::Quarter, 5, 5), 5);
    }

    #[test]
    fn collapse_is_an_interval_that_holds_the_majority() {
        let trial = |low, majority| Trial {
            step: 1,
            loss: None,
            acc: Some(0.6),
            acc_interval: Some(Interval { low, high: 0.7 }),
            majority,
        };
        assert!(trial(0.5, Some(0.55)).has_collapsed());
        assert!(!trial(0.56, Some(0.55)).has_collapsed() && !trial(0.5, None).has_collapsed());
        assert_eq!(trial(0.5, None).rank(), f64::INFINITY);
    }
}
