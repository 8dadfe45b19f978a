//! The main job, on a real small model.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::models::{Build, fetch};
use crate::root::{root, run as run_command, say};
use crate::{data, libtorch};

/// The settings of the demo; docs/results.md tells how they were chosen.
const SETTINGS: [&str; 16] = [
    "--prune",
    "33%",
    "--merge",
    "0",
    "--finetune",
    "lora",
    "--lr",
    "1e-3",
    "--epochs",
    "1",
    "--batch",
    "16",
    "--accumulate",
    "1",
    "--with-dense",
    "--save-merged",
];

/// Sets everything up, then runs `gradpruner run` into `demo/`; a second call goes on from there.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    libtorch::set_up()?;
    let program = Build::Release.program()?;
    let model = fetch("smollm2", Build::Release)?;
    let reviews = data::reviews()?;
    let mut command = Command::new(program);
    command.current_dir(root()).arg("run");
    let inside = |path: &std::path::Path| path.strip_prefix(root()).unwrap_or(path).to_owned();
    command.arg("--model").arg(inside(&model));
    command.arg("--train").arg(inside(&reviews.join("train.jsonl")));
    command.arg("--eval").arg(inside(&reviews.join("test.jsonl")));
    command.args(SETTINGS).args(["--out", "demo"]);
    run_command(&mut command)?;
    say(&format!("the demo took {:.1} minutes", started.elapsed().as_secs_f64() / 60.0));
    Ok(())
}
