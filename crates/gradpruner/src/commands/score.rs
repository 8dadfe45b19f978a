//! `gradpruner score`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::{Checkpoint, Record, locate};
use evidence::Evidence;
use pipeline::{Named, check_outputs};
use selection::Criterion;

use crate::arguments::criterion;
use crate::commands::{ranking_text, require_scores};
use crate::printer::Outcome;

/// Score the layers of a gradient record.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner score record --criterion igia --out scores.json")]
pub(crate) struct ScoreArgs {
    /// Folder of the record
    record: PathBuf,
    /// Criterion that scores the layers
    #[arg(long, default_value = "igia", value_parser = criterion())]
    criterion: Criterion,
    /// Model, for criteria that read its weights: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: Option<String>,
    /// File for the scores
    #[arg(long)]
    out: Option<PathBuf>,
    /// Check the record against its checksums first
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(args: ScoreArgs) -> anyhow::Result<Outcome> {
    let ScoreArgs { record, criterion, model, out, verify } = args;
    let context = || format!("cannot score `{}`", record.display());
    require_scores(criterion).with_context(context)?;
    let inputs =
        [Named::of("the record", &*record), Named::of("--model", model.as_deref().map(Path::new))];
    check_outputs(&[Named::of("--out", out.as_deref())], &inputs).with_context(context)?;
    let opened = Record::open(&record).with_context(context)?;
    if verify {
        opened.verify().with_context(context)?;
    }
    let open = |name: &String| anyhow::Ok(Checkpoint::open(&locate(name)?)?);
    let model = model.as_ref().map(open).transpose().with_context(context)?;
    let seen = Evidence::of_record(&opened, criterion.all_needs()).with_context(context)?;
    let mut seen = Evidence { model: model.as_ref(), ..seen };
    let scores = criterion.scores(&mut seen).with_context(context)?;
    if let Some(out) = out {
        scores.write(&out)?;
    }
    Outcome::new(ranking_text(&scores), &scores)
}
