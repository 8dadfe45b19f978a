//! The command line: flags in, one result out.

mod allocator;
mod arguments;
mod card;
mod command_line;
mod commands;
mod comparison;
mod config;
#[cfg(target_os = "linux")]
mod cut_short;
mod interrupt;
mod machine;
mod models;
mod page;
mod printer;
mod report;
mod stages;
mod table;
mod texts;
mod units;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::Command;
use crate::printer::{Printer, report_error};

/// Prune a language model while it is fine-tuned.
///
/// The gradients of the first steps of a LoRA fine-tune say which layers matter. The others go, and
/// a linear map stands in for each run of them; the rest is fine-tuned on, evaluated and
/// reported. What comes out is an ordinary Hugging Face checkpoint.
#[derive(Debug, Parser)]
#[command(name = "gradpruner", version, arg_required_else_help = true, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print the result as one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Say more: -v for details, -vv for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say nothing but the result and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

const EXAMPLE: &str = "Example:
  gradpruner run --model SmolLM2-135M --train train.jsonl --eval test.jsonl \\
      --prune 33% --out run

Each stage is a command of its own too: collect, score, plan, prune, finetune, eval.";

fn main() -> ExitCode {
    allocator::keep_pages();
    let typed = match config::expanded(std::env::args_os().collect()) {
        Ok(typed) => typed,
        Err(error) => return report_error(&error),
    };
    let Cli { command, json, verbose, quiet } = Cli::parse_from(typed);
    let mut printer = Printer::new(json, verbose, quiet);
    #[cfg(target_os = "linux")]
    cut_short::report();
    match command.run(&mut printer) {
        Ok(outcome) => printer.outcome(&outcome),
        Err(error) => report_error(&error),
    }
}
