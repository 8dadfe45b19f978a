//! What a pruned model costs against the dense one: training time and memory, and generation's,
//! beside the paper's figures.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::{measure, median};
use crate::fetch::remove;
use crate::root::say;

/// Layers pruned of thirty, the share that 13 of 32 is, and which: their place changes no cost.
const PRUNED: std::ops::Range<usize> = 9..21;
const LAYERS: usize = 30;
/// Training time, training memory, generation time, generation memory: shares of the dense
/// model's in the paper, 13 of 32 layers of Llama-3.1-8B, in full.
const PAPER: [f64; 4] = [0.624, 0.658, 0.615, 0.609];

/// Measures the four shares for LoRA and full fine-tuning of a model of thirty layers.
pub(crate) fn run(
    program: &Path,
    (model, rows): (&Path, &Path),
    folder: &Path,
    repeats: usize,
) -> Result<Vec<Value>> {
    let pruned = prune(program, model, folder)?;
    let mut lines = Vec::new();
    let mut generated = Vec::new();
    for _ in 0..repeats {
        let [ours, dense] = [&pruned, model].map(|model| generation(program, model));
        let (ours, dense) = (ours?, dense?);
        generated.push([ours[0] / dense[0], ours[1] / dense[1]]);
    }
    for method in ["lora", "full"] {
        let mut shares = Vec::new();
        for _ in 0..repeats {
            let [ours, dense] =
                [&pruned, model].map(|model| training(program, (model, rows), folder, method));
            let (ours, dense) = (ours?, dense?);
            shares.push([ours[0] / dense[0], ours[1] / dense[1]]);
        }
        let middle = |all: &[[f64; 2]], column: usize| {
            median(&all.iter().map(|pair| pair[column]).collect::<Vec<_>>())
        };
        let found =
            [middle(&shares, 0), middle(&shares, 1), middle(&generated, 0), middle(&generated, 1)];
        let names = ["training time", "training memory", "generation time", "generation memory"];
        for ((name, found), paper) in names.into_iter().zip(found).zip(PAPER) {
            say(&format!(
                "{} of {LAYERS} layers pruned, {method}: {name} {:.0} % of dense (paper, full: \
                 {:.0} %)",
                PRUNED.len(),
                found * 100.0,
                paper * 100.0
            ));
            lines.push(json!({"what": name, "method": method, "share": found, "paper": paper}));
        }
    }
    Ok(lines)
}

fn prune(program: &Path, model: &Path, folder: &Path) -> Result<std::path::PathBuf> {
    let (plan, pruned) = (folder.join("plan.json"), folder.join("pruned"));
    let pruned_layers: Vec<usize> = PRUNED.collect();
    let text = json!({
        "format": "gradpruner-plan", "version": 1, "num_layers": LAYERS, "pruned": pruned_layers,
        "merges": [], "density": 0.2, "rule": "same-sign",
    });
    fs_err::write(&plan, text.to_string())?;
    remove(&pruned)?;
    let mut command = Command::new(program);
    command.arg("prune").arg("--model").arg(model).arg("--plan").arg(&plan);
    measure(command.arg("--json").arg("--out").arg(&pruned))?;
    Ok(pruned)
}

/// Seconds of all steps but the first, and the process's peak of memory.
fn training(
    program: &Path,
    (model, rows): (&Path, &Path),
    folder: &Path,
    method: &str,
) -> Result<[f64; 2]> {
    let (out, metrics) = (folder.join("tuned"), folder.join("metrics.jsonl"));
    remove(&out)?;
    remove(&metrics)?;
    let mut command = Command::new(program);
    command.arg("finetune").arg("--model").arg(model).arg("--train").arg(rows);
    command.args(["--method", method, "--epochs", "1", "--batch", "16", "--accumulate", "1"]);
    command.arg("--metrics").arg(&metrics).arg("--json").arg("--out").arg(&out);
    let found = measure(&mut command)?.output;
    let peak = found["report"]["peak_memory_bytes"].as_f64().context("no peak")?;
    Ok([step_seconds(&metrics)?, peak])
}

/// Seconds a token and the process's peak of memory.
fn generation(program: &Path, model: &Path) -> Result<[f64; 2]> {
    let mut command = Command::new(program);
    command.arg("generate").arg("--model").arg(model);
    command.args(["--prompt", "Tell a long story about a lighthouse.", "--max-new-tokens", "200"]);
    let found = measure(command.arg("--json"))?.output;
    let tokens = found["tokens"].as_array().context("no tokens")?.len();
    let seconds = found["seconds"].as_f64().context("no seconds")?;
    let peak = found["peak_memory_bytes"].as_f64().context("no peak")?;
    Ok([seconds / tokens as f64, peak])
}

/// Seconds of all steps of a metrics file but the first, which compiles its products.
pub(crate) fn step_seconds(metrics: &Path) -> Result<f64> {
    Ok(fs_err::read_to_string(metrics)?
        .lines()
        .skip(1)
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seconds"].as_f64())
        .sum())
}
