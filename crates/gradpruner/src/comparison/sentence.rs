//! The sentence on the best way to prune.

use super::figures::{Line, SIGNIFICANT};

/// Which line of a table is the best, and whether it differs from the dense model and from the next. Where it may be no
/// better than always giving the most frequent answer, that comes first.
pub(super) fn sentence(lines: &[Line<'_>]) -> Option<String> {
    let mut pruned = lines.iter().filter(|line| !line.is_dense());
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
        return Some(format!("No way to prune stands out: all come to {value}."));
    }
    let mut text = match best.no_better_than_majority() {
        Some(majority) => format!(
            "No way to prune is better than always giving the most frequent answer ({:.1} %) beyond noise: train longer or on \
             more rows, or prune fewer layers. Highest: {}",
            100.0 * majority,
            shown(best)
        ),
        None => format!("Best: {}", shown(best)),
    };
    if let (Some(dense), Some(p)) = (best.dense.and_then(|at| lines.get(at)), best.against_dense) {
        let how = match p < SIGNIFICANT {
            true if best.merit() < dense.merit() => "worse beyond noise than",
            true => "better beyond noise than",
            false => "within noise of",
        };
        text.push_str(&format!(", {how} {}", shown(dense)));
    }
    if let Some(next) = others.first() {
        text.push_str(&match best.test(next) {
            Some(p) if p < SIGNIFICANT => {
                format!("; the next, {}, is worse beyond noise", shown(next))
            }
            Some(_) => format!("; the next, {}, does not differ from it beyond noise", shown(next)),
            None => format!("; then comes {}", shown(next)),
        });
    }
    text.push('.');
    Some(text)
}
