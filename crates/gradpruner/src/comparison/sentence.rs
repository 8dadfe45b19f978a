//! The sentence on the best way to prune.

use super::figures::{Line, SIGNIFICANT};

/// Which line of a table is the best, and whether it differs from the dense model and from the next. Where it may be no
/// better than always giving the most frequent answer, that comes first.
pub(super) fn sentence(lines: &[Line<'_>]) -> Option<String> {
    let mut pruned = lines.iter().filter(|line| line.is_pruned());
    let best = pruned.next()?;
    let shown = |line: &Line<'_>| match line.value() {
        Some(value) => format!("{} ({})", line.name, line.figure().text(value)),
        None => line.name.clone(),
    };
    let others: Vec<&Line<'_>> = pruned.collect();
    let alike = |other: &&Line<'_>| other.merit() == best.merit();
    if best.no_better_than_majority().is_none() && !others.is_empty() && others.iter().all(alike) {
        let value =
            best.value().map_or_else(|| "nothing".into(), |value| best.figure().text(value));
        return Some(format!("No pruning method stands out: all reach {value}."));
    }
    let mut text = match best.no_better_than_majority() {
        Some(majority) => format!(
            "No pruning method does significantly better than always giving the most frequent answer ({:.1} %): train longer or on \
             more rows, or prune fewer layers. Highest: {}",
            100.0 * majority,
            shown(best)
        ),
        None => format!("Best: {}", shown(best)),
    };
    if let (Some(dense), Some(p)) = (best.dense.and_then(|at| lines.get(at)), best.against_dense) {
        text.push_str(&format!(", {} {}", against(best, dense, p), shown(dense)));
    }
    if let Some(next) = others.first() {
        text.push_str(&match best.test(next) {
            Some(p) if p < SIGNIFICANT => {
                format!("; the next, {}, is significantly worse", shown(next))
            }
            Some(_) => format!("; the next, {}, does not differ significantly", shown(next)),
            None => format!("; then comes {}", shown(next)),
        });
    }
    text.push('.');
    let is_baseline = |line: &&Line<'_>| !line.is_dense() && !line.is_pruned();
    for baseline in lines.iter().filter(is_baseline) {
        if let Some(p) = best.test(baseline).filter(|_| baseline.finetune() == best.finetune()) {
            let how = against(best, baseline, p);
            text.push_str(&format!(" It is {how} the baseline {}.", shown(baseline)));
        }
    }
    Some(text)
}

/// How one line stands to another that differs from it by chance with probability `p`.
fn against(line: &Line<'_>, other: &Line<'_>, p: f64) -> &'static str {
    match p < SIGNIFICANT {
        true if line.merit() < other.merit() => "significantly worse than",
        true => "significantly better than",
        false => "within noise of",
    }
}
