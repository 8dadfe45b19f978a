//! All that is printed: results on standard output, progress and errors on standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dataset::RowCounts;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pipeline::{Event, Stage};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::allocator;
use crate::comparison::{Progress, cell_text};
use crate::stages::{
    collapsed_text, criteria_text, done_text, figures_text, look_text, stage_text, trial_text,
    tried_amount_text,
};
use crate::texts::{
    comparison_needs_text, computing_text, fitted_text, needs_text, reconstructed_text, rows_text,
    scaled_text,
};
use crate::units::{elapsed_text, layers_text};

/// A command's result, for people and for programs.
#[derive(Debug)]
pub(crate) struct Outcome {
    text: String,
    json: serde_json::Value,
}

impl Outcome {
    pub(crate) fn new(
        text: impl Into<String>,
        result: &impl serde::Serialize,
    ) -> anyhow::Result<Self> {
        Ok(Self { text: text.into(), json: serde_json::to_value(result)? })
    }

    /// No result, where another process of a group prints it.
    pub(crate) fn nothing() -> Self {
        Self { text: String::new(), json: serde_json::Value::Null }
    }
}

/// The bar on the screen, if any; log lines have to go above it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Seconds between progress lines where there is no screen to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// What a result that could not be written says; files it speaks of are there.
const UNWRITTEN: &str = "the result could not be written to standard output";

pub(crate) struct Printer {
    json: bool,
    quiet: bool,
    screen: bool,
    stage: Option<(Stage, Instant)>,
    /// Whether stages are those of a comparison's cells, which are told of as wholes.
    comparing: bool,
    /// What is best of the cells so far.
    compared: Progress,
    /// The rows that were last told of; stages of a run encode the same ones.
    counts: Option<RowCounts>,
    last_line: Instant,
    /// Whether the line about where and how it computes is out.
    told_computing: bool,
    /// Why streamed text could not be written.
    broken: Option<io::Error>,
}

impl Printer {
    pub(crate) fn new(json: bool, verbose: u8, quiet: bool) -> Self {
        let level = match (quiet, verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, _) => LevelFilter::DEBUG,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(AboveBar)
            .with_target(false)
            .without_time()
            .with_ansi(io::stderr().is_terminal())
            .init();
        let screen = io::stderr().is_terminal() && !quiet;
        Self {
            json,
            quiet,
            screen,
            stage: None,
            comparing: false,
            compared: Progress::default(),
            counts: None,
            last_line: Instant::now(),
            told_computing: false,
            broken: None,
        }
    }

    /// Says nothing from here on, where another process of a group does.
    pub(crate) fn be_quiet(&mut self) {
        self.quiet = true;
        self.screen = false;
    }

