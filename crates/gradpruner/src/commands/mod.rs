//! One module per command: flags to settings, one call, the result back.

mod collect;
mod compare;
mod completions;
mod convert;
mod doctor;
mod estimate;
mod eval;
mod finetune;
mod generate;
mod inspect;
mod inspect_rows;
mod plan;
mod prune;
mod push;
mod run;
mod score;

use ::finetune::processes;
use anyhow::bail;
use evidence::Need;
use selection::Criterion;

use crate::printer::{Outcome, Printer};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Do everything: collect, score, plan, prune, fine-tune, evaluate, report
    Run(Box<run::RunArgs>),
    /// Compare ways to prune a model, on the same rows
    Compare(Box<compare::CompareArgs>),
    /// Estimate the memory, disk, operations and time that a run needs
    Estimate(Box<estimate::EstimateArgs>),
    /// Collect the gradients of the first steps of a LoRA fine-tune
    Collect(collect::CollectArgs),
    /// Score the layers of a gradient record
    Score(score::ScoreArgs),
    /// Decide which layers to prune, and how to repair the others
    Plan(Box<plan::PlanArgs>),
    /// Write the pruned checkpoint of a plan
    Prune(prune::PruneArgs),
    /// Fine-tune a model, by LoRA or in full
    Finetune(Box<finetune::FinetuneArgs>),
    /// Evaluate a model: accuracy, perplexity, generated replies, speed
    Eval(eval::EvalArgs),
    /// Continue a prompt, token by token
    Generate(generate::GenerateArgs),
    /// Show the contents of a model, record, adapter, scores, plan or data file
    Inspect(inspect::InspectArgs),
    /// Turn a GGUF file or a 4-bit checkpoint into an ordinary folder, or a folder into a GGUF file
    Convert(convert::ConvertArgs),
    /// Upload a model, an adapter or a GGUF file to a Hugging Face hub
    Push(push::PushArgs),
    /// Report what this machine offers, and why a GPU is not used
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

impl Command {
    pub(crate) fn run(self, printer: &mut Printer) -> anyhow::Result<Outcome> {
        if !matches!(self, Self::Finetune(_)) && processes()? > 1 {
            bail!(
                "`WORLD_SIZE` says that several processes work together, and only `finetune` does so; start this command \
                 once, without torchrun"
            );
        }
        match self {
            Self::Run(args) => run::run(*args, printer),
            Self::Compare(args) => compare::run(*args, printer),
            Self::Estimate(args) => estimate::run(*args),
            Self::Collect(args) => collect::run(args, printer),
            Self::Score(args) => score::run(args),
            Self::Plan(args) => plan::run(*args, printer),
            Self::Prune(args) => prune::run(args, printer),
            Self::Finetune(args) => finetune::run(*args, printer),
            Self::Eval(args) => eval::run(args, printer),
            Self::Generate(args) => generate::run(args, printer),
            Self::Inspect(args) => inspect::run(args),
            Self::Convert(args) => convert::run(args, printer),
            Self::Push(args) => push::run(args, printer),
            Self::Doctor(args) => doctor::run(args, printer),
            Self::Completions(args) => completions::run(args),
        }
    }
}

/// Refuses a criterion that scores no layers of a record.
fn require_scores(criterion: Criterion) -> anyhow::Result<()> {
    let name = criterion.name();
    if criterion.needs(Need::Loss) {
        bail!(
            "`{name}` runs the model; choose layers with it by `plan RECORD --model M --train F`, or by `run`"
        );
    }
    if !criterion.gives_scores() {
        bail!(
            "`{name}` gives layers no scores; choose layers with it by `plan RECORD`, or by `run`"
        );
    }
    Ok(())
}

/// One score per layer, lowest first, as text.
fn ranking_text(scores: &selection::Scores) -> String {
    let mut text = format!("layers by {}, least important first:", scores.criterion.name());
    for layer in scores.ranking() {
        text.push_str(&format!("\n  {layer:>3}  {:.4e}", scores.layers[layer].score));
    }
    text
}
