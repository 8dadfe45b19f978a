//! What is compared.

use std::path::{Path, PathBuf};

use ::finetune::ComputeChoice;
use selection::{Criterion, Repair, Share};

use super::cell::{Cell, CellResult, Way};
use crate::{Choosing, FinetuneMethod, HeldOut, RunSettings, TrainingSettings};

/// What a comparison does, and with what.
#[derive(Debug, Clone, PartialEq)]
pub struct CompareSettings {
    /// All that the cells have in common. What the lists below say stands there for nothing.
    pub base: RunSettings,
    /// Models to compare with, smaller ones of the same family say: each fine-tuned alike, from the start and for as many
    /// steps as the dense model.
    pub baselines: Vec<String>,
    /// Sets to evaluate on.
    pub evals: Vec<PathBuf>,
    /// How much to prune.
    pub prunes: Vec<Share>,
    /// What makes layers go.
    pub criteria: Vec<Choosing>,
    /// What is done to the layers that stay.
    pub repairs: Vec<Repair>,
    /// Also the paper's form of each ratio, trained for as many steps as the others.
    pub paper: bool,
    /// How to fine-tune; the base's training stands for nothing either.
    pub trainings: Vec<(FinetuneMethod, TrainingSettings)>,
    /// Learning rates to try for each cell, the dense one too; the one that stands best on the rows held out is taken. With
    /// fewer than two, each training's own.
    pub learning_rates: Vec<f64>,
    /// How many seeds, counted on from the base's.
    pub seeds: u64,
    /// Keep the pruned and the tuned checkpoints; else each goes as soon as no cell to come needs it.
    pub keep_models: bool,
    /// Seconds to stay within.
    pub budget_seconds: Option<f64>,
}

impl CompareSettings {
    /// Every cell, in the order that makes the table useful whenever it stops: a seed after the other, the dense model
    /// first, baselines next, then the ratios, the paper's form of each before the others.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for seed in self.base.seed..self.base.seed + self.seeds {
            for &(finetune, _) in &self.trainings {
                cells.push(Cell { way: None, baseline: None, finetune, seed });
            }
            for baseline in &self.baselines {
                for &(finetune, _) in &self.trainings {
                    let baseline = Some(baseline.clone());
                    cells.push(Cell { way: None, baseline, finetune, seed });
                }
            }
            for &prune in &self.prunes {
                for &(finetune, _) in self.trainings.iter().filter(|_| self.paper) {
                    let criterion = Choosing::By(Criterion::IGIA);
                    let way = Some(Way { prune, criterion, repair: Repair::SameSign, paper: true });
                    cells.push(Cell { way, baseline: None, finetune, seed });
                }
                for &repair in &self.repairs {
                    for criterion in &self.criteria {
                        for &(finetune, _) in &self.trainings {
                            let criterion = criterion.clone();
                            let way = Some(Way { prune, criterion, repair, paper: false });
                            cells.push(Cell { way, baseline: None, finetune, seed });
                        }
                    }
                }
            }
        }
        cells
    }

    /// The settings of a run that makes exactly one of the cells, by a learning rate of its own if several were tried, and
    /// evaluates it on `eval`, `dtype` being the type of the comparison's products.
    pub fn run_of(&self, result: &CellResult, eval: &Path, dtype: ComputeChoice) -> RunSettings {
        let rate = result.rates.first().map(|taken| taken.learning_rate);
        let mut settings = self.at_rate(&result.cell, rate);
        settings.compute.dtype = dtype;
        settings.eval = Some(eval.to_owned());
        let chosen_by = settings.held_out().is_some();
        settings.hold_out = settings.hold_out || (!chosen_by && self.held_out().is_some());
        settings
    }

    /// What of the training rows is held out of every cell, since one of them takes it to choose layers by.
    pub(crate) fn held_out(&self) -> Option<HeldOut> {
        let for_rates = self.tries_rates().then_some(self.base.choose);
        for_rates.or_else(|| self.cells().iter().find_map(|cell| self.of(cell).held_out()))
    }

    /// Whether several learning rates are tried for each cell.
    pub(crate) fn tries_rates(&self) -> bool {
        self.learning_rates.len() > 1
    }

    /// Each learning rate that is tried; `None` for the training's own.
    pub(crate) fn rates(&self) -> Vec<Option<f64>> {
        match self.tries_rates() {
            true => self.learning_rates.iter().copied().map(Some).collect(),
            false => vec![None],
        }
    }

    /// The settings of one cell at a learning rate; its training's own if none is given.
    pub(crate) fn at_rate(&self, cell: &Cell, rate: Option<f64>) -> RunSettings {
        let mut settings = self.of(cell);
        if let Some(rate) = rate {
            settings.training.learning_rate = rate;
        }
        settings
    }

    /// The settings of one cell, as a run has them, at its training's own learning rate.
    pub(crate) fn of(&self, cell: &Cell) -> RunSettings {
        let mut settings =
            RunSettings { finetune: cell.finetune, seed: cell.seed, ..self.base.clone() };
        let training = self.trainings.iter().find(|(finetune, _)| *finetune == cell.finetune);
        if let Some((_, training)) = training {
            settings.training.clone_from(training);
        }
        if let Some(Way { prune, criterion, repair, paper }) = &cell.way {
            (settings.prune, settings.repair) = (*prune, *repair);
            settings.criterion.clone_from(criterion);
            if *paper {
                return settings.in_the_papers_form();
            }
        }
        if let Some(model) = &cell.baseline {
            settings.model.clone_from(model);
            // No steps are collected on it, so it trains all of them.
            settings.restart = true;
        }
        settings.merge = match settings.repair.merges() {
            // Which layers it merges is its own affair.
            true if settings.repair.merges_all() => 0,
            true => settings.merge.max(1),
            false => 0,
        };
        settings
    }
}
