//! `gradpruner estimate`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::{ModelConfig, locate_configuration};
use clap::builder::ArgPredicate;
use pipeline::{
    Choosing, Estimate, FinetuneMethod, MaxDrop, RunSettings, Sample, estimate, read_data,
    read_encoder,
};
use selection::Share;

use crate::arguments::{CellArgs, CellInputs, RepairArgs, choosing, positive};
use crate::printer::Outcome;
use crate::stages::stage_text;
use crate::texts::needs_text;
use crate::units::{bytes_text, time_text};

/// Estimate the memory, disk, floating-point operations and time that a run needs.
///
/// The model's configuration is enough; its weights are not read. Without rows to train on, rows
/// of the maximum length are assumed.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
// As in `run`.
#[command(mut_args(|arg| match arg.get_id().as_str().starts_with("collect_") {
    true => arg.requires("restart").help_heading("Collecting with --restart"),
    false => arg,
}))]
#[command(after_help = "Example:
  gradpruner estimate --model SmolLM2-135M --train train.jsonl --prune 40%")]
pub(crate) struct EstimateArgs {
    /// Model: a folder with a config.json, or a hub name
    #[arg(long)]
    model: String,
    /// Rows to train on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    train: Option<PathBuf>,
    /// Rows to evaluate on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    eval: Option<PathBuf>,
    /// Without --train: number of rows
    #[arg(long, default_value_t = 1000, value_parser = positive)]
    rows: usize,
    /// Layers to prune: a number, or a share such as 40%
    #[arg(
        long,
        default_value = "40%",
        default_value_if("max_drop", ArgPredicate::IsPresent, "50%")
    )]
    prune: Share,
    /// As in `run`: prune as many layers as lose no more, --prune at most
    #[arg(long)]
    max_drop: Option<MaxDrop>,
    /// Parts of the pruned model to fine-tune: lora, lora+cuts, full, head+last:3 or none
    #[arg(long, visible_alias = "trainable", default_value = "lora")]
    finetune: FinetuneMethod,
    /// Criterion that selects the layers to remove
    #[arg(long, default_value = "best", value_parser = choosing(), help_heading = "Choosing layers")]
    criterion: Choosing,
    /// Also fine-tune the dense model the same way
    #[arg(long)]
    with_dense: bool,
    /// With LoRA: also write the checkpoint with the adapter merged in
    #[arg(long)]
    save_merged: bool,
    /// Prune as the paper does (arXiv 2601.19503): the lowest layers by igia without a guard, three of them merged with density
    /// 0.2, fine-tuned from the start for three epochs; flags win
    // It stands for flags that are there by the time they are parsed (config.rs).
    #[arg(long)]
    paper: bool,
    /// Take the settings of a run from its run.toml; flags win
    // Its settings stand before the flags by the time they are parsed (config.rs).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accepted as in `run`; nothing is written
    #[arg(long)]
    out: Option<PathBuf>,
    /// Accepted as in `run`; its cost is negligible
    #[arg(long)]
    tensorboard: bool,
    // First, since its own flags stand under the heading that comes before them.
    #[command(flatten)]
    cell: CellArgs,
    #[command(flatten)]
    repairing: RepairArgs,
}

pub(crate) fn run(args: EstimateArgs) -> anyhow::Result<Outcome> {
    let EstimateArgs {
        model,
        train,
        eval,
        rows,
        prune,
        max_drop,
        finetune,
        criterion,
        with_dense,
        save_merged,
        paper: _,
        config: _,
        out: _,
        tensorboard: _,
        repairing,
        cell,
    } = args;
    let context = || format!("cannot tell what a run of `{model}` would need");
    let folder = locate_configuration(&model).with_context(context)?;
    let config = ModelConfig::read(&folder).with_context(context)?;
    let is_given = train.is_some();
    let inputs = CellInputs {
        model: model.clone(),
        train: train.unwrap_or_default(),
        eval,
        prune,
        criterion,
        planning: repairing.settings(),
        finetune,
    };
    let settings = RunSettings { max_drop, with_dense, save_merged, ..cell.settings(inputs) };
    let max_tokens = settings.training.max_tokens;
    let read = |path: &PathBuf| -> anyhow::Result<_> {
        Ok((
            read_data(path, &settings.ignore_fields).with_context(context)?,
            read_encoder(&folder).with_context(context)?,
        ))
    };
    // Rows that are held out are not trained on.
    let train_sample = if is_given {
        let (mut rows, encoder) = read(&settings.train)?;
        if let Some(share) = settings.held_out() {
            (rows, _) = share.split(rows, settings.seed).with_context(context)?;
        }
        Sample::training(&rows, &encoder, max_tokens).with_context(context)?
    } else {
        let held_out = settings.held_out().map_or(0, |share| share.of(rows));
        Sample::assumed(rows.saturating_sub(held_out).max(1), max_tokens)
    };
    let eval_sample = match settings.eval.as_ref().map(read).transpose()? {
        Some((rows, encoder)) => {
            let most = settings.evaluation.max_rows.unwrap_or(usize::MAX).min(rows.len());
            Some(Sample::evaluation(&rows[..most], &encoder, max_tokens).with_context(context)?)
        }
        None => None,
    };
    let found =
        estimate(&settings, &config, &train_sample, eval_sample.as_ref()).with_context(context)?;
    Outcome::new(text(&found), &found)
}

fn text(found: &Estimate) -> String {
    let mut text = format!(
        "{:28}{:>8}{:>12}{:>10}{:>10}{:>10}{:>10}\n",
        "stage", "steps", "tokens", "memory", "disk", "TFLOP", "time"
    );
    for stage in &found.stages {
        let or_none = |there: bool, text: String| if there { text } else { "–".into() };
        text.push_str(&format!(
            "{:28}{:>8}{:>12}{:>10}{:>10}{:>10}{:>10}\n",
            stage_text(stage.stage).to_owned() + if stage.remat { ", --remat" } else { "" },
            or_none(stage.steps > 0, stage.steps.to_string()),
            or_none(stage.tokens > 0.0, format!("{:.0}", stage.tokens)),
            or_none(stage.memory.total() > 0, bytes_text(stage.memory.total())),
            or_none(stage.disk_bytes > 0, bytes_text(stage.disk_bytes)),
            or_none(stage.flops > 0.0, format!("{:.1}", stage.flops / 1e12)),
            or_none(stage.flops > 0.0, time_text(stage.seconds)),
        ));
    }
    text.push_str(&format!(
        "\nneeds {}\nMemory is the peak on a CPU, including the mapped weights. The total on disk includes the largest saved \
         state of a training under way. Time is from the speed of matrix products in {} measured here just now.",
        needs_text(found),
        found.dtype,
    ));
    text
}
