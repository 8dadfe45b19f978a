//! Training and evaluation against transformers with PEFT and lm-evaluation-harness: the same rows,
//! one after the other, in turns.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::costs::{self, step_seconds};
use super::machine::Machine;
use super::measure::{Measured, measure, median};
use crate::fetch::remove;
use crate::models::{Build, fetch};
use crate::python::environment;
use crate::root::{cache, root, say};
use crate::{data, libtorch};

/// Rows of a training step.
const BATCH: usize = 4;

struct Benches {
    program: PathBuf,
    python: PathBuf,
    /// Where rows and results go.
    folder: PathBuf,
    /// How often each pair is run; the table has medians.
    repeats: usize,
    /// What the names of the comparisons to make contain.
    only: String,
    lines: Vec<Value>,
}

/// What is fine-tuned on what.
#[derive(Clone, Copy)]
struct Case<'a> {
    model: &'a Path,
    rows: &'a Path,
    /// Whether the backward pass computes layers again.
    again: bool,
}

/// Runs all pairs, prints a table and writes `.cache/bench/finetune.json`.
pub(crate) fn run(repeats: usize, only: &str) -> Result<()> {
    libtorch::set_up()?;
    let program = Build::Release.program()?;
    let sets = data::fetch()?;
    let folder = cache("bench");
    fs_err::create_dir_all(&folder)?;
    let (here, avx2) = (Machine::here(&program)?, Machine::avx2(&program)?);
    let (python, only) = (environment()?, only.to_owned());
    let mut benches = Benches { program, python, folder, repeats, only, lines: Vec::new() };
    let smollm2 = fetch("smollm2", Build::Release)?;
    let qwen = fetch("qwen2.5-coder-0.5b", Build::Release)?;
    for (model, name) in [(&smollm2, "SmolLM2-135M"), (&qwen, "Qwen2.5-Coder-0.5B")] {
        for set in ["vader_reviews", "piqa"] {
            let rows = sets.join(set).join("train.jsonl");
            let rows = benches.first_rows(&rows, set, 13 * BATCH)?;
            for machine in [&here, &avx2] {
                let what = format!("{name}, LoRA, {set}, batch {BATCH}{}", machine.suffix);
                let case = Case { model, rows: &rows, again: false };
                benches.training(&what, machine, case)?;
            }
            let what = format!("{name}, LoRA, {set}, batch {BATCH}, products in f32 and in bf16");
            benches.types(&what, model, &rows)?;
        }
    }
    let long = benches.long_rows(&sets.join("hellaswag/train.jsonl"), 12)?;
    let what = "SmolLM2-135M, LoRA, 4 x 2048 tokens, layers computed again";
    benches.training(what, &here, Case { model: &smollm2, rows: &long, again: true })?;
    for (model, name) in [(&smollm2, "SmolLM2-135M"), (&qwen, "Qwen2.5-Coder-0.5B")] {
        let what = format!("{name}, multiple choice, hellaswag");
        benches.evaluation(&what, model, &sets.join("hellaswag/test.jsonl"))?;
    }
    let rows =
        benches.first_rows(&sets.join("vader_reviews/train.jsonl"), "vader_reviews", 13 * 16)?;
    if benches.wants("layers pruned") {
        let shares = costs::run(&benches.program, (&smollm2, &rows), &benches.folder, repeats)?;
        benches.lines.extend(shares);
    }
    let rows = sets.join("vader_reviews/train.jsonl");
    for (model, name) in [
        ("smollm2", "SmolLM2-135M"),
        ("qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B"),
        ("qwen2.5-coder-1.5b", "Qwen2.5-Coder-1.5B"),
    ] {
        let what = format!("{name}, collect, vader_reviews, batch {BATCH}");
        benches.collecting(&what, model, &rows)?;
    }
    let path = benches.folder.join("finetune.json");
    fs_err::write(&path, serde_json::to_string_pretty(&benches.lines)?)?;
    say(&format!("written to {}", path.strip_prefix(root()).unwrap_or(&path).display()));
    Ok(())
}

impl Benches {
    fn wants(&self, what: &str) -> bool {
        what.contains(&self.only)
    }

    /// Our fine-tuning on a machine, and where its steps are told.
    fn ours(&self, machine: &Machine, model: &Path, rows: &Path) -> Result<(Command, PathBuf)> {
        let (out, metrics) = (self.folder.join("adapter"), self.folder.join("metrics.jsonl"));
        remove(&out)?;
        remove(&out.with_extension("state"))?; // A bench that was stopped left it.
        remove(&metrics)?;
        let mut ours = machine.command(&self.program);
        ours.arg("finetune").arg("--model").arg(model).arg("--train").arg(rows);
        ours.args(["--epochs", "1", "--rank", "8", "--alpha", "32", "--lr", "1e-4"]);
        ours.args(["--accumulate", "1", "--batch", &BATCH.to_string(), "--json", "--out"]);
        ours.arg(&out).arg("--metrics").arg(&metrics);
        Ok((ours, metrics))
    }

