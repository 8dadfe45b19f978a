//! A fine-tuning that looks at rows held out as it goes, keeps the best weights, and may stop early.

use std::path::{Path, PathBuf};

use ::finetune::{EvalRows, FinetuneError, KeptStep, TrainReport, Trainer, standing};
use checkpoint::{Staging, remove_if_there};
use serde::{Deserialize, Serialize};

use super::trial::Trial;
use super::{BATCH_TOKENS, StageContext};
use crate::log::{Log, json_lines};
use crate::{Event, PipelineError, Result, TrainingSettings};

/// When a training looks at the rows held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSettings {
    /// After so many steps each, and after the last; at least one.
    pub every: usize,
    /// Stop after so many looks in a row that found no smaller loss; `None` to take all steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
}

impl ValidationSettings {
    /// The step after which the next look is due, of a training that has taken `step` and whose last look was after
    /// `seen`; `None` if it has had its last.
    fn next(self, step: usize, looks: &[Trial], last: usize) -> Option<usize> {
        let seen = looks.last().map(|look| look.step);
        // A state may be from beyond the last step, where fewer are taken than before.
        if seen.is_some_and(|seen| seen >= last) || self.is_out_of_patience(looks) {
            return None;
        }
        let from = step.max(seen.map_or(1, |seen| seen + 1));
        Some(from.next_multiple_of(self.every).min(last))
    }

    fn is_out_of_patience(self, looks: &[Trial]) -> bool {
        let since = best(looks).map_or(0, |at| looks.len() - 1 - at);
        self.patience.is_some_and(|patience| since >= patience)
    }
}

/// Which look found the smallest loss, the first of several.
fn best(looks: &[Trial]) -> Option<usize> {
    (0..looks.len()).min_by(|&i, &j| looks[i].rank().total_cmp(&looks[j].rank()))
}

/// The looks at a training so far, kept in the folder of its state.
struct Validation {
    rows: EvalRows,
    /// A line a look.
    lines: PathBuf,
    /// The weights of the best.
    best: PathBuf,
    looks: Vec<Trial>,
}

