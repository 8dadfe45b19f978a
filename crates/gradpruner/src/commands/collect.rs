//! `gradpruner collect`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::{Checkpoint, locate};
use evidence::Evidence;
use pipeline::{
    Choice, CollectTargets, EncodedRows, Event, LogTargets, Named, Stage, StageContext,
    check_outputs, collect_record,
};
use selection::{Refine, Share};
use serde_json::json;

use crate::arguments::{ChoosingArgs, CollectingArgs, ComputeArgs, DataArgs, length};
use crate::commands::{ranking_text, require_scores};
use crate::interrupt;
use crate::printer::{Outcome, Printer};
use crate::stages::stability_text;

/// Collect the gradients of the first steps of a LoRA fine-tune.
///
/// The gradients are written to a record on disk, or, with --scores alone, only summed in memory.
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
    /// File for the layer scores, which are summed in memory
    #[arg(long)]
    scores: Option<PathBuf>,
    /// Layers to prune later, for judging the stability of the choice: a number, or a share
    #[arg(long, default_value = "40%")]
    prune: Share,
    /// Maximum tokens per row; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length)]
    max_length: usize,
    /// Seed for the order of the rows and the initial adapters
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    choosing: ChoosingArgs,
    #[command(flatten)]
    collecting: CollectingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: CollectArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    interrupt::stop_after_the_step();
    let CollectArgs {
        model,
        train,
        out,
        scores,
        prune,
        max_length,
        seed,
        reading,
        choosing,
        collecting,
        compute,
    } = args;
    printer.event(Event::Started(Stage::Collect));
    let context = || format!("cannot collect gradients of `{model}` on `{}`", train.display());
    if scores.is_some() {
        require_scores(choosing.criterion).with_context(context)?;
    }
    let folder = locate(&model).with_context(context)?;
    let outputs = [Named::of("--out", out.as_deref()), Named::of("--scores", scores.as_deref())];
    let inputs = [Named::of("--model", &*folder), Named::of("--train", &*train)];
    check_outputs(&outputs, &inputs).with_context(context)?;
    let record = out.as_deref();
    let ChoosingArgs { criterion, keep } = choosing;
    let choice = Some(Choice { criterion, prune, keep, refine: Refine::None, seed });
    let (log, compute) = (LogTargets::default(), compute.settings());
    let targets = CollectTargets { record, state: None, model_name: &model, log, choice };
    let stage = StageContext {
        model: &folder,
        data: &train,
        ignored: &reading.ignore_fields,
        held_out: None,
        compute: &compute,
        seed,
        encoded: &EncodedRows::default(),
    };
    let observe = &mut |event| printer.event(event);
    let found = collect_record(stage, &collecting.settings(max_length), targets, observe)
        .with_context(context)?;
    let mut text = format!("collected {} steps", found.steps.len());
    if let Some(out) = &out {
        text.push_str(&format!(" in {}", out.display()));
    }
    if let Some(stability) = found.stability {
        text.push_str(&format!("\n{}", stability_text(&stability)));
    }
    let (steps, stability) = (json!(found.steps), found.stability);
    let block_influence = found.activations.block_influence.clone();
    if let Some(path) = &scores {
        let model = Checkpoint::open(&folder).with_context(context)?;
        let mut seen = Evidence { model: Some(&model), ..found.evidence() };
        let scores = criterion.scores(&mut seen).with_context(context)?;
        scores.write(path)?;
        text.push_str(&format!("\n{}", ranking_text(&scores)));
    }
    Outcome::new(
        text,
        &json!({"record": out, "scores": scores, "steps": steps, "stability": stability, "block_influence": block_influence}),
    )
}
