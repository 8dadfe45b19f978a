//! `metrics.jsonl`: a line for every optimizer step of a run and every look at rows held out; and event files, if
//! wanted.

use std::io::Write;
use std::path::Path;

use checkpoint::Staging;
use finetune::StepMetrics;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tensorboard::EventFile;
use crate::{Result, Stage, Trial};

/// A line of the file for a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoggedStep {
    /// The stage that took the step.
    pub stage: Stage,
    /// What the step did.
    #[serde(flatten)]
    pub metrics: StepMetrics,
}

/// A line of the file for a look at the rows held out, under the names of the Trainer's log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoggedLook {
    /// The stage that looked.
    pub stage: Stage,
    /// The step it had taken by then.
    pub step: usize,
    /// Mean loss of the assistant's tokens.
    pub eval_loss: f64,
    /// Accuracy, of rows with choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f64>,
}

/// Either.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogLine {
    /// A step.
    Step(LoggedStep),
    /// A look at the rows held out.
    Look(LoggedLook),
}

impl LogLine {
    fn stage(&self) -> Stage {
        match self {
            Self::Step(line) => line.stage,
            Self::Look(line) => line.stage,
        }
    }

    /// Its place among the lines of its stage.
    fn place(&self) -> (usize, bool) {
        match self {
            Self::Step(line) => (line.metrics.step, false),
            Self::Look(line) => (line.step, true),
        }
    }

    /// The step, if it is one.
    pub fn step(self) -> Option<LoggedStep> {
        match self {
            Self::Step(line) => Some(line),
            Self::Look(_) => None,
        }
    }

    /// The look, if it is one.
    pub fn look(self) -> Option<LoggedLook> {
        match self {
            Self::Look(line) => Some(line),
            Self::Step(_) => None,
        }
    }
}

/// Appends a stage's steps.
///
/// A stage that goes on after an interruption may take steps again; their old lines go first.
pub(crate) struct Log<'a> {
    to: LogTargets<'a>,
    stage: Stage,
    lines: Option<fs_err::File>,
    events: Option<EventFile>,
    /// The first failure; nothing is written after it.
    failed: Result<()>,
}

/// Where a stage's steps go.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogTargets<'a> {
    /// File for a line a step.
    pub lines: Option<&'a Path>,
    /// Folder for `TensorBoard`'s event files.
    pub events: Option<&'a Path>,
}

impl<'a> Log<'a> {
    pub(crate) fn new(to: LogTargets<'a>, stage: Stage) -> Self {
        Self { to, stage, lines: None, events: None, failed: Ok(()) }
    }

    /// Writes a step's line; what fails is told by [`Log::finish`].
    pub(crate) fn add(&mut self, metrics: &StepMetrics) {
        self.add_line(LogLine::Step(LoggedStep { stage: self.stage, metrics: *metrics }));
    }

    /// As [`Log::add`], of a look at the rows held out.
    pub(crate) fn look(&mut self, found: &Trial) {
        let Trial { step, loss, acc, .. } = *found;
        let (stage, eval_accuracy) = (self.stage, acc);
        if let Some(eval_loss) = loss {
            self.add_line(LogLine::Look(LoggedLook { stage, step, eval_loss, eval_accuracy }));
        }
    }

    fn add_line(&mut self, line: LogLine) {
        if self.failed.is_ok() {
            self.failed = self.write(&line);
        }
    }

    /// The first failure to write, if there was one.
    pub(crate) fn finish(self) -> Result<()> {
        self.failed
    }

    fn write(&mut self, line: &LogLine) -> Result<()> {
        if let Some(path) = self.to.lines {
            let mut file = match self.lines.take() {
                Some(file) => file,
                None => self.begin_at(path, line.place())?,
            };
            writeln!(file, "{}", serde_json::json!(line))?;
            self.lines = Some(file);
        }
        if let Some(folder) = self.to.events {
            let mut events = match self.events.take() {
                Some(events) => events,
                None => EventFile::create(folder, self.stage)?,
            };
            events.add(line)?;
            self.events = Some(events);
        }
        Ok(())
    }

    /// Rewrites the file without this stage's lines from a place on, and opens it to append.
    fn begin_at(&self, path: &Path, place: (usize, bool)) -> Result<fs_err::File> {
        let kept = read_log(path)?
            .into_iter()
            .filter(|line| line.stage() != self.stage || line.place() < place);
        let text: String = kept.map(|line| format!("{}\n", serde_json::json!(line))).collect();
        Staging::write(path, text.as_bytes())?;
        Ok(fs_err::OpenOptions::new().append(true).open(path)?)
    }
}

/// Logs the steps of another log as a stage's, once however often it is done.
pub(crate) fn replay(from: &Path, to: LogTargets<'_>, stage: Stage) -> Result<()> {
    let mut log = Log::new(to, stage);
    for step in read_log(from)?.into_iter().filter_map(LogLine::step) {
        log.add(&step.metrics);
    }
    log.finish()
}

/// The lines of `metrics.jsonl` so far, none if there is no such file; one that was cut off by an interruption is left out.
///
/// # Errors
///
/// If the file cannot be read.
pub fn read_log(path: &Path) -> Result<Vec<LogLine>> {
    json_lines(path)
}

/// A value a line, none if there is no such file; a line that was cut off is left out.
pub(crate) fn json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = match fs_err::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use checkpoint::StepReport;

    use super::*;

    #[test]
    fn steps_taken_again_stand_once() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("metrics.jsonl");
        let add = |stage, steps: std::ops::RangeInclusive<usize>| {
            let mut log = Log::new(LogTargets { lines: Some(&path), events: None }, stage);
            for step in steps {
                let report =
                    StepReport { loss: 0.5, grad_norm: 1.0, learning_rate: 0.1, tokens: 9 };
                log.add(&StepMetrics {
                    step,
                    total_steps: 9,
                    report,
                    seconds: 0.1,
                    hook_seconds: 0.0,
                    distil: None,
                });
            }
        };
        add(Stage::Collect, 1..=2);
        add(Stage::Finetune, 1..=3);
        let look = |step, loss| {
            let mut log =
                Log::new(LogTargets { lines: Some(&path), events: None }, Stage::Finetune);
            let (acc_interval, majority) = (None, None);
            log.look(&Trial { step, loss: Some(loss), acc: Some(0.5), acc_interval, majority });
        };
        look(3, 0.7);
        look(3, 0.6);
        add(Stage::Finetune, 2..=4);
        look(2, 0.9);
        add(Stage::Finetune, 3..=4);
        let found: Vec<_> = read_log(&path)
            .unwrap()
            .iter()
            .map(|line| (line.stage(), line.place().0, line.look().map(|look| look.eval_loss)))
            .collect();
        let (c, f) = (Stage::Collect, Stage::Finetune);
        let looked = (f, 2, Some(0.9));
        let step = |stage, step| (stage, step, None);
        assert_eq!(
            found,
            [step(c, 1), step(c, 2), step(f, 1), step(f, 2), looked, step(f, 3), step(f, 4)]
        );
    }
}
