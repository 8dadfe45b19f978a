//! `cargo xtask`: the project's chores.

mod bench;
mod data;
mod demo;
mod doctor;
mod fetch;
mod fuzz;
mod layers;
mod libtorch;
mod models;
mod package;
mod python;
mod root;
mod test;

use anyhow::Result;
use clap::Parser;

/// The project's chores
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Put libtorch where builds find it
    Setup,
    /// Say what is wanted, what was found, and what to do
    Doctor,
    /// Fetch a model: smollm2, qwen2.5-coder-0.5b or qwen2.5-coder-1.5b
    Model {
        /// Its name
        #[arg(value_parser = models::names())]
        name: String,
    },
    /// Fetch the data sets of the demo and the benchmarks
    Data,
    /// Prune SmolLM2-135M while it is fine-tuned on product reviews
    Demo,
    /// Run everything a change must pass
    Test,
    /// Check that crates import downward only
    Layers,
    /// Feed every reader of files with broken ones
    Fuzz(fuzz::FuzzArgs),
    /// Test the Python package, and prune small decoders of many families
    Python(python::PythonArgs),
    /// Build a wheel: the program, and the Python package beside it
    Wheel,
    /// Build an archive of the program
    Dist,
    /// Run benchmarks
    Bench(bench::BenchArgs),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Setup => libtorch::set_up(),
        Task::Doctor => doctor::run(),
        Task::Model { name } => models::fetch(&name, models::Build::Release).map(|_| ()),
        Task::Data => data::fetch().map(|_| ()),
        Task::Demo => demo::run(),
        Task::Test => test::run(),
        Task::Layers => layers::run(),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Python(arguments) => python::run(&arguments),
        Task::Wheel => package::wheel(),
        Task::Dist => package::archive(),
        Task::Bench(arguments) => bench::run(&arguments),
    }
}
