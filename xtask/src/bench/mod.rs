//! The benchmarks.

mod costs;
mod finetune;
mod kernels;
mod machine;
mod measure;

use anyhow::Result;
use clap::ValueEnum;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// The kernels by criterion, then all stages in the shape of an 8 B model: 40 GB of disk
    Kernels,
    /// Pruning in the widths of a 70 B model, four layers of it: 20 GB of disk
    Wide,
    /// Training, evaluation and memory against PyTorch in an environment of its own
    Finetune,
}

/// Runs one of them; of the pairs of `finetune`, those whose names contain `only`.
pub(crate) fn run(bench: Bench, repeats: usize, scale: f64, only: &str) -> Result<()> {
    match bench {
        Bench::Kernels => kernels::run(scale),
        Bench::Wide => kernels::run_wide(scale),
        Bench::Finetune => finetune::run(repeats, only),
    }
}
