//! `gradpruner plan`.

use std::path::PathBuf;

use anyhow::Context;
use pipeline::{Named, check_outputs, layer_strip};
use prune::{Plan, PlanSettings, Scores, Share};

use crate::arguments::share;
use crate::printer::Outcome;

/// Decide which layers to prune, and which of them to merge.
///
/// The lowest-scored layers are pruned; of these the highest-scored are merged, each into the
/// nearest kept layer before it. The plan is a small JSON file, made to be read and edited.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner plan scores.json --prune 40% --merge 3 --out plan.json")]
pub(crate) struct PlanArgs {
    /// Scores that `gradpruner score` wrote
    scores: PathBuf,
    /// How many layers to prune: a number, or a share such as 40%
    #[arg(long)]
    prune: Share,
    /// How many of the pruned layers to merge into the layer before them
    #[arg(long, default_value_t = 0)]
    merge: usize,
    /// Share of a merged layer's elements that is merged
    #[arg(long, default_value_t = 0.2, value_parser = share)]
    density: f64,
    /// File for the plan
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: PlanArgs) -> anyhow::Result<Outcome> {
    let PlanArgs { scores, prune, merge, density, out } = args;
    let context = || format!("cannot plan from `{}`", scores.display());
    let (outputs, inputs) =
        ([Named::of("--out", out.as_deref())], [Named::of("the scores", &*scores)]);
    check_outputs(&outputs, &inputs).with_context(context)?;
    let read = Scores::read(&scores).with_context(context)?;
    let plan =
        Plan::from_scores(&read, &PlanSettings { prune, merge, density }).with_context(context)?;
    if let Some(out) = out {
        plan.write(&out)?;
    }
    let mut text = layer_strip(&plan);
    for merge in &plan.merges {
        text.push_str(&format!("\nlayers {:?} merge into layer {}", merge.from, merge.into));
    }
    Outcome::new(text, &plan)
}
