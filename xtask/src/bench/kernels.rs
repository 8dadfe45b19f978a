//! Scoring, masking, merging and writing in the shape of an 8 B model, against the authors' way in
//! PyTorch and against what the machine can do: its rates of products and of copying, and `cp`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::measure::{Measured, drop_output, measure, median};
use crate::fetch::remove;
use crate::models::Build;
use crate::python::environment;
use crate::root::{cache, cargo, root, run as run_command, say};

/// Layers of the shape; the authors' way is timed on one.
const LAYERS: f64 = 32.0;
const STEPS: f64 = 40.0;
const RANK: f64 = 8.0;
/// How many layers the plan merges.
const MERGED: f64 = 3.0;
/// Times each stage is run; the middle one counts.
const RUNS: usize = 5;

/// One stage's line of the table.
struct Line {
    stage: &'static str,
    text: String,
    bar: &'static str,
    value: Value,
}

/// Runs criterion's benchmarks, then all stages; prints a table and writes it to
/// `.cache/bench/kernels.md` and `kernels.json`.
pub(crate) fn run(scale: f64) -> Result<()> {
    run_command(&mut cargo(&["bench", "--package", "gradpruner-benches"]))?;
    let (program, stages) = programs()?;
    let scale_text = scale.to_string();

    let kernels = measure(Command::new(&stages).args(["kernels", &scale_text]))?.output;
    let script = root().join("benches/pytorch/kernels.py");
    let theirs =
        measure(Command::new(environment()?).arg(script).args(["--scale", &scale_text]))?.output;
    let folder = written(&stages, "write", &scale_text)?;
    let mut lines = of_kernels(&kernels, &theirs)?;
    lines.push(score(&program, &folder, &theirs)?);
    lines.push(prune(&program, &folder, number(&kernels, "/importance/flops")?)?);
    let mut table = "| stage | measured | bar |\n|---|---|---|\n".to_owned();
    for Line { stage, text, bar, .. } in &lines {
        table.push_str(&format!("| {stage} | {text} | {bar} |\n"));
    }
    let authors = number(&theirs, "/peak_memory_bytes")? / 1e9;
    say(&format!("\n{table}\nThe authors' way takes {authors:.1} GB for one layer."));
    let values: serde_json::Map<String, Value> =
        lines.into_iter().map(|line| (line.stage.to_owned(), line.value)).collect();
    let all = json!({"scale": scale, "stages": values, "kernels": kernels, "pytorch": theirs});
    let path = cache("bench").join("kernels.json");
    fs_err::write(&path, serde_json::to_string_pretty(&all)?)?;
    fs_err::write(path.with_extension("md"), table)?;
    say(&format!("written to {}", path.strip_prefix(root()).unwrap_or(&path).display()));
    Ok(())
}

/// Prunes a few layers of a 70 B model's widths, where importance is computed in parts; prints time
/// and memory.
pub(crate) fn run_wide(scale: f64) -> Result<()> {
    let (program, stages) = programs()?;
    let folder = written(&stages, "wide", &scale.to_string())?;
    let pruned = folder.join("pruned");
    let (mut times, mut memory) = (Vec::new(), 0);
    for _ in 0..RUNS {
        let Measured { seconds, anonymous_bytes, .. } = pruning(&program, &folder)?;
        times.push(seconds);
        memory = memory.max(anonymous_bytes);
    }
    remove(&pruned)?;
    let (seconds, memory) = (median(&times), memory as f64 / 1e6);
    say(&format!("three of four layers of a 70 B model merged: {seconds:.1} s, {memory:.0} MB"));
    Ok(())
}

/// The program, and what measures its kernels.
fn programs() -> Result<(PathBuf, PathBuf)> {
    Ok((Build::Release.program()?, stages()?))
}

/// What writes random checkpoints and measures kernels, built.
pub(super) fn stages() -> Result<PathBuf> {
    let build = ["build", "--release", "--package", "gradpruner-benches", "--example", "stages"];
    run_command(&mut cargo(&build))?;
    Ok(Build::Release.program()?.with_file_name("examples").join("stages"))
}

