//! `gradpruner prune`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use checkpoint::{Checkpoint, CheckpointError, Record, locate, remove_if_there};
use pipeline::{
    Done, EncodedRows, Event, FitTarget, Judged, LossesOf, Named, Stage, StageContext, beside,
    check_outputs, digest_data, fit_name, fit_repair, judge_repair,
};
use repair::{PruneReport, PruneSettings, RepairError, apply};
use selection::{Plan, Repair, RepairNeed};

use crate::arguments::{ComputeArgs, DataArgs, LinearMapArgs, length, repair as by_name, size};
use crate::printer::{Outcome, Printer};

/// Write the pruned checkpoint of a plan.
///
/// Kept layers are copied byte for byte and renumbered, except for the weights that the plan's repair changes: merged
/// layers are added to the layer before them, and a fit on rows changes the layers around each run of pruned layers.
/// Without a fit, memory use is a few hundred megabytes, whatever the model's size.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner prune --model SmolLM2-135M --plan plan.json --train train.jsonl --out pruned")]
pub(crate) struct PruneArgs {
    /// Model to prune: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// Plan written by `gradpruner plan`
    #[arg(long)]
    plan: PathBuf,
    /// Gradient record; needed if the plan merges layers
    #[arg(long)]
    record: Option<PathBuf>,
    /// Rows to fit the repair on, if it needs a fit: a data file, a folder of them, or hub:owner/name
    /// [default: those of the record]
    #[arg(long)]
    train: Option<PathBuf>,
    /// Keep the repair only if less is lost with it on rows of --train (or of the record), as `run` does; without it the
    /// repair is always kept, and `weighted` takes the whole step unless the plan says another
    #[arg(long)]
    judge: bool,
    /// Repair to use instead of the plan's
    #[arg(long, value_parser = by_name())]
    repair: Option<Repair>,
    /// Folder for the pruned checkpoint
    #[arg(long)]
    out: PathBuf,
    /// Maximum tokens per row; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length)]
    max_length: usize,
    /// Seed for the choice of rows to fit the repair on
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Maximum size of the tensors in one file
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// Read the result back and compare every tensor with the one that the plan makes from the source
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    maps: LinearMapArgs,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: PruneArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let PruneArgs {
        model,
        plan,
        record,
        train,
        judge,
        repair,
        out,
        max_length,
        seed,
        shard_size,
        verify,
        maps,
        reading,
        compute,
    } = args;
    let context = || format!("cannot prune `{model}`");
    let folder = locate(&model).with_context(context)?;
    let inputs = [
        Named::of("--model", &*folder),
        Named::of("--plan", &*plan),
        Named::of("--record", record.as_deref()),
        Named::of("--train", train.as_deref()),
    ];
    check_outputs(&[Named::of("--out", &*out)], &inputs).with_context(context)?;
    if out.exists() {
        let taken = CheckpointError::Exists { path: out };
        return Err(taken).with_context(context);
    }
    let read = Plan::read(&plan).with_context(|| format!("cannot use `{}`", plan.display()))?;
    let plan = match repair {
        Some(repair) => read.with_repair(repair).with_context(context)?,
        None => read,
    };
    let source = Checkpoint::open(&folder).with_context(context)?;
    require_runnable(&source, plan.repair()).with_context(context)?;
    if !source.outline().is_tried() {
        tracing::warn!(
            "pruning was not tried on the family {}; check that transformers loads the result and that it replies sensibly",
            source.outline().family()
        );
    }
    let train = train.or_else(|| rows_of(record.as_deref()));
    let compute = compute.settings();
    let encoded = EncodedRows::default();
    let on_rows = train.as_deref().map(|data| StageContext {
        model: &folder,
        data,
        ignored: &reading.ignore_fields,
        held_out: None,
        compute: &compute,
        seed,
        encoded: &encoded,
    });
    let fitted = match plan.repair() {
        repair if repair.needs(RepairNeed::Fit) => {
            let none = RepairError::NoFit { repair };
            let on_rows = on_rows.ok_or(none).with_context(context)?;
            printer.event(Event::Started(Stage::Fit));
            // Left there by a command that was stopped.
            let target = beside(&out, fit_name(repair).unwrap_or("fit"));
            remove_if_there(&target).with_context(context)?;
            let fit_target = FitTarget {
                plan: &plan,
                model_name: &model,
                max_tokens: max_length,
                adapters: None,
                target: &target,
            };
            let observe = &mut |event| printer.event(event);
            fit_repair(on_rows, &maps.settings(), fit_target, observe).with_context(context)?;
            Some(target)
        }
        _ => None,
    };
    let settings = PruneSettings {
        model: folder.clone(),
        plan,
        record,
        fitted: fitted.clone(),
        target: out,
        shard_bytes: shard_size,
        verify,
    };
    let judging = judge.then_some(Judging { on_rows, max_length });
    let report = carry_out(settings, judging, printer).with_context(context);
    if let Some(maps) = fitted {
        remove_if_there(&maps).with_context(context)?;
    }
    let report = report?;
    Outcome::new(text(&report), &report)
}

