//! What it costs to look at layers and to replace them, in forward passes of the same rows: the loss without some layers,
//! greedy's choice, and linear maps in the shape of an 8 B model.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::kernels::written;
use super::measure::{Measured, measure};
use crate::models::{Build, fetch};
use crate::root::{cache, cargo, root, run as run_command, say};
use crate::{data, libtorch};

/// What is measured, and of what size.
#[derive(Debug, Args)]
pub(crate) struct ChoosingArgs {
    /// Widths of the 8 B shape, as a share: 0.1 for small machines
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Tokens that linear maps are fitted on
    #[arg(long, default_value_t = 10_000)]
    tokens: usize,
}

/// Prints the ratios and writes them to `.cache/bench/choosing.json`.
pub(crate) fn run(arguments: &ChoosingArgs) -> Result<()> {
    libtorch::set_up()?;
    data::reviews()?;
    let model = fetch("smollm2", Build::Release)?;
    let build = ["build", "--release", "--package", "gradpruner-finetune", "--example", "passes"];
    run_command(&mut cargo(&build))?;
    let passes = Build::Release.program()?.with_file_name("examples").join("passes");

    let rows = cache("data").join("vader_reviews/train.jsonl");
    let losses = measure(Command::new(&passes).arg("losses").arg(model).arg(rows))?.output;
    let of = |found: &Value, key: &str| {
        found[key].as_f64().with_context(|| format!("the benchmark did not print {key}"))
    };
    let loss = of(&losses, "loss_seconds")? / of(&losses, "forward_seconds")?;
    say(&format!("loss without 12 layers: {loss:.3} x a forward pass of the others (bar: 1.05)"));
    let greedy = of(&losses, "greedy_passes")?;
    say(&format!("greedy, 12 of 30 layers: {greedy:.1} dense forward passes (bar: 25)"));

    let scale = arguments.scale.to_string();
    let shape = written(&super::kernels::stages()?, "write", &scale)?;
    let tokens = arguments.tokens.to_string();
    let mut fit = Command::new(&passes);
    let Measured { output: maps, anonymous_bytes, .. } =
        measure(fit.arg("maps").arg(shape.join("model")).arg(tokens))?;
    let ratio = of(&maps, "fit_seconds")? / of(&maps, "forward_seconds")?;
    let gigabytes = anonymous_bytes as f64 / 1e9;
    say(&format!(
        "linear maps for 13 of 32 layers on {} tokens: {ratio:.2} x a forward pass of them (bar: 1.5), \
         {gigabytes:.2} GB that belong to no file (bar: 6)",
        maps["tokens"]
    ));
    let all = json!({
        "losses": losses, "loss_ratio": loss, "scale": arguments.scale, "maps": maps,
        "maps_ratio": ratio, "maps_anonymous_bytes": anonymous_bytes,
    });
    let path = cache("bench").join("choosing.json");
    fs_err::write(&path, serde_json::to_string_pretty(&all)?)?;
    say(&format!("written to {}", path.strip_prefix(root()).unwrap_or(&path).display()));
    Ok(())
}
