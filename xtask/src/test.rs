//! Everything a change must pass.

use std::time::Instant;

use anyhow::Result;

use crate::models::{Build, fetch};
use crate::root::{cargo, run as run_command, say};
use crate::{layers, libtorch};

/// The crates below libtorch: they must build and test where there is none.
const BELOW_LIBTORCH: [&str; 12] = [
    "gradpruner-caught",
    "gradpruner-igia",
    "gradpruner-merge",
    "gradpruner-metrics",
    "gradpruner-dataset",
    "gradpruner-checkpoint",
    "gradpruner-evidence",
    "gradpruner-selection",
    "gradpruner-repair",
    "gradpruner-testkit",
    "gradpruner-fuzz",
    "gradpruner-examples",
];

/// Formatting, layers, the crates below libtorch without it, then with it everything else.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    step("formatting");
    run_command(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("layers");
    layers::run()?;

    step("the crates below libtorch, with none on the machine");
    let mut lower = vec!["test", "--locked"];
    lower.extend(BELOW_LIBTORCH.iter().flat_map(|name| ["--package", name]));
    run_command(cargo(&lower).env("LIBTORCH", "/nonexistent"))?;

    step("set-up");
    libtorch::set_up()?;
    for model in ["smollm2", "qwen2.5-coder-0.5b"] {
        fetch(model, Build::Development)?;
    }

    step("clippy");
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run_command(&mut cargo(&lints))?;
    step("tests, those on real models included");
    run_command(&mut cargo(&["test", "--locked", "--workspace", "--", "--include-ignored"]))?;
    step("documentation");
    let documentation = ["doc", "--locked", "--workspace", "--no-deps"];
    run_command(cargo(&documentation).env("RUSTDOCFLAGS", "-D warnings"))?;
    say(&format!("all passed in {:.1} minutes", started.elapsed().as_secs_f64() / 60.0));
    Ok(())
}

fn step(name: &str) {
    say(&format!("── {name}"));
}