    /// Prints a command's result.
    pub(crate) fn outcome(&mut self, outcome: &Outcome) -> ExitCode {
        clear();
        if outcome.json.is_null() {
            return ExitCode::SUCCESS;
        }
        let text = if self.json { format!("{:#}", outcome.json) } else { outcome.text.clone() };
        self.write(&format!("{}\n", text.trim_end()));
        match self.broken.take() {
            // A reader that has gone away (`| head`) is no failure of ours.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                report_error(&anyhow::Error::new(error).context(UNWRITTEN))
            }
            _ => ExitCode::SUCCESS,
        }
    }

    /// Shows text as it comes, as part of the result.
    pub(crate) fn stream(&mut self, text: &str) {
        if !self.json {
            self.write(text);
        }
    }

    /// Writes to standard output; once that has failed, no more.
    fn write(&mut self, text: &str) {
        if self.broken.is_none() {
            let mut out = io::stdout().lock();
            self.broken = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// A line on standard error.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(AboveBar, "{text}");
        }
    }

    /// Shows how far a push is; `file` is being sent.
    pub(crate) fn sending(&mut self, file: &str, done: u64, total: u64) {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000) as usize;
        self.progress(megabytes(done), megabytes(total), "MB", file);
    }

    /// As [`Printer::event`], where one stage follows another in one process.
    pub(crate) fn stage_event(&mut self, event: Event) {
        if let Event::Started(_) = event {
            allocator::give_back();
        }
        self.event(event);
    }

    /// Shows what happens in a run.
    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Computing(computing) => {
                // A run tells it again at every stage.
                if !self.told_computing {
                    self.told_computing = true;
                    self.note(&format!("  computing {}", computing_text(&computing)));
                }
            }
            Event::Needs(needs) => self.note(&format!("  needs {}", needs_text(&needs))),
            Event::Started(stage) => {
                clear();
                self.stage = Some((stage, Instant::now()));
                self.last_line = Instant::now();
            }
            Event::Found(_) | Event::Done(..) if self.comparing => clear(),
            Event::Found(stage) => self.note(&format!("  {}: already done", stage_text(stage))),
            Event::Done(stage, came_to) => {
                clear();
                let seconds = self.stage.map(|(_, started)| started.elapsed().as_secs());
                let time = match seconds {
                    Some(seconds) if seconds > 0 => format!(" [{}]", elapsed_text(seconds)),
                    _ => String::new(),
                };
                self.note(&format!("✓ {}: {}{time}", stage_text(stage), done_text(&came_to)));
            }
            Event::Encoded(counts) => self.rows(counts),
            Event::Fitted(run) => self.note(&format!("  {}", fitted_text(&run))),
            Event::Reconstructed(run) => self.note(&format!("  {}", reconstructed_text(&run))),
            Event::Scaled(cut) => self.note(&format!("  {}", scaled_text(&cut))),
            Event::Step(metrics) => {
                let text = format!(
                    "loss {:.4}, {:.0} tokens/s",
                    metrics.report.loss,
                    metrics.tokens_per_second()
                );
                self.progress(metrics.step, metrics.total_steps, "step", &text);
            }
            Event::Validated { trial, is_best } => {
                clear();
                self.note(&format!("  {}", look_text(&trial, is_best)));
            }
            Event::Tensors { done, total } => self.progress(done, total, "tensor", ""),
            Event::Cell { number, total, cell } => {
                clear();
                self.comparing = true;
                self.note(&format!("cell {number} of {total}: {}", cell_text(&cell)));
            }
            Event::ComparisonNeeds(needs) => {
                self.note(&format!("  needs {}", comparison_needs_text(&needs)));
            }
            Event::CellDone(cell) => {
                clear();
                for on in &cell.result.evaluations {
                    let figures = figures_text(on.after.acc, on.after.perplexity);
                    self.note(&format!("  ✓ {}: {figures}", on.data));
                }
                let line = self.compared.line(&cell);
                self.note(&format!("  {line}"));
            }
            Event::CellImpossible(reason) => {
                clear();
                self.note(&format!("  ✗ passed over: {reason}"));
            }
            Event::Trying { criteria, pruned } => {
                clear();
                let (names, layers) = (criteria_text(&criteria), layers_text(&pruned));
                self.note(&format!("  trying layers {layers}, by {names}"));
            }
            Event::Tried { criteria, trial } => {
                clear();
                self.note(&format!("    {}: {}", criteria_text(&criteria), trial_text(&trial)));
            }
            Event::TriedAmount(tried) => {
                clear();
                self.note(&format!("  {}", tried_amount_text(&tried)));
            }
            Event::Collapsed { trial, pruned } => {
                clear();
                tracing::warn!("{}", collapsed_text(&trial, &pruned));
            }
            Event::Rows { done, total } => self.progress(done, total, "row", ""),
        }
    }

    /// Says what became of the rows to train on, once.
    fn rows(&mut self, counts: RowCounts) {
        if self.counts.replace(counts) == Some(counts) {
            return;
        }
        self.note(&format!("  {}", rows_text(&counts)));
        if counts.loses_much() {
            tracing::warn!(
                "a tenth of the rows or more does not fit `--max-length`; what is cut off is not \
                 learned (see `gradpruner inspect DATA --model M`)"
            );
        }
    }

    fn progress(&mut self, done: usize, total: usize, unit: &str, text: &str) {
        let stage =
            self.stage.map_or_else(String::new, |(stage, _)| format!("{}: ", stage_text(stage)));
        if self.screen {
            let mut bar = lock();
            let bar = bar.get_or_insert_with(|| new_bar(total));
            bar.set_position(done as u64);
            bar.set_message(format!("{stage}{unit} {done}/{total} {text}"));
        } else if !self.quiet && self.last_line.elapsed() > LINE_EVERY {
            self.last_line = Instant::now();
            self.note(&format!("  {stage}{unit} {done}/{total} {text}"));
        }
    }
}

/// Whether results go to a terminal that shows colours.
pub(crate) fn wants_colour() -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    io::stdout().is_terminal() && !plain
}

fn clear() {
    if let Some(bar) = lock().take() {
        bar.finish_and_clear();
    }
}

/// Prints an error and what brought it about.
pub(crate) fn report_error(error: &anyhow::Error) -> ExitCode {
    clear();
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if cause != last {
            let _ = write!(text, "\n  because: {cause}");
        }
        last = cause;
    }
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::FAILURE
}

fn lock() -> std::sync::MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn new_bar(total: usize) -> ProgressBar {
    let bar =
        ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr_with_hz(8));
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}, {eta} left") {
        bar.set_style(style.progress_chars("█▌ "));
    }
    bar
}

/// Standard error, above the bar.
struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &*lock() {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBar {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
