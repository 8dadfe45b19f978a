//! The process that feeds a reader. It may die; whoever started it sees at which input.

use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::target::{Input, Inputs, Target};

/// What threads get by default; readers run in such.
const STACK_BYTES: usize = 2 << 20;

/// Which inputs to feed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Work {
    /// The reader
    #[arg(long)]
    pub(crate) target: String,
    /// Another seed makes other inputs
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The first input's number
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// How many inputs at most
    #[arg(long, default_value_t = u64::MAX)]
    pub(crate) count: u64,
    /// For how long at most
    #[arg(long, default_value_t = 1e9)]
    pub(crate) seconds: f64,
}

/// Feeds one input after the other. Before each a line says its number, how many were accepted so
/// far, and the slowest's milliseconds; the last line says the same with how many there were.
pub(crate) fn run(work: Work) -> Result<()> {
    let target = find(&work.target)?;
    in_small_stack(move || {
        let until = Instant::now() + Duration::from_secs_f64(work.seconds.min(1e9));
        let inputs = target.inputs(work.seed);
        let desk = Desk::new(target, &inputs)?;
        let (mut done, mut accepted, mut slowest) = (0, 0, Duration::ZERO);
        while done < work.count && Instant::now() < until {
            let number = work.from + done;
            let input = inputs.get(number).context("the target has no seeds")?;
            say(&format!("input {number} {accepted} {}", slowest.as_millis()))?;
            let started = Instant::now();
            match desk.feed(&input)? {
                Outcome::Accepted => accepted += 1,
                Outcome::Refused(_) => {}
                Outcome::Panicked(message) => say(&format!("panic {message:?}"))?,
            }
            slowest = slowest.max(started.elapsed());
            done += 1;
        }
        say(&format!("done {done} {accepted} {}", slowest.as_millis()))
    })
}

/// Feeds one file, which stands in a target's folder under the name after its first dash.
pub(crate) fn replay(target: &str, path: &Path) -> Result<()> {
    let target = find(target)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.split_once('-').map_or(name, |(_, name)| name).to_owned();
    let bytes = fs_err::read(path)?;
    in_small_stack(move || {
        let inputs = target.inputs(0);
        let seed = inputs.seeds.iter().find(|seed| seed.file == name);
        let file = seed.with_context(|| format!("`{name}` is no file of `{}`", target.name))?.file;
        match Desk::new(target, &inputs)?.feed(&Input { file, bytes })? {
            Outcome::Accepted => say("accepted"),
            Outcome::Refused(message) => say(&format!("refused {message}")),
            Outcome::Panicked(message) => Err(anyhow!("panicked: {message}")),
        }
    })
}

fn find(name: &str) -> Result<&'static Target> {
    Target::find(name).with_context(|| format!("there is no target `{name}`"))
}

fn in_small_stack(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work)?;
    thread.join().map_err(|_| anyhow!("the feeding itself panicked"))?
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

enum Outcome {
    Accepted,
    Refused(String),
    Panicked(String),
}

/// A folder with a target's files.
struct Desk<'a> {
    target: &'static Target,
    files: Vec<(&'static str, Vec<u8>)>,
    folder: Box<dyn AsRef<Path> + 'a>,
    panic: Arc<Mutex<String>>,
}

impl<'a> Desk<'a> {
    fn new(target: &'static Target, inputs: &'a Inputs) -> Result<Self> {
        let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
        for seed in &inputs.seeds {
            if files.iter().all(|(file, _)| *file != seed.file) {
                files.push((seed.file, seed.form.pack(&seed.form.render())));
            }
        }
        let panic = Arc::new(Mutex::new(String::new()));
        let noted = Arc::clone(&panic);
        panic::set_hook(Box::new(move |info| {
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
        }));
        let desk = Self { target, files, folder: Box::new(testkit::temporary_folder()), panic };
        for (file, bytes) in &desk.files {
            fs_err::write(desk.path().join(file), bytes)?;
        }
        Ok(desk)
    }

    fn path(&self) -> &Path {
        (*self.folder).as_ref()
    }

    fn feed(&self, input: &Input) -> Result<Outcome> {
        let path = self.path().join(input.file);
        fs_err::write(&path, &input.bytes)?;
        let read = || (self.target.read)(self.path(), input.file);
        let result = panic::catch_unwind(AssertUnwindSafe(read));
        for (file, bytes) in self.files.iter().filter(|(file, _)| *file == input.file) {
            fs_err::write(self.path().join(file), bytes)?;
        }
        Ok(match result {
            Ok(Ok(())) => Outcome::Accepted,
            Ok(Err(message)) => Outcome::Refused(message),
            Err(_) => {
                let message = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                Outcome::Panicked(message.clone())
            }
        })
    }
}
