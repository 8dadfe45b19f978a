//! How to have the model of a table's first way: a comparison drops its checkpoints.

use pipeline::{CompareSettings, Comparison};

use super::figures::Line;
use crate::config::command_of;

/// The folder that the command names.
const FOLDER: &str = "best";

/// What makes a cell again, into a folder of its own.
pub(super) struct Remake {
    /// Which cell.
    pub(super) about: String,
    /// The command of a run with exactly its settings.
    pub(super) command: String,
}

/// That of a table's first way to prune and its first seed, never of the luckiest.
pub(super) fn remake(
    found: &Comparison,
    settings: &CompareSettings,
    lines: &[Line<'_>],
    set: usize,
) -> Option<Remake> {
    let best = lines.iter().find(|line| line.is_pruned())?;
    let result = best.results.first()?;
    let cell = &result.cell;
    let run = settings.run_of(result, settings.evals.get(set)?, found.dtype);
    let about = format!("To make the model of {}, seed {}, in `{FOLDER}`:", best.name, cell.seed);
    Some(Remake { about, command: command_of(&run, FOLDER) })
}

#[cfg(test)]
mod tests {
    use super::super::figures::by_ratio;
    use super::super::tests::{cell, comparison, settings};
    use super::*;

    #[test]
    fn the_command_is_of_the_first_way_and_holds_out_what_the_comparison_does() {
        let cells = [
            cell(None, 4, 36),
            cell(Some(("33%", "igia")), 4, 30),
            cell(Some(("33%", "igia")), 5, 38),
            cell(Some(("33%", "greedy")), 4, 20),
        ];
        let found = comparison(&cells);
        let (_, lines) = by_ratio(&found, 0).remove(0);
        let of = |methods: &str| {
            let settings = settings(&format!(
                "--prune 33% --methods {methods} --repairs drop --seed 4 --lr 1e-3"
            ));
            remake(&found, &settings, &lines, 0).unwrap()
        };
        let Remake { about, command } = of("igia,greedy");
        assert_eq!(about, "To make the model of igia, drop, lora, seed 4, in `best`:");
        assert_eq!(
            command,
            "gradpruner run --model=m --train=t --eval=test --prune=33% --criterion=igia --hold-out --repair=drop \
             --finetune=lora --seed=4 --dtype=f32 --lr=0.001 --rank=16 --out best"
        );
        assert!(!of("igia,bi").command.contains("--hold-out"));
    }
}
