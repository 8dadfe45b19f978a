//! Which pruned layers to suspect, where a result is no better than always giving the most frequent answer.

use repair::MapsHeader;
use selection::{Plan, Scores};

use crate::texts::run_text;
use crate::units::layers_named;

/// The share of the layers at the beginning that all others build on.
const EARLY: f64 = 0.25;
/// A map that leaves more of its run's output unexplained stands in for it badly.
const POOR_FIT: f64 = 0.1;
/// How many of the highest-scored layers are named.
const HIGHEST: usize = 3;

/// A sentence for each reason to suspect layers, the strongest first.
pub(super) fn suspects(
    plan: &Plan,
    scores: Option<&Scores>,
    maps: Option<&MapsHeader>,
) -> Vec<String> {
    let mut found = Vec::new();
    let early_end = (EARLY * plan.num_layers as f64).ceil() as usize;
    let early: Vec<usize> =
        plan.pruned.iter().copied().filter(|&layer| layer < early_end).collect();
    if !early.is_empty() {
        found.push(format!(
            "{} {} among the first quarter, which all later layers build on. Keep {} with \
             --keep first:{early_end},last:1.",
            named(&early),
            if early.len() == 1 { "is" } else { "are" },
            them(&early),
        ));
    }
    if plan.pruned.contains(&(plan.num_layers - 1)) {
        let last = plan.num_layers - 1;
        found.push(format!(
            "Layer {last} is the last one, whose output the head reads; --keep guard keeps it."
        ));
    }
    if let Some(maps) = maps {
        let poor = maps
            .runs
            .iter()
            .filter(|run| run.error_after > POOR_FIT)
            .max_by(|one, other| one.error_after.total_cmp(&other.error_after));
        if let Some(run) = poor {
            found.push(format!(
                "The linear map fits worst for {}: a relative error of {:.3} is left.",
                run_text(run),
                run.error_after
            ));
        }
        if let Some((None, run)) = plan.runs().first() {
            let run: Vec<usize> = run.clone().collect();
            found.push(format!(
                "{} {} no layer before {} that could hold a linear map, so none was used.",
                named(&run),
                if run.len() == 1 { "has" } else { "have" },
                if run.len() == 1 { "it" } else { "them" },
            ));
        }
    }
    if let Some(scores) = scores {
        let removed = |layer: &usize| plan.pruned.contains(layer);
        let mut highest: Vec<usize> =
            scores.ranking().into_iter().rev().filter(removed).take(HIGHEST).collect();
        highest.sort_unstable();
        found.push(format!(
            "{} scored highest of the removed layers by {}; pruning fewer would keep {} first.",
            named(&highest),
            scores.criterion.name(),
            them(&highest),
        ));
    }
    found
}

/// The layers at the beginning of a sentence.
fn named(layers: &[usize]) -> String {
    layers_named(layers).replacen('l', "L", 1)
}

fn them(layers: &[usize]) -> &'static str {
    if layers.len() == 1 { "it" } else { "them" }
}

#[cfg(test)]
mod tests {
    use selection::Criterion;

    use super::*;

    fn maps(runs: &serde_json::Value) -> MapsHeader {
        serde_json::from_value(serde_json::json!({
            "format": "gradpruner-linear-maps", "version": 1, "num_layers": 10, "hidden_size": 4,
            "pruned": [], "ridge": 1e-3, "tokens": 9, "model": {"name": "m", "config_sha256": ""},
            "data": {"path": "d", "sha256": "", "rows": 1}, "runs": runs,
        }))
        .unwrap()
    }

    #[test]
    fn early_last_ill_fitted_and_high_layers_are_named() {
        let plan = Plan::new(10, vec![2, 5, 6, 9], Vec::new(), 0.2);
        let scores =
            Scores::of_layers(Criterion::IGIA, &[9.0, 9.0, 0.3, 9.0, 9.0, 0.1, 0.4, 9.0, 9.0, 0.2]);
        let runs = maps(&serde_json::json!([
            {"receiver": 1, "first": 2, "last": 2, "error_before": 0.5, "error_after": 0.05},
            {"receiver": 4, "first": 5, "last": 6, "error_before": 0.9, "error_after": 0.25},
            {"receiver": 8, "first": 9, "last": 9, "error_before": 0.3, "error_after": 0.2},
        ]));
        assert_eq!(
            suspects(&plan, Some(&scores), Some(&runs)),
            [
                "Layer 2 is among the first quarter, which all later layers build on. Keep it with \
                 --keep first:3,last:1.",
                "Layer 9 is the last one, whose output the head reads; --keep guard keeps it.",
                "The linear map fits worst for layers 5–6: a relative error of 0.250 is left.",
                "Layers 2, 6, 9 scored highest of the removed layers by igia; pruning fewer would keep them \
                 first.",
            ]
        );
    }

    #[test]
    fn nothing_is_suspected_without_a_reason() {
        let plan = Plan::new(10, vec![5, 6], Vec::new(), 0.2);
        assert_eq!(suspects(&plan, None, None), Vec::<String>::new());
        let from_the_start = Plan::new(10, vec![0, 1], Vec::new(), 0.2);
        let found = suspects(&from_the_start, None, Some(&maps(&serde_json::json!([]))));
        assert_eq!(
            found[1],
            "Layers 0, 1 have no layer before them that could hold a linear map, so none was used."
        );
    }
}
