//! A fine-tuning that looks at rows held out as it goes, keeps the best weights, and may stop early.

use std::path::{Path, PathBuf};

use ::finetune::{EvalRows, FinetuneError, KeptStep, TrainReport, Trainer};
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
/// If no rows are held out or they have nothing to predict, training fails, the model overflows before a look was good, or the disk
/// refuses.
pub(super) fn train_validated(
    context: StageContext<'_>,
    training: &TrainingSettings,
    settings: ValidationSettings,
    (trainer, saves): (&mut Trainer, &Path),
    log: &mut Log<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<TrainReport> {
    let saved = trainer.saved_step(saves)?;
    let state = (saves, saved.unwrap_or(0));
    let mut validation = Validation::open(context, training, state, trainer.writes())?;
    let last = trainer.total_steps();
    let mut step = saved.unwrap_or(0).max(trainer.steps_done());
    let (mut report, mut diverged) = (None::<TrainReport>, false);
    while let Some(until) = settings.next(step, &validation.looks, last) {
        let part = match take(trainer, until, saves, log, observe) {
            // What was good before is still there.
            Err(PipelineError::Finetune(
                error @ (FinetuneError::NotFinite { .. } | FinetuneError::NotFiniteWeight { .. }),
            )) if validation.has_good() => {
                if trainer.writes() {
                    tracing::warn!(
                        "{error}. The training ends here, with the weights that were best on the rows held out"
                    );
                }
                diverged = true;
                break;
            }
            part => part?,
        };
        report = Some(match report {
            Some(before) => before.followed_by(part),
            None => part,
        });
        step = trainer.steps_done();
        validation.look(trainer, log, observe)?;
    }
    let mut report = match report {
        Some(report) => report,
        // Nothing of this state is to be saved.
        None if diverged => trainer.run_until(trainer.steps_done(), None, &mut |_| {})?,
        // A process before this one took all the steps: its state is taken up.
        None => take(trainer, step, saves, log, observe)?,
    };
    let kept = match trainer.writes() {
        true => trainer.take_weights(&validation.best)?,
        false => best(&validation.looks).map_or(0, |at| validation.looks[at].step),
    };
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
    /// whose state is gone; the process that writes removes them.
    fn open(
        context: StageContext<'_>,
        training: &TrainingSettings,
        (saves, step): (&Path, usize),
        writes: bool,
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
            if writes {
                remove_if_there(&lines)?;
                remove_if_there(&best)?;
            }
        }
        Ok(Self { rows, lines, best, looks })
    }

    /// Whether any look found a finite loss.
    fn has_good(&self) -> bool {
        self.looks.iter().any(|look| look.loss.is_some())
    }

    /// Looks at the model as it is, and keeps its weights if they are the best so far.
    fn look(
        &mut self,
        trainer: &Trainer,
        log: &mut Log<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (total, step) = (self.rows.len(), trainer.steps_done());
        let found = trainer.standing(&self.rows, BATCH_TOKENS, &mut |done| {
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
        if trial.loss.is_none() && !self.has_good() {
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
        if trainer.writes() {
            let lines = self.looks.iter().map(|look| format!("{}\n", serde_json::json!(look)));
            Staging::write(&self.lines, lines.collect::<String>().as_bytes())?;
        }
        observe(Event::Validated { trial, is_best });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::tests::{run_settings, training_settings};
    use crate::log::LogTargets;
    use crate::stage::{EncodedRows, FinetuneSettings, FinetuneTarget, finetune_model};
    use crate::{FinetuneMethod, HeldOut, Stage};

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

    /// A training that overflows after a good look ends there, with the weights that were best then.
    #[test]
    fn what_was_good_is_kept_where_a_training_overflows() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        testkit::tiny_checkpoint(&at("model"));
        fs_err::write(at("train.jsonl"), testkit::tiny_rows(0..24)).unwrap();
        let (compute, encoded) = (run_settings().compute, EncodedRows::default());
        let (model, data) = (at("model"), at("train.jsonl"));
        let context = StageContext {
            model: &model,
            data: &data,
            ignored: &[],
            held_out: Some(HeldOut::Rows(4)),
            compute: &compute,
            seed: 0,
            encoded: &encoded,
        };
        let train = |every, max_steps, out: &str| {
            // The rate of the first step is 0, those after it break the weights.
            let training = TrainingSettings {
                learning_rate: 1e30,
                warmup: 0.1,
                epochs: 8.0,
                max_steps,
                validation: Some(ValidationSettings { every, patience: None }),
                ..training_settings()
            };
            let settings = FinetuneSettings {
                method: FinetuneMethod::Full,
                training: &training,
                teacher: None,
                cut: None,
            };
            let target = FinetuneTarget {
                target: at(out),
                merged: None,
                saves: at(&format!("{out}.state")),
                from: None,
                shard_bytes: 1 << 30,
                log: LogTargets::default(),
                stage: Stage::Finetune,
                group: None,
            };
            finetune_model(context, settings, &target, &mut |event| {
                // As it is left by a process that is killed there.
                if let Event::Validated { trial, .. } = event
                    && trial.step == 1
                    && out == "out"
                {
                    testkit::copy_folder(&at("out.state"), &at("resumed.state"));
                }
            })
        };
        let report = train(1, None, "out").unwrap();
        let kept = report.kept.unwrap();
        assert_eq!((kept.step, kept.stopped_early), (1, true));
        train(1, Some(1), "short").unwrap();
        let weights = |out: &str| fs_err::read(at(out).join("model.safetensors")).unwrap();
        assert!(weights("out") == weights("short") && !at("out.state").exists());
        let report = train(1, None, "resumed").unwrap();
        assert_eq!(report.kept.unwrap().step, 1);
        assert!(weights("resumed") == weights("short"));
        // Before anything was looked at, there is nothing to keep.
        let error = train(1000, None, "none").unwrap_err();
        assert!(
            matches!(error, PipelineError::Finetune(FinetuneError::NotFinite { .. })),
            "{error}"
        );
        assert!(!at("none").exists());
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
