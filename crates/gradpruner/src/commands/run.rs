//! `gradpruner run`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::Staging;
use clap::builder::ArgPredicate;
use pipeline::{
    Choosing, FinetuneMethod, MaxDrop, RunOutcome, RunSettings, read_data, run as run_all,
};
use selection::Share;
use serde_json::json;

use crate::arguments::{CellArgs, CellInputs, RepairArgs, choosing};
use crate::card;
use crate::command_line::{keep, kept, this_command};
use crate::interrupt;
use crate::machine::Machine;
use crate::models::{model_rows, model_table, no_better_than_majority};
use crate::printer::{Outcome, Printer};
use crate::report::{self, Surroundings};
use crate::stages::layer_strip;

/// Collect gradients, score, plan, prune and repair, fine-tune, evaluate and report.
///
/// Everything is written to one folder. Each stage is complete or absent there: the same command
/// resumes after the last complete stage and, during training, after the last saved step.
/// The collected steps are the first steps of the fine-tuning: the layers that stay keep their
/// adapters, and the optimizer, the data and the schedule continue.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
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
    /// Layers to prune: a number, or a share such as 40%
    #[arg(
        long,
        required_unless_present = "max_drop",
        default_value_if("max_drop", ArgPredicate::IsPresent, "50%")
    )]
    prune: Option<Share>,
    /// How much may be lost on rows held out against the dense model fine-tuned the same way, such as 1% (a point of accuracy, or a
    /// hundredth more perplexity where rows have no choices): prunes as many layers as that allows, --prune at most [default: 50%]
    #[arg(long)]
    max_drop: Option<MaxDrop>,
    /// Criterion that selects the layers to remove
    #[arg(long, default_value = "best", value_parser = choosing(), help_heading = "Choosing layers")]
    criterion: Choosing,
    /// Parts of the pruned model to fine-tune: lora, lora+cuts (the layers next to a cut in full, adapters on the others),
    /// full, head+last:3 or none
    #[arg(long, visible_alias = "trainable", default_value = "lora")]
    finetune: FinetuneMethod,
    /// Also fine-tune the dense model the same way, for comparison
    #[arg(long)]
    with_dense: bool,
    /// With LoRA: also write the checkpoint with the adapter merged in
    #[arg(long)]
    save_merged: bool,
    /// Also write the steps as event files to `tensorboard/` in the run folder
    #[arg(long)]
    tensorboard: bool,
    /// Prune as the paper does (arXiv 2601.19503): the lowest layers by igia without a guard, three of them merged with density
    /// 0.2, fine-tuned from the start for three epochs; flags win
    // It stands for flags that are there by the time they are parsed (config.rs).
    #[arg(long)]
    paper: bool,
    /// Take the settings of another run from its run.toml; flags win
    // Its settings stand before the flags by the time they are parsed (config.rs).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for the run
    #[arg(long)]
    out: PathBuf,
    // First, since its own flags stand under the heading that comes before them.
    #[command(flatten)]
    cell: CellArgs,
    #[command(flatten)]
    repairing: RepairArgs,
}

impl RunArgs {
    /// The run's settings, and its folder.
    pub(crate) fn settings(self) -> (RunSettings, PathBuf) {
        let Self {
            model,
            train,
            eval,
            prune,
            max_drop,
            criterion,
            finetune,
            with_dense,
            save_merged,
            tensorboard,
            config: _,
            paper: _,
            out,
            repairing,
            cell,
        } = self;
        let planning = repairing.settings();
        // Clap asks for it, or fills it in.
        let prune = prune.unwrap_or(Share::Percent(50.0));
        let inputs = CellInputs { model, train, eval, prune, criterion, planning, finetune };
        let settings = cell.settings(inputs);
        (RunSettings { max_drop, with_dense, save_merged, tensorboard, ..settings }, out)
    }
}

pub(crate) fn run(args: RunArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    interrupt::stop_after_the_step();
    let (settings, out) = args.settings();
    let command = this_command();
    let mut kept = None;
    let observe = &mut |event| {
        // By the first event the folder is this run's.
        kept.get_or_insert_with(|| keep(&out, &command));
        printer.stage_event(event);
    };
    let found =
        run_all(&settings, &out, observe).with_context(|| match out.join("run.toml").exists() {
            true => format!("the run in `{}` stopped", out.display()),
            false => format!("the run in `{}` did not begin", out.display()),
        })?;
    let context = || format!("`{}`", out.display());
    kept.transpose().with_context(context)?;
    if found.evaluations.pruned_tuned.as_ref().and_then(no_better_than_majority).is_some() {
        tracing::warn!(
            "the result may be no better than always giving the most frequent answer; train longer \
             or on more rows, raise --lr, or prune fewer layers"
        );
    }
    let rows = model_rows(&found.evaluations);
    card::write(&found, &rows).with_context(context)?;
    let report = found.run.join("report.html");
    write_report(&found, &report).with_context(context)?;
    let text = format!(
        "layers {}\n\n{}\n\nresult  {}\nreport  {}",
        layer_strip(&found.plan),
        model_table(&rows).text(),
        found.result.display(),
        report.display(),
    );
    Outcome::new(
        text,
        &json!({
            "run": found.run, "plan": found.plan, "amount": found.amount, "scores": found.scores, "comparison": rows,
            "result": found.result, "report": report,
        }),
    )
}

/// Writes the page beside what it is about.
fn write_report(found: &RunOutcome, target: &Path) -> anyhow::Result<()> {
    let RunSettings { eval, ignore_fields, compute, .. } = &found.settings;
    let rows = eval.as_deref().map(|data| read_data(data, ignore_fields)).transpose()?;
    let around = Surroundings {
        settings: &fs_err::read_to_string(found.run.join("run.toml"))?,
        commands: &kept(&found.run)?,
        machine: &Machine::this(),
        device: &compute.computing()?.device,
        rows: &rows.unwrap_or_default(),
    };
    Ok(Staging::write(target, report::html(found, &around).as_bytes())?)
}