    fn training(&mut self, what: &str, machine: &Machine, case: Case<'_>) -> Result<()> {
        let Case { model, rows, again } = case;
        if !self.wants(what) {
            return Ok(());
        }
        let mut pairs = Vec::new();
        for _ in 0..self.repeats {
            let (mut ours, metrics) = self.ours(machine, model, rows)?;
            let mut theirs = machine.command(&self.python);
            theirs.arg(root().join("benches/pytorch/train.py")).arg("--model").arg(model);
            theirs.arg("--train").arg(rows).args(["--steps", "1000"]);
            theirs.args(["--batch", &BATCH.to_string(), "--dtype"]);
            theirs.arg(if machine.dtype == "f32" { "float32" } else { "bfloat16" });
            if again {
                ours.arg("--remat");
                theirs.arg("--checkpointing");
            }
            let ours = measure(&mut ours)?;
            // The first step of either compiles its products.
            let seconds = step_seconds(&metrics)?;
            let steps = ours.output["report"]["steps"].as_f64().context("no steps")? - 1.0;
            let ours_rate = steps * BATCH as f64 / seconds;
            let theirs = measure(&mut theirs)?;
            let times: Vec<f64> = serde_json::from_value(theirs.output["step_seconds"].clone())?;
            let theirs_rate = (times.len() * BATCH) as f64 / times.iter().sum::<f64>();
            let peak = |output: &Value| output["peak_memory_bytes"].as_f64().unwrap_or(f64::NAN);
            pairs.push([
                ours_rate,
                theirs_rate,
                peak(&ours.output["report"]),
                peak(&theirs.output),
            ]);
        }
        self.add(what, &pairs);
        self.compare_types(machine);
        let foretold = self.foretold(model, rows, if again { &["--remat"] } else { &[] })?;
        self.compare_peak(foretold);
        Ok(())
    }

    /// Peak memory of the same fine-tuning with products in either type.
    fn types(&mut self, what: &str, model: &Path, rows: &Path) -> Result<()> {
        if !self.wants(what) {
            return Ok(());
        }
        let here = Machine::here(&self.program)?;
        let mut peaks = Vec::new();
        for dtype in ["f32", "bf16"] {
            let (mut ours, _) = self.ours(&here, model, rows)?;
            let report = measure(ours.args(["--dtype", dtype]))?.output;
            peaks.push(report["report"]["peak_memory_bytes"].as_f64().unwrap_or(f64::NAN));
        }
        let ratio = peaks[0] / peaks[1];
        say(&format!(
            "{what}: {:.2} against {:.2} GB ({ratio:.2} x)",
            peaks[0] / 1e9,
            peaks[1] / 1e9
        ));
        self.lines.push(json!({"what": what, "peak_memory_bytes": peaks, "memory_ratio": ratio}));
        Ok(())
    }

    /// Says in which type a line's pairs computed.
    fn compare_types(&mut self, machine: &Machine) {
        let Some(line) = self.lines.last_mut() else { return };
        line["dtype"] = json!(machine.dtype);
        say(&format!("  both in {}", machine.dtype));
    }

