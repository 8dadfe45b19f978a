//! `gradpruner prune`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::locate;
use pipeline::{Event, Named, Stage, check_outputs};
use prune::{Plan, PruneReport, PruneSettings, apply};

use crate::arguments::size;
use crate::printer::{Outcome, Printer};

/// Write the pruned checkpoint of a plan.
///
/// Kept layers are copied byte for byte and renumbered, merged layers go into the layer before
/// them. A few hundred megabytes are held in memory, whatever the model's size.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner prune --model SmolLM2-135M --plan plan.json --record record --out pruned")]
pub(crate) struct PruneArgs {
    /// Model to prune: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// Plan that `gradpruner plan` wrote
    #[arg(long)]
    plan: PathBuf,
    /// Gradient record; needed if the plan merges layers
    #[arg(long)]
    record: Option<PathBuf>,
    /// Folder for the pruned checkpoint
    #[arg(long)]
    out: PathBuf,
    /// Most bytes of tensors in one file
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// Read the result back and compare every tensor with what the plan makes of the source
    #[arg(long)]
    verify: bool,
}

pub(crate) fn run(args: PruneArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let PruneArgs { model, plan, record, out, shard_size, verify } = args;
    let context = || format!("cannot prune `{model}`");
    let folder = locate(&model).with_context(context)?;
    let inputs = [
        Named::of("--model", &*folder),
        Named::of("--plan", &*plan),
        Named::of("--record", record.as_deref()),
    ];
    check_outputs(&[Named::of("--out", &*out)], &inputs).with_context(context)?;
    let settings = PruneSettings {
        model: folder,
        plan: Plan::read(&plan).with_context(|| format!("cannot use `{}`", plan.display()))?,
        record,
        target: out,
        shard_bytes: shard_size,
        verify,
    };
    printer.event(Event::Started(Stage::Prune));
    let report = apply(&settings, &mut |done, total| printer.event(Event::Tensors { done, total }))
        .with_context(context)?;
    Outcome::new(text(&report), &report)
}

fn text(report: &PruneReport) -> String {
    let PruneReport { target, before, after, verified_tensors, .. } = report;
    let line = |name: &str, before: u64, after: u64, unit: f64, suffix: &str| {
        let (x, y) = (before as f64 / unit, after as f64 / unit);
        format!("\n{name:<13}{x:>9.1}{suffix} → {y:>8.1}{suffix}  −{:.1} %", 100.0 * (1.0 - y / x))
    };
    let verified = verified_tensors.map_or_else(String::new, |count| {
        format!("\nverified     {count} tensors are what the plan makes of the source")
    });
    format!(
        "layers       {:>9} → {:>8}{}{}{}\nwritten to   {}{verified}",
        before.num_layers,
        after.num_layers,
        line("parameters", before.parameters, after.parameters, 1e6, " M"),
        line("FLOPs/token", before.flops_per_token, after.flops_per_token, 1e6, " M"),
        line("size", before.size_bytes, after.size_bytes, 1e6, " MB"),
        target.display(),
    )
}
