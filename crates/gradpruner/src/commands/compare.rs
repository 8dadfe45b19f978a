//! `gradpruner compare`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use checkpoint::{Staging, read_json};
use pipeline::{Choosing, CompareSettings, Comparison, Event, FinetuneMethod, compare};
use selection::{Criterion, Density, PlanSettings, Repair, Share};

use crate::arguments::{CellArgs, CellInputs, choosing, duration, learning_rate, repair};
use crate::comparison::{csv, html, markdown, terminal};
use crate::interrupt;
use crate::printer::{Outcome, Printer};

/// Compare ways to prune a model: ratios, criteria, repairs, training methods and seeds, on the same rows.
///
/// Every combination is a cell. Cells share common results, the dense model is fine-tuned the same way, and the same
/// command resumes a stopped comparison. A further criterion or ratio costs only itself (but the first criterion that takes
/// losses holds rows out of training, and all cells are computed anew).
#[derive(Debug, clap::Args)]
// Without it the collected steps have the fine-tuning's settings.
#[command(mut_args(|arg| match arg.get_id().as_str().starts_with("collect_") {
    true => arg.requires("restart").help_heading("Collecting with --restart"),
    false => arg,
}))]
#[command(after_help = "Example:
  gradpruner compare --model SmolLM2-135M --train train.jsonl --eval test.jsonl \\
      --prune 20%,40% --methods igia,bi,last --repairs drop,linear-map --seeds 2 --out comparison")]
pub(crate) struct CompareArgs {
    /// Model: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// Rows to train on: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    train: PathBuf,
    /// Sets to evaluate on, never trained on
    #[arg(long, required = true, value_delimiter = ',')]
    eval: Vec<PathBuf>,
    /// Layers to prune: numbers, or shares such as 20%,40%
    #[arg(long, required = true, value_delimiter = ',')]
    prune: Vec<Share>,
    /// Criteria that select the layers to remove
    #[arg(long, default_value = "best,igia,last", value_delimiter = ',', value_parser = choosing())]
    methods: Vec<Choosing>,
    /// Repairs of the layers that stay
    #[arg(long, default_value = "linear-map", value_delimiter = ',', value_parser = repair())]
    repairs: Vec<Repair>,
    /// Also prune as the paper does (see `run --paper`), trained for as many steps as the others
    #[arg(long)]
    paper: bool,
    /// Parts to fine-tune: lora, lora+cuts, full, head+last:3, none
    #[arg(long, default_value = "lora", value_delimiter = ',')]
    finetune: Vec<FinetuneMethod>,
    /// Learning rates to try for every cell, the dense model's too, such as 3e-4,1e-3: the one that stands best on the rows of
    /// --choose is taken, and the test rows see no other [default: that of --lr]
    #[arg(long, value_delimiter = ',', value_parser = learning_rate)]
    learning_rates: Vec<f64>,
    /// Number of seeds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Models to compare with, such as smaller ones of the same family: each is fine-tuned the same way, from the start
    /// and for as many steps as the dense model
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    baseline: Vec<String>,
    /// Keep the pruned and the tuned checkpoints in the folder's `store`; otherwise each is deleted as soon as no remaining
    /// cell needs it, and made again if a later comparison does
    #[arg(long)]
    keep_models: bool,
    /// Time limit, such as 30m or 2h; the cells left out are listed
    #[arg(long, value_parser = duration)]
    budget: Option<f64>,
    /// For same-sign and weighted: number of pruned layers to merge into the layer before them
    #[arg(long, default_value_t = 1)]
    merge: usize,
    /// Share of a merged layer's elements to merge; auto: for each weight, the fewest that hold 80 % of its importance
    /// (auto:0.9 for 90 %)
    #[arg(long, default_value = "0.2")]
    density: Density,
    /// Folder for the comparison
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    cell: CellArgs,
}

impl CompareArgs {
    /// What is compared, and the comparison's folder.
    pub(crate) fn settings(self) -> anyhow::Result<(CompareSettings, PathBuf)> {
        let Self {
            model,
            train,
            eval,
            prune,
            methods,
            repairs,
            paper,
            finetune,
            learning_rates,
            seeds,
            baseline,
            keep_models,
            budget,
            merge,
            density,
            out,
            cell,
        } = self;
        if cell.collecting.is_auto() {
            bail!(
                "`--steps auto` follows one criterion's choice, and here are several; give a number"
            );
        }
        let learning_rates = without_repeats(learning_rates);
        if learning_rates.len() == 1 {
            bail!("`--learning-rates` takes two or more to choose from; one is given by `--lr`");
        }
        let trained = without_repeats(finetune);
        let training = cell.training.clone();
        let base = cell.settings(CellInputs {
            model,
            train,
            eval: None,
            prune: prune.first().copied().unwrap_or(Share::Percent(0.0)),
            criterion: Choosing::By(Criterion::IGIA),
            planning: PlanSettings { repair: Repair::Drop, merge, density },
            finetune: trained.first().copied().unwrap_or(FinetuneMethod::Lora),
        });
        let settings = CompareSettings {
            base,
            baselines: without_repeats(baseline),
            evals: without_repeats(eval),
            prunes: without_repeats(prune),
            criteria: without_repeats(methods),
            repairs: without_repeats(repairs),
            paper,
            trainings: trained
                .iter()
                .map(|&method| {
                    let mut settings = training.clone().settings(method);
                    // A flag that is meant for one of several methods says nothing of the others.
                    let others = |may: fn(FinetuneMethod) -> bool| {
                        !may(method) && trained.iter().copied().any(may)
                    };
                    if others(FinetuneMethod::has_adapters) {
                        settings = settings.without_adapters();
                    }
                    if others(|method| method != FinetuneMethod::None) {
                        settings = settings.untaught();
                    }
                    (method, settings)
                })
                .collect(),
            learning_rates,
            seeds,
            keep_models,
            budget_seconds: budget,
        };
        Ok((settings, out))
    }
}

pub(crate) fn run(args: CompareArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    interrupt::stop_after_the_step();
    let (settings, out) = args.settings()?;
    let context = || match out.join("store").exists() {
        true => format!("the comparison in `{}` stopped", out.display()),
        false => format!("the comparison in `{}` did not begin", out.display()),
    };
    // Whether the file in the folder is this comparison's by now.
    let mut is_ours = false;
    let found = compare(&settings, &out, &mut |event| {
        is_ours |= matches!(event, Event::CellDone(_));
        printer.stage_event(event);
    });
    if found.is_err()
        && is_ours
        && let Ok(so_far) = read_json::<Comparison>(&out.join("compare.json"))
    {
        // The error says more than that of writing.
        let _ = write_pages(&so_far, &settings, &out);
    }
    let found = found.with_context(context)?;
    write_pages(&found, &settings, &out).with_context(context)?;
    let text = format!("{}\n\nreport  {}", terminal(&found), out.join("compare.html").display());
    Outcome::new(text, &found)
}

/// Writes a comparison as people read it.
fn write_pages(found: &Comparison, settings: &CompareSettings, out: &Path) -> anyhow::Result<()> {
    for (name, text) in [
        ("compare.csv", csv(found)),
        ("compare.md", markdown(found, settings)),
        ("compare.html", html(found, settings)),
    ] {
        Staging::write(&out.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// A list without its duplicates.
fn without_repeats<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    let mut once = Vec::new();
    for item in list {
        if !once.contains(&item) {
            once.push(item);
        }
    }
    once
}
