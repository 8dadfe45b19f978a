//! Starts the feeding processes, watches their time, and keeps what broke them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use checkpoint::sha256_bytes;

use crate::target::{Inputs, Target};
use crate::work::Work;

/// The time one input has. `FUZZ_SECONDS` says otherwise: tests run unoptimised and beside other
/// work, and are not to fail by the clock.
fn limit() -> Duration {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// The time taken to make a finding smaller.
const SHRINKING: Duration = Duration::from_secs(20);
const HANG: &str = "hang";
/// Findings of one kind that are kept; the rest is counted.
const KEPT: usize = 2;

/// How much is fed to one target.
pub(crate) struct Campaign {
    pub(crate) target: &'static Target,
    pub(crate) seed: u64,
    pub(crate) count: u64,
    pub(crate) time: Duration,
    /// Where findings are written.
    pub(crate) corpus: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) inputs: u64,
    pub(crate) accepted: u64,
    pub(crate) slowest_ms: u64,
    /// How often each kind of failure was seen, and the files kept.
    pub(crate) findings: BTreeMap<String, (usize, Vec<PathBuf>)>,
}

impl Tally {
    fn add(&mut self, [inputs, accepted, slowest_ms]: [u64; 3]) {
        self.inputs += inputs;
        self.accepted += accepted;
        self.slowest_ms = self.slowest_ms.max(slowest_ms);
    }
}

/// Why a process ended.
enum End {
    Done,
    /// At the input of this number, in this way.
    Broke(u64, String),
}

impl Campaign {
    pub(crate) fn run(&self) -> Result<Tally> {
        let started = Instant::now();
        let inputs = self.target.inputs(self.seed);
        let mut tally = Tally::default();
        let mut next = 0;
        loop {
            let left = self.time.saturating_sub(started.elapsed());
            if self.count <= next || left.is_zero() {
                return Ok(tally);
            }
            let work = Work {
                target: self.target.name.to_owned(),
                seed: self.seed,
                from: next,
                count: self.count - next,
                seconds: left.as_secs_f64(),
            };
            let end = self.watch(&work, &inputs, &mut tally)?;
            let End::Broke(number, how) = end else { return Ok(tally) };
            self.keep(&inputs, number, &how, &mut tally)?;
            next = number + 1;
        }
    }

    fn watch(&self, work: &Work, inputs: &Inputs, tally: &mut Tally) -> Result<End> {
        let mut process = Process::start(&[
            "work".into(),
            format!("--target={}", work.target),
            format!("--seed={}", work.seed),
            format!("--from={}", work.from),
            format!("--count={}", work.count),
            format!("--seconds={}", work.seconds),
        ])?;
        let mut last = [work.from, 0, 0];
        loop {
            let line = match process.lines.recv_timeout(limit()) {
                Ok(line) => line,
                Err(error) => {
                    let how = match error {
                        RecvTimeoutError::Timeout => process.stop()?,
                        RecvTimeoutError::Disconnected => process.end()?.unwrap_or_else(|how| how),
                    };
                    let [number, ..] = last;
                    tally.add([number - work.from + 1, last[1], last[2]]);
                    return Ok(End::Broke(number, how));
                }
            };
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match word {
                "input" => last = numbers(rest)?,
                "panic" => {
                    let how = format!("panic {}", place(rest));
                    self.keep(inputs, last[0], &how, tally)?;
                }
                _ => {
                    tally.add(numbers(rest)?);
                    return Ok(End::Done);
                }
            }
        }
    }

    /// Writes a finding as small as it gets quickly, if there are not enough of its kind.
    fn keep(&self, inputs: &Inputs, number: u64, how: &str, tally: &mut Tally) -> Result<()> {
        let input = inputs.get(number).context("the target has no seeds")?;
        let known = tally.findings.get(how).map_or(0, |(_, kept)| kept.len());
        let folder = self.corpus.join(self.target.name);
        let mut kept = None;
        if known < KEPT || how == HANG {
            let finding = Finding { target: self.target.name, folder: &folder, file: input.file };
            match finding.breaks(&input.bytes)? {
                // On a busy machine a pause looks like a hang.
                None if how == HANG => return Ok(()),
                Some(kind) if known < KEPT => {
                    kept = Some(finding.write(&finding.shrunk(input.bytes, &kind)?)?);
                }
                _ if known < KEPT => kept = Some(finding.write(&input.bytes)?),
                _ => {}
            }
        }
        let (count, files) = tally.findings.entry(how.to_owned()).or_default();
        *count += 1;
        files.extend(kept);
        Ok(())
    }
}

