//! `gradpruner score`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::Record;
use prune::{Criterion, score};

use crate::arguments::criterion;
use crate::commands::ranking_text;
use crate::printer::Outcome;

/// Score the layers of a gradient record.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner score record --criterion igia --out scores.json")]
pub(crate) struct ScoreArgs {
    /// Folder of the record
    record: PathBuf,
    /// What makes a layer important: igia (the paper's), igia-fro (its code's), bi (block influence)
    #[arg(long, default_value = "igia", value_parser = criterion())]
    criterion: Criterion,
    /// File for the scores
    #[arg(long)]
    out: Option<PathBuf>,
    /// Compare the record with its checksums first
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(args: ScoreArgs) -> anyhow::Result<Outcome> {
    let ScoreArgs { record, criterion, out, verify } = args;
    let context = || format!("cannot score `{}`", record.display());
    let opened = Record::open(&record).with_context(context)?;
    if verify {
        opened.verify().with_context(context)?;
    }
    let scores = score(&opened, criterion).with_context(context)?;
    if let Some(out) = out {
        scores.write(&out)?;
    }
    Outcome::new(ranking_text(&scores), &scores)
}
