//! The benchmarks.

mod costs;
mod finetune;
mod measure;

use anyhow::Result;
use clap::ValueEnum;

use crate::root::{cargo, run as run_command};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// The kernels, by criterion; each result is asserted before it is timed
    Kernels,
    /// Training, evaluation and memory against PyTorch in an environment of its own
    Finetune,
}

/// Runs one of them.
pub(crate) fn run(bench: Bench, repeats: usize) -> Result<()> {
    match bench {
        Bench::Kernels => run_command(&mut cargo(&["bench", "--package", "gradpruner-benches"])),
        Bench::Finetune => finetune::run(repeats),
    }
}
