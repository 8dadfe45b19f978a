//! What a comparison will need, told before it begins: `estimate` for each cell that is not there.

use finetune::{ProductRates, available_memory_bytes};
use serde::{Deserialize, Serialize};

use super::Cell;
use super::inputs::Unpruned;
use super::runner::CellRunner;
use crate::estimate::{Known, foretell, measured_rates};
use crate::{CollectSettings, Estimate, Result, Stage, StageEstimate};

/// What a comparison is going to need beyond what is there, at most: cells that come to the same layers are computed once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonNeeds {
    /// How many cells there are.
    pub cells: usize,
    /// How many of them are there already.
    pub there: usize,
    /// Memory of the stage that needs most, on a CPU.
    pub memory_bytes: u64,
    /// Memory there is, if the system says.
    pub available_memory_bytes: Option<u64>,
    /// Bytes on the disk when it is fullest.
    pub disk_bytes: u64,
    /// Seconds of all cells.
    pub seconds: f64,
}

/// What stages cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cost {
    memory_bytes: u64,
    /// What stays on the disk.
    lasting_bytes: u64,
    /// Checkpoints, which go with their cell unless they are kept.
    passing_bytes: u64,
    /// States of a training under way, of which there is one at a time.
    state_bytes: u64,
    seconds: f64,
}

impl Cost {
    /// That of one stage, whose result goes with its cell or stays.
    fn of(stage: &StageEstimate, passes: bool) -> Self {
        let disk = |here: bool| if here { stage.disk_bytes } else { 0 };
        Self {
            memory_bytes: stage.memory.total(),
            lasting_bytes: disk(!passes),
            passing_bytes: disk(passes),
            state_bytes: stage.passing_disk_bytes,
            seconds: stage.seconds,
        }
    }

    /// The same where the checkpoints stay.
    fn staying(self) -> Self {
        let lasting_bytes = self.lasting_bytes.saturating_add(self.passing_bytes);
        Self { lasting_bytes, passing_bytes: 0, ..self }
    }

    /// That of both, one after the other; `passing` says how what passes adds up.
    fn and(self, other: Self, passing: fn(u64, u64) -> u64) -> Self {
        Self {
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            lasting_bytes: self.lasting_bytes.saturating_add(other.lasting_bytes),
            passing_bytes: passing(self.passing_bytes, other.passing_bytes),
            state_bytes: self.state_bytes.max(other.state_bytes),
            seconds: self.seconds + other.seconds,
        }
    }
}

/// The stages of a cell but for those that it shares with all.
fn of_cell(cell: &Cell, estimate: &Estimate) -> Cost {
    let mut cost = Cost::default();
    for stage in &estimate.stages {
        let belongs = match stage.stage {
            Stage::Finetune | Stage::EvaluateTuned => true,
            Stage::Score | Stage::Race | Stage::Fit | Stage::Prune | Stage::EvaluatePruned => {
                cell.way.is_some()
            }
            Stage::EvaluateDense => cell.way.is_none(),
            _ => false,
        };
        if !belongs {
            continue;
        }
        let passes = match stage.stage {
            Stage::Prune => true,
            Stage::Finetune => cell.finetune.trains_weights(),
            _ => false,
        };
        cost = cost.and(Cost::of(stage, passes), u64::saturating_add);
    }
    cost
}

impl CellRunner<'_> {
    /// What the cells `to_make`, of so many, will need.
    pub(super) fn needs(&self, to_make: &[&Cell], cells: usize) -> Result<ComparisonNeeds> {
        let mut rates: Vec<(Option<&str>, ProductRates)> = Vec::new();
        // Seeds differ in nothing that costs.
        let mut known: Vec<(Cell, Estimate)> = Vec::new();
        let mut collections: Vec<(Option<&str>, u64, CollectSettings, bool)> = Vec::new();
        let passing = if self.settings().keep_models { u64::saturating_add } else { u64::max };
        let mut all = Cost::default();
        for cell in to_make {
            let settings = self.foretold(cell);
            let Unpruned { config, samples, .. } = self.model(cell);
            let name = cell.baseline.as_deref();
            let measured =
                known_or(&mut rates, &name, || measured_rates(&settings.compute, config))?;
            let (train, eval) = (&samples.train, Some(&samples.eval));
            let of = Known { settings: &settings, config, train, eval };
            let alike = Cell { seed: 0, ..(*cell).clone() };
            let found = known_or(&mut known, &alike, || foretell(of, measured))?;
            // A teacher's checkpoint stays as long as there are pupils.
            let teaches = cell.is_dense() && self.settings().of(cell).training.learns_from_dense();
            let tried = self.settings().rates().len() as f64;
            let cost = of_cell(cell, &found);
            let cost = Cost { seconds: tried * cost.seconds, ..cost };
            all = all.and(if teaches { cost.staying() } else { cost }, passing);
            let collection = (name, cell.seed, settings.collecting(), settings.goes_on());
            let collects = self.collects(cell) && !collections.contains(&collection);
            if collects && !self.has_collected(cell)? {
                let collect = found.stages.iter().find(|stage| stage.stage == Stage::Collect);
                let cost = collect.map_or_else(Cost::default, |stage| Cost::of(stage, false));
                all = all.and(cost, u64::saturating_add);
                collections.push(collection);
            }
        }
        let memory = self.settings().base.compute.memory;
        Ok(ComparisonNeeds {
            cells,
            there: cells - to_make.len(),
            memory_bytes: all.memory_bytes,
            available_memory_bytes: memory.or_else(available_memory_bytes),
            disk_bytes: all
                .lasting_bytes
                .saturating_add(all.passing_bytes)
                .saturating_add(all.state_bytes),
            seconds: all.seconds,
        })
    }
}

