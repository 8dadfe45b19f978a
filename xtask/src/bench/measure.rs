//! A command timed from outside: its output, and the anonymous memory it took at most.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::root::say;

/// What a command printed and took.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The JSON object on its standard output.
    pub(crate) output: Value,
    /// The most memory that belongs to no file, in bytes, looked at twenty times a second.
    pub(crate) anonymous_bytes: u64,
    /// From its start to its end.
    pub(crate) seconds: f64,
}

/// Runs a command that prints one JSON object.
pub(crate) fn measure(command: &mut Command) -> Result<Measured> {
    let shown = format!("{command:?}");
    say(&shown);
    let started = Instant::now();
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.with_context(|| format!("cannot run {shown}"))?;
    let mut stdout = child.stdout.take().context("the command has no output")?;
    let status_file = PathBuf::from(format!("/proc/{}/status", child.id()));
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let (text, status) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Ok(status) = fs_err::read_to_string(&status_file) {
                    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
                    let size = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
                    most.fetch_max(size.unwrap_or(0) * 1024, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text);
        let status = child.wait().map(|status| (status, started.elapsed()));
        over.store(true, Ordering::Relaxed);
        (read.map(|_| text), status)
    });
    let (status, taken) = status?;
    ensure!(status.success(), "failed: {shown}");
    let text = text?;
    // Libraries may print before the object.
    let start = text.find("\n{").map_or(0, |at| at + 1);
    let output = serde_json::from_str(&text[start..]).with_context(|| format!("from {shown}"))?;
    let (anonymous_bytes, seconds) = (most.into_inner(), taken.as_secs_f64());
    Ok(Measured { output, anonymous_bytes, seconds })
}

/// Runs a command whose output is of no interest; how long it took, in seconds.
pub(crate) fn drop_output(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    let shown = format!("{command:?}");
    let status = command.stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {shown}"))?;
    ensure!(status.success(), "failed: {shown}");
    Ok(started.elapsed().as_secs_f64())
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
