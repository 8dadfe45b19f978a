//! The benchmarks.

mod choosing;
mod costs;
mod finetune;
mod kernels;
mod machine;
mod measure;
mod quality;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Which benchmark; the kernels' if none is named.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Option<Bench>,
}

/// What is measured.
#[derive(Debug, Subcommand)]
enum Bench {
    /// The kernels by criterion, then all stages in the shape of an 8 B model: 40 GB of disk
    Kernels(ScaleArgs),
    /// Pruning in the widths of a 70 B model, four layers of it: 20 GB of disk
    Wide(ScaleArgs),
    /// Training, evaluation and memory against PyTorch in an environment of its own
    Finetune(FinetuneArgs),
    /// What choosing and replacing layers costs, in forward passes; 20 GB of disk
    Choosing(choosing::ChoosingArgs),
    /// How good pruned models are, by criterion, ratio and repair
    Quality(quality::QualityArgs),
}

#[derive(Debug, Args)]
struct ScaleArgs {
    /// Widths of the shape, as a share: 0.1 for small machines
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

#[derive(Debug, Args)]
struct FinetuneArgs {
    /// How often each pair is run
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Of the comparisons, those whose names contain this, such as `AVX2`
    #[arg(long, default_value = "")]
    only: String,
}

/// Runs one of them.
pub(crate) fn run(arguments: &BenchArgs) -> Result<()> {
    match &arguments.what {
        None => kernels::run(1.0),
        Some(Bench::Kernels(ScaleArgs { scale })) => kernels::run(*scale),
        Some(Bench::Wide(ScaleArgs { scale })) => kernels::run_wide(*scale),
        Some(Bench::Finetune(FinetuneArgs { repeats, only })) => finetune::run(*repeats, only),
        Some(Bench::Choosing(arguments)) => choosing::run(arguments),
        Some(Bench::Quality(arguments)) => quality::run(arguments),
    }
}
