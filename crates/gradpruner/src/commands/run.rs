//! `gradpruner run`.

use std::path::PathBuf;

use anyhow::Context;
use pipeline::{FinetuneMethod, RunSettings, layer_strip, run as run_all, table_text};
use selection::Share;

use crate::arguments::{
    ChoosingArgs, CollectingArgs, ComputeArgs, DataArgs, EvaluationArgs, LinearMapArgs,
    RefiningArgs, RepairArgs, TrainingArgs, size,
};
use crate::card;
use crate::interrupt;
use crate::printer::{Outcome, Printer};

/// Collect gradients, score, plan, prune and repair, fine-tune, evaluate and report.
///
/// Everything goes into one folder. Each stage is complete or absent there: the same command run
/// again goes on after the last complete stage and, inside training, after the last saved step.
/// The collected steps are the first of the fine-tuning: the layers that stay keep their adapters,
/// and the optimizer, the data and the schedule go on.
#[derive(Debug, clap::Args)]
// Without it the collected steps have the fine-tuning's settings.
#[command(mut_args(|arg| match arg.get_id().as_str().starts_with("collect_") {
    true => arg.requires("restart").help_heading("Collecting with --restart"),
    false => arg,
}))]
#[command(after_help = "Example:
  gradpruner run --model SmolLM2-135M --train train.jsonl --eval test.jsonl \\
      --prune 33% --with-dense --out run")]
pub(crate) struct RunArgs {
    /// Model: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// Rows to train on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    train: PathBuf,
    /// Rows to evaluate on, never trained on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    eval: Option<PathBuf>,
    /// How many layers to prune: a number, or a share such as 40%
    #[arg(long)]
    prune: Share,
    /// What of the pruned model to fine-tune: lora, full, head+last:3 or none
    #[arg(long, visible_alias = "trainable", default_value = "lora")]
    finetune: FinetuneMethod,
    /// Throw the collected steps away and fine-tune the pruned model from the start, as the paper's
    /// authors do; always so unless LoRA trains all weights of all layers
    #[arg(long)]
    restart: bool,
    /// Fine-tune the dense model alike, for comparison
    #[arg(long)]
    with_dense: bool,
    /// With LoRA: also write the checkpoint with the adapter merged in
    #[arg(long)]
    save_merged: bool,
    /// Write the steps as event files too, to `tensorboard/` in the run folder
    #[arg(long)]
    tensorboard: bool,
    /// Folder for the run
    #[arg(long)]
    out: PathBuf,
    /// Decides the rows' order and the initial adapters
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most bytes of tensors in one file
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    choosing: ChoosingArgs,
    #[command(flatten)]
    refining: RefiningArgs,
    #[command(flatten)]
    repairing: RepairArgs,
    #[command(flatten)]
    maps: LinearMapArgs,
    #[command(flatten)]
    collecting: CollectingArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: RunArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    interrupt::stop_after_the_step();
    let RunArgs {
        model,
        train,
        eval,
        prune,
        finetune,
        restart,
        with_dense,
        save_merged,
        tensorboard,
        out,
        seed,
        shard_size,
        reading,
        choosing,
        refining,
        repairing,
        maps,
        collecting,
        training,
        evaluation,
        compute,
    } = args;
    let max_tokens = training.max_tokens();
    let planning = repairing.settings();
    let settings = RunSettings {
        collect: collecting.settings(max_tokens),
        linear_map: maps.settings(),
        training: training.settings(finetune),
        evaluation: evaluation.settings(max_tokens),
        compute: compute.settings(),
        model,
        train,
        eval,
        ignore_fields: reading.ignore_fields,
        prune,
        keep: choosing.keep,
        criterion: choosing.criterion,
        refine: refining.refine,
        choose: refining.choose,
        repair: planning.repair,
        merge: planning.merge,
        density: planning.density,
        finetune,
        restart,
        with_dense,
        save_merged,
        tensorboard,
        seed,
        shard_bytes: shard_size,
    };
    let found = run_all(&settings, &out, &mut |event| printer.stage_event(event))
        .with_context(|| format!("the run in `{}` stopped", out.display()))?;
    card::write(&settings, &found).with_context(|| format!("`{}`", out.display()))?;
    let text = format!(
        "layers {}\n\n{}\n\nresult  {}\nreport  {}",
        layer_strip(&found.plan),
        table_text(&found.comparison),
        found.result.display(),
        found.report.display(),
    );
    Outcome::new(text, &found)
}
