//! `gradpruner plan`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::{Checkpoint, Record, locate};
use evidence::Evidence;
use pipeline::{Named, check_outputs, layer_strip};
use selection::{Criterion, Keep, Plan, Scores, Selection, Share};

use crate::arguments::{RepairArgs, criterion};
use crate::printer::Outcome;

/// Decide which layers to prune, and what is done to the others.
///
/// The lowest-scored layers are pruned, but for those that are kept by their place. The plan is a small JSON file,
/// made to be read and edited.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  gradpruner plan scores.json --prune 40% --out plan.json
  gradpruner plan record --criterion last --prune 40% --out plan.json")]
pub(crate) struct PlanArgs {
    /// Scores that `gradpruner score` wrote, or the folder of a record
    evidence: PathBuf,
    /// How many layers to prune: a number, or a share such as 40%
    #[arg(long)]
    prune: Share,
    /// Of a record: what makes a layer go [default: igia]
    #[arg(long, value_parser = criterion())]
    criterion: Option<Criterion>,
    /// Of a record: the model, for criteria that read its weights
    #[arg(long)]
    model: Option<String>,
    /// Layers that are never pruned: guard (the first 12 % and the last), none, or such as first:4,last:1
    #[arg(long, default_value = "guard")]
    keep: Keep,
    /// For the criterion random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File for the plan
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    repairing: RepairArgs,
}

pub(crate) fn run(args: PlanArgs) -> anyhow::Result<Outcome> {
    let PlanArgs { evidence, prune, criterion, model, keep, seed, out, repairing } = args;
    let context = || format!("cannot plan from `{}`", evidence.display());
    let (outputs, inputs) =
        ([Named::of("--out", out.as_deref())], [Named::of("the evidence", &*evidence)]);
    check_outputs(&outputs, &inputs).with_context(context)?;
    let (num_layers, selection) = match evidence.is_dir() {
        true => of_record(&evidence, criterion, model.as_deref(), (prune, keep, seed)),
        false => of_scores(&evidence, criterion, (prune, keep, seed)),
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

fn of_record(
    folder: &Path,
    criterion: Option<Criterion>,
    model: Option<&str>,
    (prune, keep, seed): (Share, Keep, u64),
) -> anyhow::Result<(usize, Selection)> {
    let criterion = criterion.unwrap_or(Criterion::IGIA);
    let model = model.map(|name| anyhow::Ok(Checkpoint::open(&locate(name)?)?)).transpose()?;
    let record = Record::open(folder)?;
    let mut seen = Evidence::of_record(&record, criterion.all_needs())?;
    seen.model = model.as_ref();
    let request = criterion.request(record.num_layers(), prune, keep, seed)?;
    Ok((record.num_layers(), criterion.select(&mut seen, &request)?))
}

fn of_scores(
    file: &Path,
    criterion: Option<Criterion>,
    (prune, keep, seed): (Share, Keep, u64),
) -> anyhow::Result<(usize, Selection)> {
    let scores = Scores::read(file)?;
    if let Some(asked) = criterion.filter(|criterion| *criterion != scores.criterion) {
        anyhow::bail!(
            "it holds scores by {}, and --criterion says {}; leave it out, or plan from a record",
            scores.criterion.name(),
            asked.name()
        );
    }
    let num_layers = scores.layers.len();
    let request = scores.criterion.request(num_layers, prune, keep, seed)?;
    let removed = request.first_of(scores.ranking());
    Ok((num_layers, Selection { removed, scores: Some(scores) }))
}
