//! How good pruned models are: `gradpruner compare` over the development sets.
//!
//! Every raw result stays in the comparison's folder, and the same command goes on where it was stopped.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::models::{Build, fetch};
use crate::root::{cache, root, run as run_command, say};
use crate::{data, libtorch};

/// Which tables.
#[derive(Debug, Args)]
pub(crate) struct QualityArgs {
    /// The demo's reviews, one seed, four criteria and two ratios: within 30 minutes on two cores
    #[arg(long)]
    quick: bool,
    /// The sets that nothing was developed on, in place of the others
    #[arg(long, conflicts_with = "quick")]
    unseen: bool,
    /// More criteria and no repair beside linear maps, at 40 % and one seed
    #[arg(long, conflicts_with = "quick")]
    wide: bool,
    /// Time for each pair of a model and a set, such as 2h; without it all cells are computed
    #[arg(long)]
    budget: Option<String>,
    /// Of the pairs, those whose names contain this, such as `piqa` or `smollm2`
    #[arg(long, default_value = "")]
    only: String,
}

/// One comparison.
struct Table<'a> {
    model: &'a str,
    set: &'a str,
    /// Optimizer steps of 16 rows.
    steps: usize,
    /// The flags that differ.
    flags: &'a [&'a str],
}

const QUICK: Table<'static> = Table {
    model: "smollm2",
    set: "vader_reviews",
    steps: 60,
    flags: &[
        "--prune",
        "20%,40%",
        "--methods",
        "best,igia,linear-fit,last",
        "--eval-rows",
        "300",
        "--budget",
        "26m",
    ],
};

/// What the tables compare. All of one seed comes before the next, so that a table says something wherever it stops.
const CORE: &[&str] = &[
    "--prune",
    "40%,30%,20%",
    "--methods",
    "best,igia,linear-fit,last,greedy",
    "--paper",
    "--seeds",
    "3",
    "--eval-rows",
    "300",
];
/// Every kind of selector, with maps and without, at one ratio and one seed.
const WIDE: &[&str] = &[
    "--prune",
    "40%",
    "--methods",
    "best,igia,linear-fit,last,race,greedy,auto,igia-bi,angular,taylor,exact,random",
    "--repairs",
    "linear-map,drop",
    "--paper",
    "--eval-rows",
    "300",
];
/// Steps of a cell.
const STEPS: usize = 100;
/// The development set: models, and sets of a train and a test file.
const MODELS: [&str; 2] = ["smollm2", "qwen2.5-coder-0.5b"];
const SETS: [&str; 4] = ["vader_reviews", "piqa", "hellaswag", "arc_easy"];
/// More of it, for whoever has put them into `.cache/data/`: no package ships them.
const IF_THERE: [&str; 3] = ["fingpt_sentiment", "pubmedqa", "gsm8k"];
/// Sets that are looked at once, when all is chosen.
const UNSEEN: [&str; 4] = ["arc_challenge", "openbookqa", "socialiqa", "winogrande"];
/// Rows of a step.
const BATCH: usize = 16;

/// Makes the tables, into `.cache/bench/quality/`.
pub(crate) fn run(arguments: &QualityArgs) -> Result<()> {
    libtorch::set_up()?;
    let program = Build::Release.program()?;
    let started = Instant::now();
    if arguments.quick {
        data::reviews()?;
        make(&program, &QUICK, "quick", None)?;
    } else {
        data::fetch()?;
        let flags = if arguments.wide { WIDE } else { CORE };
        let there = |set: &&&str| cache("data").join(set).is_dir();
        let sets: Vec<&str> = match arguments.unseen {
            true => UNSEEN.to_vec(),
            false => SETS.iter().chain(IF_THERE.iter().filter(there)).copied().collect(),
        };
        for model in MODELS {
            for set in &sets {
                let table = Table { model, set, steps: STEPS, flags };
                let name = format!("{model}-{set}");
                if name.contains(&arguments.only) {
                    make(&program, &table, &name, arguments.budget.as_deref())?;
                }
            }
        }
    }
    say(&format!("the tables took {:.1} minutes", started.elapsed().as_secs_f64() / 60.0));
    Ok(())
}

fn make(program: &Path, table: &Table<'_>, name: &str, budget: Option<&str>) -> Result<()> {
    let Table { model, set, steps, flags } = *table;
    let folder = fetch(model, Build::Release)?;
    let rows = cache("data").join(set);
    let inside = |path: &Path| path.strip_prefix(root()).unwrap_or(path).to_owned();
    let train = rows.join("train.jsonl");
    let mut command = Command::new(program);
    command.current_dir(root()).arg("compare");
    command.arg("--model").arg(inside(&folder));
    command.arg("--train").arg(inside(&train));
    command.arg("--eval").arg(inside(&rows.join("test.jsonl")));
    command.args(["--lr", "1e-3", "--batch", &BATCH.to_string(), "--accumulate", "1"]);
    command.args(["--epochs", &epochs(&train, steps)?.to_string()]);
    command.args(flags);
    if let Some(budget) = budget {
        command.args(["--budget", budget]);
    }
    command.arg("--out").arg(inside(&cache("bench").join("quality").join(name)));
    run_command(&mut command)
}

/// How many epochs come to so many steps.
fn epochs(train: &Path, steps: usize) -> Result<f64> {
    let text = fs_err::read_to_string(train).context("the set is incomplete")?;
    let per_epoch = text.lines().count().div_ceil(BATCH);
    Ok((1000.0 * steps as f64 / per_epoch as f64).round() / 1000.0)
}
