//! Many ways to prune one model, side by side on the same rows.
//!
//! A cell is a ratio, a criterion, a repair, a training and a seed. Cells share what they have in common: each result lies in
//! one store under the digest of its recipe, so that cells which end in the same plan are computed once, a further
//! cell costs only itself, and a comparison that was killed goes on.

mod cell;
mod inputs;
mod models;
mod needs;
mod runner;
mod settings;

use std::path::Path;
use std::time::Instant;

use ::finetune::ComputeChoice;
use checkpoint::Staging;
use selection::SelectionError;
use serde::{Deserialize, Serialize};

pub use cell::{Cell, CellResult, EvaluatedOn, TriedRate, Way};
pub use needs::ComparisonNeeds;
pub use settings::CompareSettings;

use self::models::LeftModels;
use self::runner::CellRunner;
use crate::data::rows_in_common;
use crate::estimate::require_disk;
use crate::{Event, PipelineError, Result, RunSettings};

/// What a comparison found; `compare.json` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    format: String,
    version: u64,
    /// The model.
    pub model: String,
    /// The rows trained on.
    pub train: String,
    /// The sets evaluated on.
    pub evals: Vec<String>,
    /// How many rows of each set were trained on too; the figures are honest at 0.
    pub rows_trained_on: Vec<usize>,
    /// The type of the products of all cells.
    pub dtype: ComputeChoice,
    /// The cells that are done; the dense model, fine-tuned alike, among them.
    pub cells: Vec<CellResult>,
    /// The cells that the budget left no time for.
    pub left_out: Vec<Cell>,
    /// The cells whose layers cannot go as their rules have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub impossible: Vec<Impossible>,
}

/// A cell that there is no plan for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Impossible {
    /// Which.
    pub cell: Cell,
    /// Why.
    pub reason: String,
}

/// A cell that is done, and how far the comparison is.
#[derive(Debug, Clone, PartialEq)]
pub struct CellDone {
    /// What it came to.
    pub result: CellResult,
    /// How many cells are done.
    pub done: usize,
    /// Of how many.
    pub total: usize,
    /// Seconds that those to come will take if they take as long as those made here; `None` before one is made.
    pub seconds_left: Option<f64>,
}

/// Computes every cell that is not there yet, one seed of everything before the second, and writes `compare.json`
/// after each. A cell that there is no plan for is passed over. What later cells need of the pruned checkpoints stays as long as they need it.
///
/// # Errors
///
/// If what is compared cannot be used, the disk is too small, a stage fails, or another process has the folder.
pub fn compare(
    settings: &CompareSettings,
    folder: &Path,
    observe: &mut dyn FnMut(Event),
) -> Result<Comparison> {
    let cells = settings.cells();
    let runner = CellRunner::new(settings, folder)?;
    let started = Instant::now();
    let mut found = Comparison {
        format: "gradpruner-comparison".into(),
        version: 1,
        model: settings.base.model.clone(),
        train: settings.base.train.display().to_string(),
        evals: settings.evals.iter().map(|path| path.display().to_string()).collect(),
        rows_trained_on: rows_trained_on(settings)?,
        dtype: runner.dtype(),
        cells: Vec::new(),
        left_out: Vec::new(),
        impossible: Vec::new(),
    };
    let there: Vec<bool> = cells.iter().map(|cell| runner.has(cell)).collect::<Result<_>>()?;
    let to_make = |from: usize| -> Vec<&Cell> {
        let cells = cells.iter().zip(&there).skip(from);
        cells.filter(|(_, there)| !**there).map(|(cell, _)| cell).collect()
    };
    let missing = to_make(0);
    if !missing.is_empty() {
        let needs = runner.needs(&missing, cells.len())?;
        require_disk(folder, needs.disk_bytes)?;
        observe(Event::ComparisonNeeds(needs));
    }
    let (mut made, mut seconds_made) = (0_u32, 0.0);
    let mut left = LeftModels::new(runner.store(), settings.keep_models);
    // The next one may take as long as the longer of the last two; the first collects steps for all.
    let mut recent = [0.0_f64; 2];
    // Those that are there stand in the file whenever this is stopped.
    let mut results: Vec<Option<CellResult>> = Vec::new();
    for (cell, there) in cells.iter().zip(&there) {
        results.push(there.then(|| runner.run(cell, observe)).transpose()?);
    }
    let made_so_far = |results: &[Option<CellResult>]| results.iter().flatten().cloned().collect();
    found.cells = made_so_far(&results);
    for (number, cell) in cells.iter().enumerate() {
        let elapsed = started.elapsed().as_secs_f64();
        // What is there costs nothing, so it is never left out, nor is the first: nothing is known yet of how long
        // one takes.
        if settings.budget_seconds.is_some_and(|budget| elapsed + recent[0].max(recent[1]) > budget)
            && !found.cells.is_empty()
            && !there[number]
        {
            found.left_out.push(cell.clone());
            continue;
        }
        observe(Event::Cell { number: number + 1, total: cells.len(), cell: cell.clone() });
        let begun = Instant::now();
        let result = match runner.run(cell, observe) {
            Ok(result) => result,
            // Such as the paper's form where layer 0 is to be merged: that says nothing of the others.
            Err(PipelineError::Selection(
                error @ (SelectionError::Plan(_)
                | SelectionError::Keep(_)
                | SelectionError::Share(_)),
            )) => {
                let reason = error.to_string();
                observe(Event::CellImpossible(reason.clone()));
                found.impossible.push(Impossible { cell: cell.clone(), reason });
                write(&found, folder)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let took = begun.elapsed().as_secs_f64();
        if !there[number] {
            recent = [recent[1], took];
            made += 1;
            seconds_made += took;
        }
        results[number] = Some(result.clone());
        found.cells = made_so_far(&results);
        let to_come = to_make(number + 1).len() as f64;
        let seconds_left = (made > 0).then(|| to_come * seconds_made / f64::from(made));
        let within = |seconds: f64| match settings.budget_seconds {
            Some(budget) => seconds.min((budget - started.elapsed().as_secs_f64()).max(0.0)),
            None => seconds,
        };
        observe(Event::CellDone(Box::new(CellDone {
            result,
            done: number + 1 - found.left_out.len() - found.impossible.len(),
            total: cells.len(),
            seconds_left: seconds_left.map(within),
        })));
        write(&found, folder)?;
        left.add(runner.left_by(cell)?, &to_make(number + 1))?;
    }
    left.drop_all_but(&[])?;
    write(&found, folder)?;
    Ok(found)
}

fn rows_trained_on(settings: &CompareSettings) -> Result<Vec<usize>> {
    let RunSettings { train, ignore_fields, evaluation, .. } = &settings.base;
    let of = |eval| rows_in_common(train, eval, evaluation.max_rows, ignore_fields);
    settings.evals.iter().map(|eval| of(eval)).collect()
}

fn write(found: &Comparison, folder: &Path) -> Result<()> {
    let text = format!("{:#}\n", serde_json::json!(found));
    Ok(Staging::write(&folder.join("compare.json"), text.as_bytes())?)
}
