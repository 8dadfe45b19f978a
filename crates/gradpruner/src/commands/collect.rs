//! `gradpruner collect`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::locate;
use pipeline::{CollectTargets, Event, Named, Stage, StageInputs, check_outputs, collect_record};
use prune::{Criterion, Share};
use serde_json::json;

use crate::arguments::{CollectingArgs, ComputeArgs, DataArgs, criterion, length};
use crate::commands::ranking_text;
use crate::printer::{Outcome, Printer};

/// Collect the gradients of the first steps of a LoRA fine-tune.
///
/// They go to a record on disk, or, with --scores alone, are only summed in memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner collect --model SmolLM2-135M --train train.jsonl --steps 40 --out record")]
pub(crate) struct CollectArgs {
    /// Model: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// Rows to train on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    train: PathBuf,
    /// Folder for the record
    #[arg(long, required_unless_present = "scores")]
    out: Option<PathBuf>,
    /// File for the layer scores, summed in memory meanwhile
    #[arg(long)]
    scores: Option<PathBuf>,
    /// What makes a layer important, for --scores and the stability of the order
    #[arg(long, default_value = "igia", value_parser = criterion())]
    criterion: Criterion,
    /// How many layers will be pruned, for the stability of the choice: a number, or a share
    #[arg(long, default_value = "40%")]
    prune: Share,
    /// Tokens of a row at most; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length)]
    max_length: usize,
    /// Decides the rows' order and the initial adapters
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    collecting: CollectingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: CollectArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let CollectArgs {
        model,
        train,
        out,
        scores,
        criterion,
        prune,
        max_length,
        seed,
        reading,
        collecting,
        compute,
    } = args;
    printer.event(Event::Started(Stage::Collect));
    let context = || format!("cannot collect gradients of `{model}` on `{}`", train.display());
    let folder = locate(&model).with_context(context)?;
    let outputs = [Named::of("--out", out.as_deref()), Named::of("--scores", scores.as_deref())];
    let inputs = [Named::of("--model", &*folder), Named::of("--train", &*train)];
    check_outputs(&outputs, &inputs).with_context(context)?;
    let record = out.as_deref();
    let targets = CollectTargets { record, state: None, model_name: &model, criterion, prune };
    let found = collect_record(
        StageInputs { model: &folder, data: &train, ignored: &reading.ignore_fields },
        &collecting.settings(max_length),
        &compute.settings(),
        seed,
        targets,
        &mut |event| printer.event(event),
    )
    .with_context(context)?;
    let mut text = format!("collected {} steps", found.steps.len());
    if let Some(out) = &out {
        text.push_str(&format!(" in {}", out.display()));
    }
    if criterion != Criterion::Bi {
        text.push_str(&format!("\n{}", found.stability));
    }
    if let Some(path) = &scores
        && let Some(scores) = found.scores(criterion)
    {
        scores.write(path)?;
        text.push_str(&format!("\n{}", ranking_text(&scores)));
    }
    let block_influence = &found.activations.block_influence;
    let (record, steps, stability) = (out, json!(found.steps), found.stability);
    Outcome::new(
        text,
        &json!({"record": record, "scores": scores, "steps": steps, "stability": stability, "block_influence": block_influence}),
    )
}
