//! `gradpruner plan`.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use checkpoint::{Checkpoint, Record, locate};
use evidence::LossProbe;
use pipeline::{Choice, EncodedRows, LossesOf, Named, StageContext, check_outputs, with_losses};
use selection::{Criterion, Keep, Plan, Refine, Scores, Share};

use crate::arguments::{ComputeArgs, DataArgs, RepairArgs, criterion, length};
use crate::printer::{Outcome, Printer};
use crate::stages::layer_strip;

/// Decide which layers to prune, and how to repair the others.
///
/// The lowest-scored layers are pruned, except those that are kept by their place. The plan is a small JSON file,
/// meant to be read and edited.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  gradpruner plan scores.json --prune 40% --out plan.json
  gradpruner plan record --criterion last --prune 40% --out plan.json")]
pub(crate) struct PlanArgs {
    /// Scores written by `gradpruner score`, or the folder of a record
    evidence: PathBuf,
    /// Layers to prune: a number, or a share such as 40%
    #[arg(long)]
    prune: Share,
    /// With a record: criterion that selects the layers to remove [default: igia]
    #[arg(long, value_parser = criterion())]
    criterion: Option<Criterion>,
    /// With a record: the model, for criteria that read its weights or run it
    #[arg(long)]
    model: Option<String>,
    /// Rows to choose layers by, for criteria that take losses and for --refine: a data file, a folder of them, or
    /// hub:owner/name
    #[arg(long, requires = "model")]
    train: Option<PathBuf>,
    /// none, or swap: exchange pruned and kept layers as long as less is lost on the rows
    #[arg(long, default_value = "none")]
    refine: Refine,
    /// Maximum tokens per row; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length)]
    max_length: usize,
    /// Layers never to prune: guard (the first 12 % and the last), none, or counts such as first:4,last:1
    #[arg(long, default_value = "guard")]
    keep: Keep,
    /// Seed for the criterion random, and for the rows that layers are chosen by
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File for the plan
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    repairing: RepairArgs,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: PlanArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let PlanArgs {
        evidence,
        prune,
        criterion,
        model,
        train,
        refine,
        max_length,
        keep,
        seed,
        out,
        repairing,
        reading,
        compute,
    } = args;
    let context = || format!("cannot plan from `{}`", evidence.display());
    let outputs = [Named::of("--out", out.as_deref())];
    let inputs = [
        Named::of("the evidence", &*evidence),
        Named::of("--train", train.as_deref()),
        Named::of("--model", model.as_deref().map(Path::new)),
    ];
    check_outputs(&outputs, &inputs).with_context(context)?;
    let (model, compute) =
        (model.as_deref().map(locate).transpose().with_context(context)?, compute.settings());
    let checkpoint = model.as_deref().map(Checkpoint::open).transpose().with_context(context)?;
    let source = Source::open(&evidence, criterion).with_context(context)?;
    let choice = Choice { criterion: source.criterion(), prune, keep, refine, seed };
    let num_layers = source.num_layers();
    if let Some(found) = checkpoint.as_ref().map(Checkpoint::num_layers)
        && found != num_layers
    {
        return Err(anyhow!("it is of {num_layers} layers, and the model has {found}"))
            .with_context(context);
    }
    let choose = |losses: Option<&mut dyn LossProbe>| match source {
        Source::Record(record, _) => choice.of_record(&record, checkpoint.as_ref(), losses),
        Source::Scores(scores) => choice.of_scores(scores, losses),
    };
    let selection = match model.as_deref().zip(train.as_deref()) {
        Some((model, data)) if choice.needs_losses() => {
            let stage = StageContext {
                model,
                data,
                ignored: &reading.ignore_fields,
                held_out: None,
                compute: &compute,
                seed,
                encoded: &EncodedRows::default(),
            };
            let of = LossesOf { max_tokens: max_length, adapters: None };
            let observe = &mut |event| printer.event(event);
            with_losses(stage, of, observe, |losses| choose(Some(losses)))
        }
        _ => choose(None),
    }
    .with_context(context)?;
    let plan = Plan::of(num_layers, &selection, &repairing.settings()).with_context(context)?;
    if let Some(out) = out {
        plan.write(&out)?;
    }
    let mut text = layer_strip(&plan);
    for merge in &plan.merges {
        text.push_str(&format!("\nlayers {:?} merge into layer {}", merge.from, merge.into));
    }
    Outcome::new(text, &plan)
}

/// The basis for choosing layers.
enum Source {
    Record(Box<Record>, Criterion),
    Scores(Scores),
}

impl Source {
    fn open(path: &Path, criterion: Option<Criterion>) -> anyhow::Result<Self> {
        if path.is_dir() {
            let record = Box::new(Record::open(path)?);
            return Ok(Self::Record(record, criterion.unwrap_or(Criterion::IGIA)));
        }
        let scores = Scores::read(path)?;
        match criterion.filter(|criterion| *criterion != scores.criterion) {
            None => Ok(Self::Scores(scores)),
            Some(asked) => bail!(
                "it holds scores by {}, and --criterion says {}; leave it out, or plan from a record",
                scores.criterion.name(),
                asked.name()
            ),
        }
    }

    fn criterion(&self) -> Criterion {
        match self {
            Self::Record(_, criterion) => *criterion,
            Self::Scores(scores) => scores.criterion,
        }
    }

    fn num_layers(&self) -> usize {
        match self {
            Self::Record(record, _) => record.num_layers(),
            Self::Scores(scores) => scores.layers.len(),
        }
    }
}
