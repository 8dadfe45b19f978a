//! The models that finished cells leave in the store: they go as soon as no cell to come needs them. They can be made again
//! from their recipes.

use std::path::{Path, PathBuf};

use selection::Criterion;

use super::Cell;
use crate::Result;
use crate::store::Store;

/// A model that a finished cell has left.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LeftModel {
    /// The cell, and whose choice of layers it is; none of a whole model.
    pub(super) cell: Cell,
    pub(super) criterion: Option<Criterion>,
    /// The pruned checkpoint: further trainings begin with it, and races try it out.
    pub(super) pruned: Option<PathBuf>,
    /// The tuned checkpoint: once it is evaluated nothing needs it, unless it teaches.
    pub(super) tuned: Option<PathBuf>,
    /// Whether pruned models learn from it.
    pub(super) teaches: bool,
    /// The state of its training, if a race left one for the training to go on from.
    pub(super) state: PathBuf,
}

impl LeftModel {
    /// Whether a cell to come prunes by the same choice, and so takes the checkpoint or the state; or learns from it.
    fn is_needed_by(&self, other: &Cell) -> bool {
        if self.teaches {
            let Cell { way, finetune, seed, .. } = other;
            return way.is_some() && (*finetune, *seed) == (self.cell.finetune, self.cell.seed);
        }
        let (Some(own), Some(theirs), Some(criterion)) =
            (&self.cell.way, &other.way, self.criterion)
        else {
            return false;
        };
        self.cell.seed == other.seed
            && own.prune == theirs.prune
            && own.repair == theirs.repair
            && theirs.criterion.criteria().contains(&criterion)
    }
}

/// What finished cells have left.
#[derive(Debug)]
pub(super) struct LeftModels<'a> {
    store: &'a Store,
    /// Whether checkpoints stay; states of trainings go in any case.
    keep: bool,
    left: Vec<LeftModel>,
}

impl<'a> LeftModels<'a> {
    pub(super) fn new(store: &'a Store, keep: bool) -> Self {
        Self { store, keep, left: Vec::new() }
    }

    /// Takes note of what a cell has left, and drops what no cell of `to_come` needs.
    pub(super) fn add(&mut self, models: Vec<LeftModel>, to_come: &[&Cell]) -> Result<()> {
        if !self.keep {
            let done = models.iter().filter(|model| !model.teaches);
            for tuned in done.filter_map(|model| model.tuned.as_deref()) {
                self.store.discard(tuned)?;
            }
        }
        self.left.extend(models);
        self.drop_all_but(to_come)
    }

    /// Drops what none of these cells needs.
    pub(super) fn drop_all_but(&mut self, to_come: &[&Cell]) -> Result<()> {
        let is_needed = |model: &LeftModel| to_come.iter().any(|cell| model.is_needed_by(cell));
        let (needed, done): (Vec<_>, Vec<_>) = self.left.drain(..).partition(is_needed);
        self.left = needed;
        // Different choices may come to the same layers.
        let stays = |path: &Path| {
            self.left
                .iter()
                .any(|model| model.pruned.as_deref() == Some(path) || model.state == path)
        };
        for model in done {
            let teacher = model.tuned.filter(|_| model.teaches);
            let checkpoints = model.pruned.into_iter().chain(teacher).filter(|_| !self.keep);
            for path in checkpoints.chain([model.state]) {
                if !stays(&path) {
                    self.store.discard(&path)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Choosing, FinetuneMethod, Way};

    fn cell(criterion: &str, finetune: FinetuneMethod) -> Cell {
        let (prune, criterion) = ("2".parse().unwrap(), criterion.parse::<Choosing>().unwrap());
        let way = Some(Way { prune, criterion, repair: selection::Repair::Drop, paper: false });
        Cell { way, baseline: None, finetune, seed: 0 }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What is left after each of these cells; two of the criteria chose the same layers.
    fn after_each(keep: bool) -> Vec<String> {
        let folder = testkit::temporary_folder();
        let store = Store::of_many(folder.path()).unwrap();
        let mut left = LeftModels::new(&store, keep);
        let cells = [
            cell("igia", FinetuneMethod::Lora),
            cell("igia", FinetuneMethod::Full),
            cell("bi", FinetuneMethod::Full),
            cell("last", FinetuneMethod::Full),
            cell("race:bi+angular", FinetuneMethod::Full),
        ];
        let plan = |name: &str| if name == "last" { "bi".to_owned() } else { name.to_owned() };
        let mut seen = Vec::new();
        for (number, cell) in cells.iter().enumerate() {
            let criteria = cell.way.as_ref().unwrap().criterion.criteria();
            let models = criteria.into_iter().map(|criterion| {
                let plan = plan(criterion.name());
                let at = |kind: &str| folder.path().join(format!("{kind}-{plan}"));
                let model = LeftModel {
                    cell: cell.clone(),
                    criterion: Some(criterion),
                    pruned: Some(at("pruned")),
                    tuned: (cell.finetune == FinetuneMethod::Full).then(|| at("tuned")),
                    state: at("state"),
                    teaches: false,
                };
                for path in model.pruned.iter().chain(&model.tuned).chain([&model.state]) {
                    fs_err::create_dir_all(path.join("part")).unwrap();
                }
                model
            });
            let to_come: Vec<&Cell> = cells[number + 1..].iter().collect();
            left.add(models.collect(), &to_come).unwrap();
            seen.push(names(folder.path()).join(" "));
        }
        seen
    }

    #[test]
    fn a_model_goes_with_the_last_cell_that_needs_it() {
        assert_eq!(
            after_each(false),
            ["pruned-igia state-igia", "", "pruned-bi state-bi", "pruned-bi state-bi", ""]
        );
    }

    #[test]
    fn a_teacher_stays_as_long_as_there_are_pupils() {
        let folder = testkit::temporary_folder();
        let store = Store::of_many(folder.path()).unwrap();
        let (teacher, state) = (folder.path().join("dense-tuned"), folder.path().join("state"));
        fs_err::create_dir_all(&teacher).unwrap();
        let dense = Cell { way: None, baseline: None, finetune: FinetuneMethod::Full, seed: 0 };
        let model = LeftModel {
            cell: dense,
            criterion: None,
            pruned: None,
            tuned: Some(teacher.clone()),
            teaches: true,
            state,
        };
        let mut left = LeftModels::new(&store, false);
        left.add(vec![model], &[&cell("igia", FinetuneMethod::Full)]).unwrap();
        assert!(teacher.exists());
        left.drop_all_but(&[&cell("igia", FinetuneMethod::Lora)]).unwrap();
        assert!(!teacher.exists());
    }

    #[test]
    fn models_may_be_kept() {
        let last = after_each(true).pop().unwrap();
        assert_eq!(last, "pruned-angular pruned-bi pruned-igia tuned-angular tuned-bi tuned-igia");
    }
}
