//! Broken files for every reader, for as long as is wanted.

use anyhow::Result;

use crate::root::{cargo, run as run_command};

/// What is fed, and for how long
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// For how long, all readers together
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// One reader alone
    #[arg(long)]
    target: Option<String>,
    /// Another seed makes other inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds the feeder with checks for overflow, and runs it; findings are written to `tests/corpus`.
pub(crate) fn run(arguments: &FuzzArgs) -> Result<()> {
    let FuzzArgs { minutes, target, seed } = arguments;
    let build =
        ["run", "--locked", "--profile", "fuzz", "--package", "gradpruner-fuzz", "--", "run"];
    let mut command = cargo(&build);
    command.args([format!("--minutes={minutes}"), format!("--seed={seed}")]);
    command.args(target.iter().map(|target| format!("--target={target}")));
    run_command(&mut command)
}
