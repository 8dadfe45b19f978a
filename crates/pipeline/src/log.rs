//! `metrics.jsonl`: a line for every optimizer step of a run; and event files, if wanted.

use std::io::Write;
use std::path::Path;

use finetune::StepMetrics;
use serde::{Deserialize, Serialize};

use crate::tensorboard::EventFile;
use crate::{Result, Stage};

/// A line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoggedStep {
    /// The stage that took the step.
    pub stage: Stage,
    /// What the step did.
    #[serde(flatten)]
    pub metrics: StepMetrics,
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
        if self.failed.is_ok() {
            self.failed = self.write(metrics);
        }
    }

    /// The first failure to write, if there was one.
    pub(crate) fn finish(self) -> Result<()> {
        self.failed
    }

    fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        if let Some(path) = self.to.lines {
            let mut file = match self.lines.take() {
                Some(file) => file,
                None => self.begin_at(path, metrics.step)?,
            };
            let line = LoggedStep { stage: self.stage, metrics: *metrics };
            writeln!(file, "{}", serde_json::json!(line))?;
            self.lines = Some(file);
        }
        if let Some(folder) = self.to.events {
            let mut events = match self.events.take() {
                Some(events) => events,
                None => EventFile::create(folder, self.stage)?,
            };
            events.add(metrics)?;
            self.events = Some(events);
        }
        Ok(())
    }

    /// Rewrites the file without this stage's lines from `step` on, and opens it to append.
    fn begin_at(&self, path: &Path, step: usize) -> Result<fs_err::File> {
        let kept = read_steps(path)?
            .into_iter()
            .filter(|line| line.stage != self.stage || line.metrics.step < step);
        let text: String = kept.map(|line| format!("{}\n", serde_json::json!(line))).collect();
        fs_err::write(path, text)?;
        Ok(fs_err::OpenOptions::new().append(true).open(path)?)
    }
}

/// Logs the steps of another log as a stage's, once however often it is done.
pub(crate) fn replay(from: &Path, to: LogTargets<'_>, stage: Stage) -> Result<()> {
    let mut log = Log::new(to, stage);
    for step in read_steps(from)? {
        log.add(&step.metrics);
    }
    log.finish()
}

/// The steps in `metrics.jsonl` so far, none if there is no such file; a line that was cut off by an interruption is left
/// out.
///
/// # Errors
///
/// If the file cannot be read.
pub fn read_steps(path: &Path) -> Result<Vec<LoggedStep>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs_err::read_to_string(path)?;
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
        add(Stage::Finetune, 2..=4);
        let found: Vec<_> =
            read_steps(&path).unwrap().iter().map(|line| (line.stage, line.metrics.step)).collect();
        let (c, f) = (Stage::Collect, Stage::Finetune);
        assert_eq!(found, [(c, 1), (c, 2), (f, 1), (f, 2), (f, 3), (f, 4)]);
    }
}