/// The folder of a checkpoint, a record and a plan of random numbers, written if it is not there.
pub(super) fn written(stages: &Path, shape: &str, scale: &str) -> Result<PathBuf> {
    let folder = cache("bench").join(format!("stages-{shape}"));
    let mark = folder.join(format!("written-{scale}"));
    if !mark.exists() {
        say("writing a checkpoint and a record of random numbers");
        remove(&folder)?;
        fs_err::create_dir_all(&folder)?;
        run_command(Command::new(stages).arg(shape).arg(&folder).arg(scale))?;
        fs_err::write(mark, "")?;
    }
    Ok(folder)
}

/// Prunes as the folder's plan says.
fn pruning(program: &Path, folder: &Path) -> Result<Measured> {
    let pruned = folder.join("pruned");
    remove(&pruned)?;
    let mut command = Command::new(program);
    command.arg("prune").arg("--model").arg(folder.join("model")).arg("--json");
    command.arg("--plan").arg(folder.join("plan.json")).arg("--out").arg(pruned);
    command.arg("--record").arg(folder.join("record"));
    measure(&mut command)
}

fn of_kernels(ours: &Value, theirs: &Value) -> Result<Vec<Line>> {
    let of = |path: &str| number(ours, path);
    let product = number(theirs, "/product_flops")?;
    let (seconds, rate) = (of("/importance/seconds")?, of("/importance/flops")?);
    let dense = number(theirs, "/gate/igia")? / seconds;
    let importance = Line {
        stage: "IGIA-Matrix",
        text: format!(
            "{seconds:.2} s, {:.0} GFLOP/s: {:.2} x libtorch's f32 products, {dense:.0} x the \
             authors' way",
            rate / 1e9,
            rate / product
        ),
        bar: ">= 1.0 x",
        value: json!({"of_product_rate": rate / product, "of_authors": dense}),
    };
    let top = of("/top/seconds")?;
    let (argsort, kth) =
        (number(theirs, "/gate/argsort")? / top, number(theirs, "/gate/kthvalue")? / top);
    let of_importance = top / seconds;
    let top = Line {
        stage: "exact top-k",
        text: format!(
            "{top:.3} s: {of_importance:.2} of the IGIA time, {argsort:.0} x argsort, {kth:.0} x \
             kthvalue"
        ),
        bar: "<= 0.25, >= 100 x, >= 10 x",
        value: json!({"of_importance": of_importance, "of_argsort": argsort, "of_kthvalue": kth}),
    };
    let (merge, copy) = (of("/merge/bytes_per_second")?, of("/copy/bytes_per_second")?);
    let of_theirs = number(theirs, "/gate/merge")? / of("/merge/seconds")?;
    let merge = Line {
        stage: "same-sign merge",
        text: format!(
            "{:.3} s, {:.1} GB/s: {:.2} of copying's {:.1}, {of_theirs:.0} x the authors' way",
            of("/merge/seconds")?,
            merge / 1e9,
            merge / copy,
            copy / 1e9
        ),
        bar: ">= 0.7",
        value: json!({"of_copy_rate": merge / copy, "of_authors": of_theirs}),
    };
    Ok(vec![importance, top, merge])
}

/// `score` of the whole record, beside reading it and the authors' dense norms.
fn score(program: &Path, folder: &Path, theirs: &Value) -> Result<Line> {
    let record = folder.join("record");
    let cat = || {
        let mut command = Command::new("sh");
        command.arg("-c").arg("exec cat \"$0\"/*.safetensors > /dev/null").arg(&record);
        drop_output(&mut command)
    };
    cat()?; // Warms the cache.
    let (mut times, mut cats, mut memory) = (Vec::new(), Vec::new(), 0);
    for _ in 0..RUNS {
        let scores = folder.join("scores.json");
        remove(&scores)?;
        let mut command = Command::new(program);
        command.arg("score").arg(&record).arg("--json").arg("--out").arg(&scores);
        let Measured { seconds, anonymous_bytes, .. } = measure(&mut command)?;
        times.push(seconds);
        memory = memory.max(anonymous_bytes);
        cats.push(cat()?);
    }
    let (seconds, cat) = (median(&times), median(&cats));
    let authors = LAYERS * number(theirs, "/layer/norms")? / seconds;
    Ok(Line {
        stage: "score",
        text: format!(
            "{seconds:.2} s: {authors:.0} x the authors' way, {:.2} x the time of cat, {:.0} MB",
            seconds / cat,
            memory as f64 / 1e6
        ),
        bar: ">= 500 x, <= 1.5 x, <= 512 MB",
        value: json!({
            "seconds": seconds, "of_authors": authors, "of_cat": seconds / cat,
            "anonymous_bytes": memory,
        }),
    })
}

