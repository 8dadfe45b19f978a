//! Sentences about stages: what they are called, and what they came to.

use finetune::{KeptStep, TrainReport};
use pipeline::{Amount, Done, Fitted, Stability, Stage, Trial, TriedAmount, Verdict};
use selection::{Criterion, Plan};

use crate::units::{counted, layers_text, percent, perplexity_text};

/// What a stage is called.
pub(crate) fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Convert => "convert",
        Stage::Collect => "collect gradients",
        Stage::Score => "score layers",
        Stage::Amount => "find how many layers go",
        Stage::Race => "candidates",
        Stage::Plan => "plan",
        Stage::Fit => "fit the repair",
        Stage::Judge => "judge the repair",
        Stage::Prune => "prune and repair",
        Stage::Finetune => "fine-tune",
        Stage::DenseFinetune => "fine-tune dense",
        Stage::Evaluate => "evaluate",
        Stage::EvaluateDense => "evaluate dense",
        Stage::EvaluatePruned => "evaluate pruned",
        Stage::EvaluateTuned => "evaluate pruned, tuned",
        Stage::EvaluateDenseTuned => "evaluate dense, tuned",
    }
}

/// Which step's weights were kept, if a training chose between several.
fn kept(report: &TrainReport) -> String {
    report.kept.map(|kept| format!("; {}", kept_text(kept))).unwrap_or_default()
}

/// What a stage came to, in one line.
pub(crate) fn done_text(done: &Done) -> String {
    match done {
        Done::Collected { steps, stability: Some(stability) } => {
            format!("{steps} steps; {}", stability_text(stability))
        }
        Done::Collected { steps, stability: None } => format!("{steps} steps"),
        Done::Chosen { criterion, selection } => {
            let first: Vec<_> = selection.removed.iter().take(5).map(usize::to_string).collect();
            let what = if selection.scores.is_some() { "lowest" } else { "first to go" };
            let more = if selection.removed.len() > first.len() { " …" } else { "" };
            format!("by {}; {what}: {}{more}", criterion.name(), first.join(" "))
        }
        Done::Amount(amount) => amount_text(amount),
        Done::Raced(race) => race.candidates.first().map_or_else(String::new, |winner| {
            let others = race.candidates.len() - 1;
            match others {
                0 => format!("one choice, by {}", criteria_text(&winner.criteria)),
                _ => format!("best of {}: {}", others + 1, criteria_text(&winner.criteria)),
            }
        }),
        Done::Planned(plan) => layer_strip(plan),
        Done::Fitted(Fitted { runs, tokens }) => {
            format!("{}, on {tokens} tokens", counted(*runs, "run"))
        }
        Done::Judged(verdict) => verdict_text(verdict),
        Done::Pruned { before, after } => {
            let less = |after: u64, before: u64| percent(1.0 - after as f64 / before as f64);
            format!(
                "{} of {} layers left; {} fewer parameters, {} fewer FLOPs per token",
                after.num_layers,
                before.num_layers,
                less(after.parameters, before.parameters),
                less(after.flops_per_token, before.flops_per_token),
            )
        }
        // They were taken to choose by.
        Done::Trained(report) if report.tokens == 0 => {
            format!("{} steps, already taken{}", report.steps, kept(report))
        }
        Done::Trained(report) => format!(
            "{} steps, {} tokens, last loss {:.4}{}",
            report.steps,
            report.tokens,
            report.last_loss.unwrap_or(f64::NAN),
            kept(report)
        ),
        Done::Evaluated(report) => figures_text(report.acc, report.perplexity),
    }
}

/// What a look at the rows held out found.
pub(crate) fn look_text(look: &Trial, is_best: bool) -> String {
    let best = if is_best { ", the smallest loss so far" } else { "" };
    format!("{}{best}", trial_text(look))
}

/// Whose weights are kept, and why the training ended if that was early.
pub(crate) fn kept_text(kept: KeptStep) -> String {
    let early = if kept.stopped_early { "stopped early; " } else { "" };
    format!("{early}kept the weights of step {}: loss {:.4} on rows held out", kept.step, kept.loss)
}

/// How many layers go, and why.
pub(crate) fn amount_text(amount: &Amount) -> String {
    let Amount { max_drop, layers, dense, tried } = amount;
    let lost = tried.iter().find(|tried| tried.layers == *layers).and_then(|tried| tried.lost);
    format!(
        "{}, within --max-drop {max_drop}: {}; the dense model, fine-tuned the same way: {}",
        counted(*layers, "layer"),
        lost_text(lost, dense),
        trial_text(dense)
    )
}

/// What is lost against the dense model, in points of accuracy or as a share of perplexity.
pub(crate) fn lost_text(lost: Option<f64>, dense: &Trial) -> String {
    let of = if dense.acc.is_some() { "accuracy" } else { "perplexity" };
    match lost {
        // Points, or a share that perplexity has grown by.
        Some(lost) if dense.acc.is_some() => format!("{of} {:+.1} points", -100.0 * lost),
        Some(lost) => format!("{of} {:+.1} %", 100.0 * lost),
        None => format!("{of} not finite"),
    }
    .replace('-', "−")
}

/// An amount that was tried.
pub(crate) fn tried_amount_text(tried: &TriedAmount) -> String {
    let TriedAmount { layers, trial, within, .. } = tried;
    let verdict = if *within { "within the limit" } else { "over the limit" };
    format!("without {}: {}; {verdict}", counted(*layers, "layer"), trial_text(trial))
}

/// Criteria that chose the same layers.
pub(crate) fn criteria_text(criteria: &[Criterion]) -> String {
    criteria.iter().map(|criterion| criterion.name()).collect::<Vec<_>>().join(", ")
}

