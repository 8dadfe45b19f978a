//! Feeds every reader with broken files.
//!
//! Inputs are valid files with a few things wrong, by seed and number, so that each can be made
//! again. They are read in a process of their own within limits of time, memory and stack; what
//! breaks a reader is written to `tests/corpus`, and read again by every later test.

mod campaign;
mod dice;
mod form;
mod jinja;
mod mutate;
mod seeds;
mod target;
mod work;

use std::alloc::System;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};
use cap::Cap;
use clap::Parser;

use campaign::{Campaign, Tally};
use target::{TARGETS, Target};
use work::Work;

/// A reader that wants more gets none, and dies.
const MEMORY_BYTES: usize = 1 << 30;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY_BYTES);

/// Feed every reader with broken files
#[derive(Debug, Parser)]
#[command(name = "fuzz")]
enum Task {
    /// Feed readers for a while, or with so many inputs each
    Run {
        /// For how long, all readers together
        #[arg(long)]
        minutes: Option<f64>,
        /// How many inputs for each reader
        #[arg(long)]
        inputs: Option<u64>,
        /// One reader alone
        #[arg(long, value_parser = TARGETS.map(|target| target.name))]
        target: Option<String>,
        /// Another seed makes other inputs
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where findings are written, a folder a reader
        #[arg(long, default_value = "tests/corpus")]
        corpus: PathBuf,
    },
    /// Read again what broke readers before
    Check {
        /// Where it lies
        #[arg(long, default_value = "tests/corpus")]
        corpus: PathBuf,
    },
    /// Feed one reader in this process
    #[command(hide = true)]
    Work(Work),
    /// Feed one file in this process
    #[command(hide = true)]
    Replay { target: String, file: PathBuf },
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Run { minutes, inputs, target, seed, corpus } => {
            let targets: Vec<&Target> = TARGETS
                .iter()
                .filter(|known| target.as_ref().is_none_or(|name| name == known.name))
                .collect();
            let minutes = minutes.unwrap_or(if inputs.is_some() { 1e6 } else { 1.0 });
            let threads = std::thread::available_parallelism()?.get().min(targets.len());
            let time = Duration::from_secs_f64(
                (minutes * 60.0 * threads as f64 / targets.len() as f64).clamp(0.0, 1e9),
            );
            let campaign = |target| Campaign {
                target,
                seed,
                count: inputs.unwrap_or(u64::MAX),
                time,
                corpus: corpus.clone(),
            };
            run(targets.into_iter().map(campaign).collect(), threads)
        }
        Task::Check { corpus } => check(&corpus),
        Task::Work(work) => work::run(work),
        Task::Replay { target, file } => work::replay(&target, &file),
    }
}

/// Runs campaigns, a few at once, and prints what came of each.
fn run(campaigns: Vec<Campaign>, threads: usize) -> Result<()> {
    let queue = Mutex::new(campaigns.into_iter());
    let take = || queue.lock().ok().and_then(|mut queue| queue.next());
    say("target        inputs  accepted  slowest")?;
    let work = || -> Result<(u64, usize)> {
        let (mut inputs, mut broken) = (0, 0);
        while let Some(campaign) = take() {
            let tally = campaign.run()?;
            inputs += tally.inputs;
            broken += tally.findings.len();
            report(campaign.target.name, &tally)?;
        }
        Ok((inputs, broken))
    };
    let (mut inputs, mut broken) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (more, of_them) =
                worker.join().map_err(|_| anyhow::anyhow!("a campaign panicked"))??;
            inputs += more;
            broken += of_them;
        }
        Ok(())
    })?;
    say(&format!("{inputs} inputs in all"))?;
    ensure!(broken == 0, "{broken} kinds of input break a reader; the files named above show how");
    Ok(())
}

fn report(name: &str, tally: &Tally) -> Result<()> {
    let Tally { inputs, accepted, slowest_ms, findings } = tally;
    let share = 100.0 * *accepted as f64 / (*inputs).max(1) as f64;
    let mut text = format!("{name:<12} {inputs:>7}  {share:>6.1} %  {slowest_ms:>4} ms");
    for (how, (count, files)) in findings {
        text += &format!("\n    {count} × {how}");
        for file in files {
            text += &format!("\n        {}", file.display());
        }
    }
    say(&text)
}

/// Feeds every file of the corpus to its reader again.
fn check(corpus: &Path) -> Result<()> {
    let (mut count, mut broken) = (0, 0);
    for target in &TARGETS {
        let folder = corpus.join(target.name);
        if !folder.exists() {
            continue;
        }
        let entries = fs_err::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?;
        let mut files: Vec<_> = entries.iter().map(fs_err::DirEntry::path).collect();
        files.sort();
        for file in files {
            count += 1;
            if let Err(how) = campaign::replay(target.name, &file)? {
                broken += 1;
                say(&format!("{}: {how}", file.display()))?;
            }
        }
    }
    say(&format!("{count} files that broke a reader once"))?;
    ensure!(broken == 0, "{broken} of them still do");
    Ok(())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
