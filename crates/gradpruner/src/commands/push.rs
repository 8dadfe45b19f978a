//! `gradpruner push`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::{PushEvent, PushReport, PushSettings, Pushed, PushedFile, push, read_json};

use crate::printer::{Outcome, Printer};
use crate::units::{counted, file_size_text};

/// Names of what is left out that fit in a line.
const NAMED: usize = 10;

/// Upload a model, an adapter or a GGUF file to a Hugging Face hub, as one commit.
///
/// Only what belongs to it goes: configuration, tokenizer, chat templates, safetensors and GGUF files, model card,
/// licence, plan and scores. What the hub has already is not sent again, and nothing is committed before everything is
/// there, so an interrupted push leaves the repository as it was and can be repeated.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  gradpruner push run/merged your-name/SmolLM2-pruned --private
  gradpruner push pruned.gguf your-name/SmolLM2-pruned-GGUF

The token in HF_TOKEN, or the one that `hf auth login` saved, needs write access; HF_ENDPOINT names another hub.")]
pub(crate) struct PushArgs {
    /// Folder in Hugging Face layout, or a .gguf file
    #[arg(value_name = "DIR")]
    what: PathBuf,
    /// Repository of the hub; it is made if it is not there
    #[arg(value_name = "OWNER/NAME")]
    name: String,
    /// Make the repository private; one that is public is refused
    #[arg(long)]
    private: bool,
    /// Branch to push to; it must be there
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    revision: String,
    /// Message of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload with gradpruner",
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    message: String,
}

pub(crate) fn run(args: PushArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let PushArgs { what, name, private, revision, message } = args;
    let settings = PushSettings { private, revision, message };
    warn_of_local_base(&what);
    let report = push(&what, &name, &settings, &mut |event| show(&event, printer))
        .with_context(|| format!("cannot push `{}` to `{name}`", what.display()))?;
    Outcome::new(text(&report), &report)
}

/// Warns of an adapter whose base model is a folder here: nobody else can load it.
fn warn_of_local_base(what: &Path) {
    let config = what.join("adapter_config.json");
    let Ok(config) = read_json::<serde_json::Value>(&config) else { return };
    if let Some(base) = config["base_model_name_or_path"].as_str()
        && Path::new(base).exists()
    {
        tracing::warn!(
            "the adapter names `{base}`, a folder of this machine, as its base model; push that too, and name it by its \
             hub name in adapter_config.json (base_model_name_or_path)"
        );
    }
}

fn show(event: &PushEvent<'_>, printer: &mut Printer) {
    match event {
        PushEvent::LeftOut(names) => printer.note(&format!("  left out: {}", some_of(names))),
        PushEvent::Removed(names) => {
            printer.note(&format!("  old weights removed: {}", some_of(names)));
        }
        PushEvent::Bytes { file, done, total } => printer.sending(file, *done, *total),
        PushEvent::File(PushedFile { file, size_bytes, outcome }) => {
            let what = match outcome {
                Pushed::Sent => "sent",
                Pushed::Known => "not sent, the hub knows its bytes",
                Pushed::Unchanged => "unchanged",
            };
            printer.note(&format!("  {file}, {}: {what}", file_size_text(*size_bytes)));
        }
    }
}

/// Names on one line, the first ones of many.
fn some_of(names: &[String]) -> String {
    let first = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        None | Some(0) => first,
        Some(more) => format!("{first} and {more} more"),
    }
}

fn text(report: &PushReport) -> String {
    let PushReport { url, revision, committed, commit, files, .. } = report;
    if !committed {
        return format!("{url} has all of it on branch {revision}; nothing was committed");
    }
    let new = files.iter().filter(|file| file.outcome != Pushed::Unchanged);
    let (count, bytes) =
        new.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.size_bytes));
    let commit = commit.as_ref().map_or_else(String::new, |commit| format!(", commit {commit}"));
    format!(
        "{} of {}, {}, committed to {url}, branch {revision}{commit}",
        count,
        counted(files.len(), "file"),
        file_size_text(bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_fits_in_a_line() {
        let names = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(some_of(&names(2)), "0, 1");
        assert_eq!(some_of(&names(10)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9");
        assert_eq!(some_of(&names(12)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }
}