/// How good a model is in the middle of its training.
pub(crate) fn trial_text(trial: &Trial) -> String {
    let accuracy =
        trial.acc.map_or_else(String::new, |share| format!(", accuracy {}", percent(share)));
    let loss = trial.loss.map_or_else(|| "not finite".into(), |loss| format!("{loss:.4}"));
    format!("held-out loss {loss}{accuracy} after step {}", trial.step)
}

/// A warning about a model that has learnt nothing a quarter of its training in.
pub(crate) fn collapsed_text(trial: &Trial, pruned: &[usize]) -> String {
    let share = |share: Option<f64>| share.map_or_else(|| "unknown".into(), percent);
    format!(
        "after step {}, a quarter of the training, the pruned model may answer no better than by always giving the most \
         frequent answer (accuracy {}, that answer {}). Layers {} were removed; the earliest of them are the ones to \
         suspect. It may still recover; else prune fewer layers, keep more of the first (--keep first:N,last:1), or let \
         choices race (--criterion auto)",
        trial.step,
        share(trial.acc),
        share(trial.majority),
        layers_text(pruned),
    )
}

/// What a repair does to what is lost, and what follows.
pub(crate) fn verdict_text(verdict: &Verdict) -> String {
    let Verdict { repair, dropped, repaired, kept, search, .. } = verdict;
    let step = match search {
        Some(search) => format!(" by a step of {}", search.step),
        None => String::new(),
    };
    let what = if *kept { "kept" } else { "rejected: the layers are dropped without repair" };
    let repaired = repaired.map_or_else(|| "not finite".into(), |found| format!("{found:.4}"));
    format!(
        "{repair}{step} {what}; distance from the dense model {dropped:.4} without it, {repaired} with it"
    )
}

/// An evaluation's two main figures, the accuracy where there are choices.
pub(crate) fn figures_text(accuracy: Option<f64>, perplexity: Option<f64>) -> String {
    let accuracy =
        accuracy.map_or_else(String::new, |share| format!("accuracy {}, ", percent(share)));
    let perplexity = perplexity.map_or_else(|| "not finite".into(), perplexity_text);
    format!("{accuracy}perplexity {perplexity}")
}

/// How far the order of layers can be trusted.
pub(crate) fn stability_text(stability: &Stability) -> String {
    let Stability { steps, between_halves, since_middle, settled_since } = stability;
    let tau = |tau: &Option<f64>| tau.map_or_else(|| "unknown".into(), |tau| format!("{tau:.2}"));
    format!(
        "layer order: τ {} between halves of the data, {} since the middle; the lowest layers have not \
         changed since step {settled_since} of {steps}",
        tau(between_halves),
        tau(since_middle),
    )
}

/// The layers in a row: `█` kept, `·` dropped, `◂` merged into the kept layer before it.
pub(crate) fn layer_strip(plan: &Plan) -> String {
    let donors = plan.donors();
    let strip: String = (0..plan.num_layers)
        .map(|layer| match layer {
            _ if donors.contains(&layer) => '◂',
            _ if plan.pruned.contains(&layer) => '·',
            _ => '█',
        })
        .collect();
    let kept = plan.num_layers - plan.pruned.len();
    let mut text = format!(
        "0 {strip} {}   {kept} kept (█), {} dropped (·)",
        plan.num_layers - 1,
        plan.pruned.len() - donors.len()
    );
    if !donors.is_empty() {
        text.push_str(&format!(", {} merged into the layer before (◂)", donors.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use repair::Size;
    use selection::{Merge, Repair};

    use super::*;

    #[test]
    fn strip() {
        let merges = vec![Merge { into: 1, from: vec![2] }];
        let plan = Plan::new(5, vec![2, 3], merges, 0.2);
        assert_eq!(
            layer_strip(&plan),
            "0 ██◂·█ 4   3 kept (█), 1 dropped (·), 1 merged into the layer before (◂)"
        );
    }

    #[test]
    fn a_line_for_what_a_stage_came_to() {
        let stability = Stability {
            steps: 40,
            between_halves: Some(0.912),
            since_middle: None,
            settled_since: 12,
        };
        let collected = Done::Collected { steps: 40, stability: Some(stability) };
        assert_eq!(
            done_text(&collected),
            "40 steps; layer order: τ 0.91 between halves of the data, unknown since the middle; \
             the lowest layers have not changed since step 12 of 40"
        );
        let size = |num_layers, parameters| Size {
            num_layers,
            parameters,
            flops_per_token: 2 * parameters,
            size_bytes: 4 * parameters,
        };
        let pruned = Done::Pruned { before: size(6, 1000), after: size(4, 700) };
        assert_eq!(
            done_text(&pruned),
            "4 of 6 layers left; 30.0 % fewer parameters, 30.0 % fewer FLOPs per token"
        );
        let plan = Plan::new(5, vec![2, 3], vec![], 0.2);
        let verdict = Verdict {
            repair: Repair::Scale,
            dropped: 0.5,
            repaired: Some(0.75),
            kept: false,
            search: None,
            plan,
        };
        assert_eq!(
            verdict_text(&verdict),
            "scale rejected: the layers are dropped without repair; distance from the dense model 0.5000 without it, 0.7500 with it"
        );
        assert_eq!(
            verdict_text(&Verdict { repaired: None, ..verdict }),
            "scale rejected: the layers are dropped without repair; distance from the dense model 0.5000 without it, not finite with it"
        );
        assert_eq!(figures_text(Some(0.5), None), "accuracy 50.0 %, perplexity not finite");
    }
}
