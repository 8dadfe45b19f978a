//! `gradpruner finetune`.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use checkpoint::locate;
use finetune::{Backend, ComputeChoice, Group, Trainer};
use pipeline::{
    EncodedRows, Event, FinetuneMethod, FinetuneSettings, FinetuneTarget, HeldOut, LogTargets,
    Named, Stage, StageContext, TeacherOf, TeacherSettings, check_outputs, finetune_model,
};
use serde_json::json;

use crate::arguments::{ComputeArgs, DataArgs, TrainingArgs, method, size};
use crate::interrupt;
use crate::printer::{Outcome, Printer};
use crate::stages::kept_text;

/// Fine-tune a model, by LoRA or in full.
///
/// LoRA writes an adapter in PEFT format, full fine-tuning a whole checkpoint. If interrupted, the
/// same command resumes after the last saved step. Under torchrun several processes share each
/// step's rows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner finetune --model pruned --train train.jsonl --epochs 3 --out adapter")]
pub(crate) struct FinetuneArgs {
    /// Model: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// Rows to train on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    train: PathBuf,
    /// Parts to fine-tune: lora, full or head+last:3 (the head and this many of the last layers)
    #[arg(long, visible_alias = "trainable", default_value = "lora", value_parser = method)]
    method: FinetuneMethod,
    /// Folder for the adapter or checkpoint
    #[arg(long)]
    out: PathBuf,
    /// With LoRA: folder for the checkpoint with the adapter merged in
    #[arg(long)]
    merged: Option<PathBuf>,
    /// File for one line of figures per step, as in metrics.jsonl of `run`
    #[arg(long)]
    metrics: Option<PathBuf>,
    /// Folder for the same figures as TensorBoard event files
    #[arg(long)]
    tensorboard: Option<PathBuf>,
    /// Seed for the order of the rows and the initial adapters
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Maximum size of the tensors in one file
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// With --eval-every: training rows to hold out, a number or a share (128 rows at most)
    /// [default: 10%]
    #[arg(long, help_heading = "Fine-tuning", requires = "eval_every")]
    choose: Option<HeldOut>,
    /// Under torchrun: how the processes sum gradients
    #[arg(long, value_enum, default_value = "auto", help_heading = "Fine-tuning")]
    backend: BackendName,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// The type of the products, if it is left to the program: an interrupted training goes on in its own.
fn as_before(dtype: ComputeChoice, saves: &Path) -> anyhow::Result<ComputeChoice> {
    let Some(before) = Trainer::saved_compute_type(saves)? else { return Ok(dtype) };
    match dtype {
        ComputeChoice::Auto => return Ok(ComputeChoice::Fixed(before)),
        ComputeChoice::Fixed(now) if now != before => {
            tracing::warn!("the saved steps were computed in {before}, the others are in {now}");
        }
        ComputeChoice::Fixed(_) => {}
    }
    Ok(dtype)
}

/// A backend's name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum BackendName {
    /// NCCL between GPUs, where it can be used, else Gloo
    Auto,
    /// Gloo, through the computer's memory
    Gloo,
    /// NCCL, or stop
    Nccl,
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Self {
        match name {
            BackendName::Auto => Self::Auto,
            BackendName::Gloo => Self::Gloo,
            BackendName::Nccl => Self::Nccl,
        }
    }
}

pub(crate) fn run(args: FinetuneArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    interrupt::stop_after_the_step();
    let FinetuneArgs {
        model,
        train,
        method,
        out,
        merged,
        metrics,
        tensorboard,
        seed,
        shard_size,
        choose,
        backend,
        reading,
        training,
        compute,
    } = args;
    let context = || format!("cannot fine-tune `{model}` on `{}`", train.display());
    if let Some(meeting) = Group::described().with_context(context)? {
        printer.note(&format!("  waiting for all {meeting}"));
    }
    let group = Group::from_env().with_context(context)?;
    if group.is_none() && !matches!(backend, BackendName::Auto) {
        tracing::warn!("--backend is for several processes, and there is one");
    }
    let group = group.map(|group| Rc::new(group.with_backend(backend.into())));
    let is_first = group.as_ref().is_none_or(|group| group.rank() == 0);
    if !is_first {
        printer.be_quiet();
    }
    printer.event(Event::Started(Stage::Finetune));
    let folder = locate(&model).with_context(context)?;
    let outputs = [
        Named::of("--out", &*out),
        Named::of("--merged", merged.as_deref()),
        Named::of("--metrics", metrics.as_deref()),
        Named::of("--tensorboard", tensorboard.as_deref()),
    ];
    let inputs = [Named::of("--model", &*folder), Named::of("--train", &*train)];
    check_outputs(&outputs, &inputs).with_context(context)?;
    let target = FinetuneTarget {
        // Whatever slash the path ends in.
        saves: PathBuf::from(format!("{}.state", out.components().as_path().display())),
        target: out.clone(),
        merged,
        from: None,
        shard_bytes: shard_size,
        log: LogTargets { lines: metrics.as_deref(), events: tensorboard.as_deref() },
        stage: Stage::Finetune,
        group,
    };
    let (training, mut compute) = (training.settings(method), compute.settings());
    compute.dtype = as_before(compute.dtype, &target.saves).with_context(context)?;
    if let Some(group) = &target.group {
        compute = compute.agreed(group).with_context(context)?;
    }
    let stage = StageContext {
        model: &folder,
        data: &train,
        ignored: &reading.ignore_fields,
        held_out: training.validation.map(|_| choose.unwrap_or(HeldOut::Percent(10.0))),
        compute: &compute,
        seed,
        encoded: &EncodedRows::default(),
    };
    let teacher = training.teacher.as_ref().map(|TeacherSettings { model, adapter }| {
        let model = locate(model).with_context(context)?;
        let (adapter, origin, scales) = (adapter.clone(), None, Vec::new());
        Ok::<_, anyhow::Error>(TeacherOf { model, adapter, origin, scales })
    });
    let teacher = teacher.transpose()?;
    let settings =
        FinetuneSettings { method, training: &training, teacher: teacher.as_ref(), cut: None };
    let observe = &mut |event| printer.event(event);
    let report = finetune_model(stage, settings, &target, observe).with_context(context)?;
    if !is_first {
        return Ok(Outcome::nothing());
    }
    let speed = match report.tokens {
        0 => "already taken".to_owned(),
        tokens => format!(
            "{:.0} tokens/s, last loss {:.4}",
            tokens as f64 / report.seconds.max(1e-9),
            report.last_loss.unwrap_or(f64::NAN)
        ),
    };
    let kept = report.kept.map(|kept| format!("\n{}", kept_text(kept))).unwrap_or_default();
    let text = format!(
        "{} steps on {} rows, {} trained parameters, {speed}{kept}\nwritten to {}",
        report.steps,
        report.rows,
        report.trained_parameters,
        out.display()
    );
    Outcome::new(text, &json!({"out": out, "merged": target.merged, "report": report}))
}
