//! `gradpruner completions`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use serde_json::json;

use crate::Cli;
use crate::printer::Outcome;

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner completions bash > ~/.local/share/bash-completion/completions/gradpruner")]
pub(crate) struct CompletionsArgs {
    /// Shell to print completions for
    shell: Shell,
}

pub(crate) fn run(args: CompletionsArgs) -> anyhow::Result<Outcome> {
    let CompletionsArgs { shell } = args;
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "gradpruner", &mut script);
    let script = String::from_utf8(script)?;
    Outcome::new(script.clone(), &json!({"shell": shell.to_string(), "script": script}))
}