/// What a key stands for, made the first time it is asked for.
fn known_or<K: Clone + PartialEq, V: Clone>(
    known: &mut Vec<(K, V)>,
    key: &K,
    make: impl FnOnce() -> Result<V>,
) -> Result<V> {
    if let Some((_, found)) = known.iter().find(|(other, _)| other == key) {
        return Ok(found.clone());
    }
    let made = make()?;
    known.push((key.clone(), made.clone()));
    Ok(made)
}

#[cfg(test)]
mod tests {
    use selection::Repair;

    use super::*;
    use crate::{Choosing, FinetuneMethod, Way};

    fn estimate(stages: &[(Stage, u64)]) -> Estimate {
        let stage = |&(stage, disk): &(Stage, u64)| -> StageEstimate {
            serde_json::from_value(serde_json::json!({
                "stage": stage, "steps": 0, "tokens": 0.0,
                "batch": {"tokens": 0, "longest": 0, "labelled": 0}, "remat": false,
                "memory": {"program": 0, "mapped": 0, "converted": 0, "trained": 0, "kept": disk, "passing": 0},
                "disk_bytes": disk, "flops": 0.0, "seconds": 1.0,
            }))
            .unwrap()
        };
        Estimate {
            stages: stages.iter().map(stage).collect(),
            memory_bytes: 0,
            disk_bytes: 0,
            seconds: 0.0,
            available_memory_bytes: None,
            dtype: "f32".into(),
            faster: None,
        }
    }

    /// Of four stages of a cell two leave checkpoints; the candidates of a race are in the estimate.
    #[test]
    fn checkpoints_pass_and_the_rest_lasts() {
        let found = estimate(&[
            (Stage::Collect, 1000),
            (Stage::Fit, 1),
            (Stage::Prune, 10),
            (Stage::Finetune, 100),
            (Stage::EvaluateTuned, 0),
            (Stage::EvaluateDense, 0),
        ]);
        let cost = |criterion: &str, finetune| {
            let criterion: Choosing = criterion.parse().unwrap();
            let prune = "2".parse().unwrap();
            let way = Way { prune, criterion, repair: Repair::Drop, paper: false };
            let cell = Cell { way: Some(way), baseline: None, finetune, seed: 0 };
            let Cost { lasting_bytes, passing_bytes, seconds, .. } = of_cell(&cell, &found);
            (lasting_bytes, passing_bytes, seconds)
        };
        assert_eq!(cost("igia", FinetuneMethod::Lora), (101, 10, 4.0));
        assert_eq!(cost("igia", FinetuneMethod::Full), (1, 110, 4.0));
        assert_eq!(cost("race:igia+bi+last", FinetuneMethod::Full), (1, 110, 4.0));
    }

    #[test]
    fn what_passes_is_there_once_unless_it_is_kept() {
        let of = |lasting_bytes, passing_bytes| Cost {
            memory_bytes: lasting_bytes,
            lasting_bytes,
            passing_bytes,
            state_bytes: passing_bytes,
            seconds: 1.0,
        };
        let dropped = of(1, 10).and(of(2, 30), u64::max);
        assert_eq!(
            (dropped.memory_bytes, dropped.lasting_bytes, dropped.passing_bytes),
            (2, 3, 30)
        );
        let kept = of(1, 10).and(of(2, 30), u64::saturating_add);
        assert_eq!((kept.passing_bytes, kept.state_bytes), (40, 30));
        let teacher = of(1, 10).staying().and(of(2, 30), u64::max);
        assert_eq!((teacher.lasting_bytes, teacher.passing_bytes), (13, 30));
    }
}