/// Takes a training's remaining steps and leaves the model with the weights that had the smallest loss on the rows held
/// out. Interrupted, it goes on as if it never was.
///
/// # Errors
///
/// If no rows are held out or they have nothing to predict, training fails, the model overflows, or the disk refuses.
pub(super) fn train_validated(
    context: StageContext<'_>,
    training: &TrainingSettings,
    settings: ValidationSettings,
    (trainer, saves): (&mut Trainer, &Path),
    log: &mut Log<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<TrainReport> {
    let saved = trainer.saved_step(saves)?;
    let mut validation = Validation::open(context, training, (saves, saved.unwrap_or(0)))?;
    let last = trainer.total_steps();
    let mut step = saved.unwrap_or(0).max(trainer.steps_done());
    let mut report: Option<TrainReport> = None;
    while let Some(until) = settings.next(step, &validation.looks, last) {
        let part = take(trainer, until, saves, log, observe)?;
        report = Some(match report {
            Some(before) => before.followed_by(part),
            None => part,
        });
        step = trainer.steps_done();
        validation.look(trainer, log, observe)?;
    }
    let mut report = match report {
        Some(report) => report,
        // A process before this one took all the steps: its state is taken up.
        None => take(trainer, step, saves, log, observe)?,
    };
    let kept = trainer.take_weights(&validation.best)?;
    let look = validation.looks.iter().find(|look| look.step == kept);
    report.kept = look.map(|look| KeptStep {
        step: kept,
        loss: look.rank(),
        acc: look.acc,
        stopped_early: step < last,
    });
    Ok(report)
}

fn take(
    trainer: &mut Trainer,
    until: usize,
    saves: &Path,
    log: &mut Log<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<TrainReport> {
    Ok(trainer.run_until(until, Some(saves), &mut |metrics| {
        log.add(metrics);
        observe(Event::Step(*metrics));
    })?)
}

impl Validation {
    /// The looks at a training that has taken so many steps by its state in a folder. Later ones are another training's,
    /// whose state is gone.
    fn open(
        context: StageContext<'_>,
        training: &TrainingSettings,
        (saves, step): (&Path, usize),
    ) -> Result<Self> {
        let (_, held_out) = context.rows()?;
        let rows = EvalRows::encode(&*context.encoder()?, &held_out, training.max_tokens)?;
        if rows.is_empty() {
            let what = "no rows are held out, and a training looks at those as it goes: hold some out by --choose";
            return Err(PipelineError::Settings(what.into()));
        }
        let (lines, best) = (saves.join("looks.jsonl"), saves.join("best"));
        let mut looks: Vec<Trial> = json_lines(&lines)?;
        if looks.last().is_some_and(|look| look.step > step) {
            looks.clear();
            remove_if_there(&lines)?;
            remove_if_there(&best)?;
        }
        Ok(Self { rows, lines, best, looks })
    }

    /// Looks at the model as it is, and keeps its weights if they are the best so far.
    fn look(
        &mut self,
        trainer: &Trainer,
        log: &mut Log<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (total, step) = (self.rows.len(), trainer.steps_done());
        let found = standing(trainer.model(), &self.rows, BATCH_TOKENS, &mut |done| {
            observe(Event::Rows { done: done.min(total), total });
        });
        let trial = match found {
            Ok(found) => Trial::new(step, found),
            Err(FinetuneError::NotANumber) => Trial::lost(step),
            // The state is saved.
            Err(FinetuneError::StoppedUnsaved) => {
                return Err(FinetuneError::Stopped { step }.into());
            }
            Err(error) => return Err(error.into()),
        };
        // After a good look a lost one is only the worst.
        if trial.loss.is_none() && self.looks.iter().all(|look| look.loss.is_none()) {
            let what = format!(
                "after step {step} the loss on the rows held out by --choose is not a number: too few tokens of them are \
                 the assistant's, or the learning rate is too high"
            );
            return Err(PipelineError::Settings(what));
        }
        self.looks.push(trial);
        let is_best = best(&self.looks) == Some(self.looks.len() - 1);
        // Before the line that ends the look: killed before that, it is looked at again.
        if is_best {
            trainer.keep_weights(&self.best)?;
        }
        log.look(&trial);
        let lines = self.looks.iter().map(|look| format!("{}\n", serde_json::json!(look)));
        Staging::write(&self.lines, lines.collect::<String>().as_bytes())?;
        observe(Event::Validated { trial, is_best });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(losses: &[(usize, f64)]) -> Vec<Trial> {
        let look = |&(step, loss): &(usize, f64)| Trial {
            step,
            loss: Some(loss),
            acc: None,
            acc_interval: None,
            majority: None,
        };
        losses.iter().map(look).collect()
    }

    /// At multiples, after the last step, and again where a process was killed before it had looked.
    #[test]
    fn looks_come_at_multiples_and_at_the_end() {
        let every = ValidationSettings { every: 10, patience: None };
        let check = |step, seen: &[(usize, f64)], expected| {
            assert_eq!(every.next(step, &looks(seen), 25), expected, "{step} {seen:?}");
        };
        check(0, &[], Some(10));
        check(7, &[], Some(10));
        check(10, &[], Some(10));
        check(10, &[(10, 1.0)], Some(20));
        check(23, &[(10, 1.0), (20, 0.9)], Some(25));
        check(25, &[(20, 0.9)], Some(25));
        check(25, &[(20, 0.9), (25, 0.9)], None);
        check(40, &[(30, 0.9), (40, 0.9)], None);
    }

    #[test]
    fn patience_ends_after_so_many_looks_without_a_smaller_loss() {
        let patient = |count| ValidationSettings { every: 1, patience: Some(count) };
        let seen = looks(&[(1, 1.0), (2, 0.8), (3, 0.8), (4, 0.9)]);
        assert_eq!(best(&seen), Some(1));
        assert_eq!(patient(3).next(4, &seen, 9), Some(5));
        assert_eq!(patient(2).next(4, &seen, 9), None);
        assert_eq!(patient(2).next(3, &seen[..3], 9), Some(4));
    }
}