/// `prune` of 13 layers, three merged, beside `cp` of as many bytes and the IGIA time.
fn prune(program: &Path, folder: &Path, importance_flops: f64) -> Result<Line> {
    let (pruned, copy) = (folder.join("pruned"), folder.join("copied"));
    let (mut times, mut copies, mut synced, mut memory) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..RUNS {
        let Measured { seconds, anonymous_bytes, .. } = pruning(program, folder)?;
        times.push(seconds);
        memory = memory.max(anonymous_bytes);
        remove(&copy)?;
        fs_err::create_dir_all(&copy)?;
        // The same bytes, or nearly: the source's first files.
        let (files, bytes) = first_files(&folder.join("model"), size_of(&pruned)?)?;
        let scaled = size_of(&pruned)? as f64 / bytes as f64;
        let started = Instant::now();
        drop_output(Command::new("cp").args(&files).arg(&copy))?;
        copies.push(started.elapsed().as_secs_f64() * scaled);
        // The result of `prune` is on the disk when it ends.
        let mut sync = Command::new("sh");
        drop_output(sync.arg("-c").arg("exec sync \"$0\"/*").arg(&copy))?;
        synced.push(started.elapsed().as_secs_f64() * scaled);
    }
    let config: Value =
        serde_json::from_str(&fs_err::read_to_string(folder.join("model/config.json"))?)?;
    let size = |key: &str| number(&config, &format!("/{key}"));
    let (hidden, ffn) = (size("hidden_size")?, size("intermediate_size")?);
    let kv = size("num_key_value_heads")? * size("head_dim")?;
    let elements = MERGED * (2.0 * hidden * hidden + 2.0 * hidden * kv + 3.0 * hidden * ffn);
    let importance = elements * STEPS * (2.0 * RANK + 2.0) / importance_flops;
    let (seconds, copied, synced) = (median(&times), median(&copies), median(&synced));
    remove(&pruned)?;
    remove(&copy)?;
    Ok(Line {
        stage: "prune",
        text: format!(
            "{seconds:.1} s: {:.2} x (cp and sync, {synced:.1} s, and IGIA, {importance:.1} s), \
             cp alone {copied:.1} s, {:.0} MB",
            seconds / (synced + importance),
            memory as f64 / 1e6
        ),
        bar: "<= 1.25 x, <= 512 MB",
        value: json!({
            "seconds": seconds, "cp_seconds": copied, "cp_and_sync_seconds": synced,
            "importance_seconds": importance, "ratio": seconds / (synced + importance),
            "ratio_without_sync": seconds / (copied + importance), "anonymous_bytes": memory,
        }),
    })
}

/// Bytes of a folder's files.
fn size_of(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs_err::read_dir(folder)? {
        size += entry?.metadata()?.len();
    }
    Ok(size)
}

/// A folder's first files with at least so many bytes, and how many they have.
fn first_files(folder: &Path, least: u64) -> Result<(Vec<PathBuf>, u64)> {
    let mut all: Vec<PathBuf> =
        fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    all.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    all.sort();
    let (mut files, mut bytes) = (Vec::new(), 0);
    for path in all {
        if bytes < least {
            bytes += fs_err::metadata(&path)?.len();
            files.push(path);
        }
    }
    Ok((files, bytes))
}

fn number(value: &Value, path: &str) -> Result<f64> {
    let found = value.pointer(path).and_then(Value::as_f64);
    let found = found.with_context(|| format!("there is no {path}"))?;
    ensure!(found > 0.0, "{path} is {found}");
    Ok(found)
}