/// On what the plan's repair is judged.
struct Judging<'a> {
    on_rows: Option<StageContext<'a>>,
    max_length: usize,
}

/// Writes the pruned checkpoint; with its repair, if that is judged, only if less is lost.
fn carry_out(
    mut settings: PruneSettings,
    judging: Option<Judging<'_>>,
    printer: &mut Printer,
) -> anyhow::Result<PruneReport> {
    let out = settings.target.clone();
    if let Some(Judging { on_rows, max_length }) = judging
        && settings.plan.repair() != Repair::Drop
    {
        let on_rows = on_rows.context("--judge needs rows: give --train")?;
        printer.event(Event::Started(Stage::Judge));
        let aside = beside(&out, "candidate");
        let judged = PruneSettings { target: aside.clone(), ..settings.clone() };
        let of = LossesOf { max_tokens: max_length, adapters: None };
        let observe = &mut |event| printer.event(event);
        let Judged { verdict, written } = judge_repair(on_rows, of, &judged, false, observe)?;
        settings.plan = verdict.plan.clone();
        printer.event(Event::Done(Stage::Judge, Done::Judged(Box::new(verdict))));
        if let Some(report) = written {
            fs_err::rename(&aside, &out)?;
            return Ok(PruneReport { target: out, ..report });
        }
    }
    printer.event(Event::Started(Stage::Prune));
    let mut tensors = |done, total| printer.event(Event::Tensors { done, total });
    Ok(apply(&settings, &mut tensors)?)
}

/// Refuses a repair that is fitted by running the model, if that cannot be run here.
fn require_runnable(model: &Checkpoint, repair: Repair) -> anyhow::Result<()> {
    if repair.needs(RepairNeed::Fit) && model.trained_config().is_none() {
        bail!(
            "the plan repairs by `{repair}`, which is fitted by running the model, and a {} model cannot be run here; \
             take `--repair drop`, or plan with same-sign, weighted or laco",
            model.outline().family()
        );
    }
    Ok(())
}

/// The rows that a record was collected on, if they are still the same.
fn rows_of(record: Option<&Path>) -> Option<PathBuf> {
    let record = Record::open(record?).ok()?;
    let data = record.manifest()?.data.as_ref()?;
    let path = PathBuf::from(&data.path);
    (digest_data(&path).ok()? == data.sha256).then_some(path)
}

fn text(report: &PruneReport) -> String {
    let PruneReport { target, repair, step, before, after, verified_tensors, .. } = report;
    let line = |name: &str, before: u64, after: u64, unit: f64, suffix: &str| {
        let (x, y) = (before as f64 / unit, after as f64 / unit);
        format!("\n{name:<13}{x:>9.1}{suffix} → {y:>8.1}{suffix}  −{:.1} %", 100.0 * (1.0 - y / x))
    };
    let verified = verified_tensors.map_or_else(String::new, |count| {
        format!("\nverified     {count} tensors are what the plan makes of the source")
    });
    let step = match *step {
        None => String::new(),
        Some(0.0) => format!("\nrepair       `{repair}` is refused: its step is 0"),
        Some(step) => format!("\nrepair       `{repair}` by a step of {step}"),
    };
    format!(
        "layers       {:>9} → {:>8}{}{}{}{step}\nwritten to   {}{verified}",
        before.num_layers,
        after.num_layers,
        line("parameters", before.parameters, after.parameters, 1e6, " M"),
        line("FLOPs/token", before.flops_per_token, after.flops_per_token, 1e6, " M"),
        line("size", before.size_bytes, after.size_bytes, 1e6, " MB"),
        target.display(),
    )
}