/// Where an input that broke its reader is to lie.
struct Finding<'a> {
    target: &'static str,
    folder: &'a Path,
    file: &'static str,
}

impl Finding<'_> {
    fn write(&self, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.folder.join(format!("{}-{}", &sha256_bytes(bytes)[..8], self.file));
        checkpoint::Staging::write(&path, bytes)?;
        Ok(path)
    }

    /// The kind of failure that these bytes make, by themselves.
    fn breaks(&self, bytes: &[u8]) -> Result<Option<String>> {
        let path = self.folder.join(format!("trial-{}", self.file));
        checkpoint::Staging::write(&path, bytes)?;
        let result = replay(self.target, &path);
        fs_err::remove_file(&path)?;
        // Messages name sizes, which change with the input.
        Ok(result?.err().map(|how| how.split(' ').next().unwrap_or_default().to_owned()))
    }

    /// Takes parts away as long as what is left breaks the reader in the same way.
    fn shrunk(&self, mut bytes: Vec<u8>, kind: &str) -> Result<Vec<u8>> {
        let until = Instant::now() + SHRINKING;
        let mut part = bytes.len() / 2;
        while 0 < part {
            let mut at = 0;
            while at < bytes.len() {
                if until < Instant::now() {
                    return Ok(bytes);
                }
                let mut fewer = bytes.clone();
                fewer.drain(at..(at + part).min(bytes.len()));
                if self.breaks(&fewer)?.as_deref() == Some(kind) {
                    bytes = fewer;
                } else {
                    at += part;
                }
            }
            part /= 2;
        }
        Ok(bytes)
    }
}

/// Feeds one kept file to its target in a process of its own; an error says how that broke.
pub(crate) fn replay(target: &str, path: &Path) -> Result<Result<String, String>> {
    let mut process =
        Process::start(&["replay".into(), target.to_owned(), path.to_string_lossy().into()])?;
    let said = match process.lines.recv_timeout(limit()) {
        Err(RecvTimeoutError::Timeout) => return Ok(Err(process.stop()?)),
        line => line.unwrap_or_default(),
    };
    Ok(process.end()?.map(|_| said))
}

/// A feeding process and what it says.
struct Process {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Process {
    fn start(arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("RUST_BACKTRACE", "0");
        // In memory, where flushing costs nothing.
        if Path::new("/dev/shm").is_dir() {
            command.env("TMPDIR", "/dev/shm");
        }
        let mut child = command.spawn()?;
        let (send, lines) = channel();
        let output = child.stdout.take().context("the output is a pipe")?;
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let (send, errors) = channel();
        let mut output = child.stderr.take().context("the output is a pipe")?;
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = output.read_to_end(&mut bytes);
            send.send(String::from_utf8_lossy(&bytes).into_owned())
        });
        Ok(Self { child, lines, errors })
    }

    /// Ends it, because it takes too long.
    fn stop(&mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(HANG.to_owned())
    }

    /// How it ended, which it has.
    fn end(&mut self) -> Result<Result<String, String>> {
        let status = self.child.wait()?;
        let errors = self.errors.recv().unwrap_or_default();
        Ok(if status.success() { Ok(errors) } else { Err(how_it_died(status, &errors)) })
    }
}

fn numbers(text: &str) -> Result<[u64; 3]> {
    let numbers: Vec<u64> = text.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    numbers.try_into().ok().context("a feeding process says other than three numbers")
}

fn how_it_died(status: ExitStatus, said: &str) -> String {
    if said.contains("memory allocation of") {
        return "memory".into();
    }
    if said.contains("overflowed its stack") {
        return "stack".into();
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    format!("{status} {last}")
}

/// Where a panic was, which tells kinds apart better than its message.
fn place(message: &str) -> String {
    let message = message.trim_matches('"').trim_start_matches("panicked at ");
    let place = message.split(":\\n").next().unwrap_or(message);
    // Of a crate from outside, without where it lies on this machine.
    let parts: Vec<&str> = place.rsplitn(5, '/').collect();
    parts
        .into_iter()
        .rev()
        .skip_while(|part| part.contains("registry"))
        .collect::<Vec<_>>()
        .join("/")
}