    /// What `estimate` says of the memory of a fine-tuning as [`Benches::training`] runs it.
    fn foretold(&self, model: &Path, rows: &Path, more: &[&str]) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command.arg("estimate").arg("--model").arg(model).arg("--train").arg(rows);
        command.args(["--prune", "0", "--restart", "--epochs", "1", "--rank", "8"]);
        command.args(["--accumulate", "1", "--batch", &BATCH.to_string(), "--json"]).args(more);
        let found = measure(&mut command)?.output;
        let stages = found["stages"].as_array().context("no stages")?;
        let stage = stages.iter().find(|stage| stage["stage"] == "finetune");
        let memory = stage.and_then(|stage| stage["memory"].as_object()).context("no memory")?;
        Ok(memory.values().filter_map(Value::as_f64).sum())
    }

    /// Adds the foretold peak to the last line.
    fn compare_peak(&mut self, foretold: f64) {
        let Some(line) = self.lines.last_mut() else { return };
        let found = line["peak_memory_bytes"][0].as_f64().unwrap_or(f64::NAN);
        say(&format!(
            "  `estimate` says {:.2} GB, {:+.0} % of what was measured",
            foretold / 1e9,
            (foretold / found - 1.0) * 100.0
        ));
        line["estimated_peak_bytes"] = json!(foretold);
    }

    fn evaluation(&mut self, what: &str, model: &Path, rows: &Path) -> Result<()> {
        if !self.wants(what) {
            return Ok(());
        }
        let count = 50;
        let mut pairs = Vec::new();
        let mut accuracies = json!([]);
        for _ in 0..self.repeats {
            let mut ours = Command::new(&self.program);
            ours.arg("eval").arg("--model").arg(model).arg("--data").arg(rows);
            ours.args(["--eval-rows", &count.to_string(), "--json"]);
            let ours = measure(&mut ours)?.output;
            let ours = ours.get("report").unwrap_or(&ours);
            let mut theirs = Command::new(&self.python);
            theirs.arg(root().join("benches/pytorch/evaluate.py")).arg("--model").arg(model);
            theirs.arg("--data").arg(rows).args(["--rows", &count.to_string()]);
            let theirs = measure(&mut theirs)?.output;
            let number = |output: &Value, key: &str| output[key].as_f64().unwrap_or(f64::NAN);
            pairs.push([
                f64::from(count) / number(ours, "seconds"),
                f64::from(count) / number(&theirs, "seconds"),
                number(ours, "peak_memory_bytes"),
                number(&theirs, "peak_memory_bytes"),
            ]);
            accuracies = json!([ours["acc"], theirs["acc"]]);
        }
        self.add(what, &pairs);
        say(&format!("accuracy, ours and theirs: {accuracies}"));
        Ok(())
    }

    fn collecting(&mut self, what: &str, model: &str, rows: &Path) -> Result<()> {
        if !self.wants(what) {
            return Ok(());
        }
        let model = fetch(model, Build::Release)?;
        let mut ours = Command::new(&self.program);
        let scores = self.folder.join("scores.json");
        remove(&scores)?;
        ours.arg("collect").arg("--model").arg(model).arg("--train").arg(rows);
        let record = self.folder.join("record");
        remove(&record)?;
        ours.args(["--steps", "12", "--json", "--scores"]).arg(&scores).arg("--out").arg(&record);
        let Measured { anonymous_bytes, output, .. } = measure(&mut ours)?;
        let hook = hook_share(&output).context("no steps")?;
        say(&format!("{what}: the hook takes {:.1} % of a step", hook * 100.0));
        self.lines.push(json!({"what": what, "hook_share": hook}));
        say(&format!("{what}: {:.2} GB anonymous at most", anonymous_bytes as f64 / 1e9));
        self.lines.push(json!({"what": what, "anonymous_bytes": anonymous_bytes}));
        Ok(())
    }

    /// Adds a line: rows a second and peak memory, ours and theirs, each the median.
    fn add(&mut self, what: &str, pairs: &[[f64; 4]]) {
        let middle =
            |column: usize| median(&pairs.iter().map(|pair| pair[column]).collect::<Vec<_>>());
        let [ours, theirs, our_peak, their_peak] = [0, 1, 2, 3].map(middle);
        let ratios: Vec<f64> = pairs.iter().map(|pair| pair[0] / pair[1]).collect();
        let (speed, memory) = (median(&ratios), our_peak / their_peak);
        say(&format!(
            "{what}: {ours:.2} against {theirs:.2} rows/s ({speed:.2} x), {:.2} against {:.2} GB \
             ({memory:.2} x)",
            our_peak / 1e9,
            their_peak / 1e9
        ));
        self.lines.push(json!({
            "what": what,
            "rows_per_second": [ours, theirs],
            "speed_ratio": speed,
            "peak_memory_bytes": [our_peak, their_peak],
            "memory_ratio": memory,
            "repeats": pairs.len(),
        }));
    }

    /// The first rows of a file, in a file of their own.
    fn first_rows(&self, source: &Path, name: &str, count: usize) -> Result<PathBuf> {
        let text = fs_err::read_to_string(source)?;
        let rows: Vec<&str> = text.lines().take(count).collect();
        let path = self.folder.join(format!("{name}-{count}.jsonl"));
        fs_err::write(&path, rows.join("\n"))?;
        Ok(path)
    }

    /// Rows of more than 2048 tokens, many texts joined.
    fn long_rows(&self, source: &Path, count: usize) -> Result<PathBuf> {
        let text = fs_err::read_to_string(source)?;
        let mut contents = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|row| Some(row["messages"][0]["content"].as_str()?.to_owned()));
        let mut joined = || {
            let mut whole = String::new();
            while whole.len() < 8000 {
                whole.push_str(&contents.next().unwrap_or_else(|| "More.".into()));
            }
            whole
        };
        let rows: Vec<String> = (0..count)
            .map(|_| {
                let (user, assistant) = (joined(), joined());
                json!({"messages": [
                    {"role": "user", "content": user},
                    {"role": "assistant", "content": assistant},
                ]})
                .to_string()
            })
            .collect();
        let path = self.folder.join("long.jsonl");
        fs_err::write(&path, rows.join("\n"))?;
        Ok(path)
    }
}

/// The median share of a collected step's time that its hook takes; the first step is not counted.
fn hook_share(collected: &Value) -> Option<f64> {
    let steps = collected["steps"].as_array()?;
    let share = |step: &Value| Some(step["hook_seconds"].as_f64()? / step["seconds"].as_f64()?);
    Some(median(&steps.iter().skip(1).filter_map(share).collect::<Vec<_>>()))
}
