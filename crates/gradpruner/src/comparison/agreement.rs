//! How far ways to choose layers agree: the layers they share, and the order they bring them into.

use metrics::kendall_tau;
use pipeline::Comparison;

use crate::table::Table;

/// What one criterion chose.
#[derive(Debug, Clone, PartialEq)]
struct Chosen<'a> {
    criterion: String,
    pruned: &'a [usize],
    /// Every layer's score, if the criterion gives scores.
    scores: Option<&'a [f64]>,
}

/// Two choices side by side.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Agreement {
    /// How many layers both prune.
    shared: usize,
    /// How many layers go.
    count: usize,
    /// Kendall's τ between the layers' scores, where both give scores that tell layers apart.
    tau: Option<f64>,
}

impl Agreement {
    fn between(one: &Chosen<'_>, other: &Chosen<'_>) -> Self {
        let shared = one.pruned.iter().filter(|layer| other.pruned.contains(layer)).count();
        let scores = one.scores.zip(other.scores).filter(|(x, y)| x.len() == y.len());
        Self {
            shared,
            count: one.pruned.len().max(other.pruned.len()),
            tau: scores.and_then(|(x, y)| kendall_tau(x, y)),
        }
    }

    fn text(self) -> String {
        let Self { shared, count, tau } = self;
        let order = tau.map_or_else(String::new, |tau| format!(", τ {tau:.2}").replace('-', "−"));
        format!("{shared}/{count}{order}")
    }
}

/// For each ratio a matrix of what criteria have in common with the first seed; none where there is one criterion.
pub(super) fn matrices(found: &Comparison) -> Vec<(String, Table)> {
    let first = found.cells.iter().map(|result| result.cell.seed).min();
    let mut ratios: Vec<(String, Vec<Chosen<'_>>)> = Vec::new();
    for result in found.cells.iter().filter(|result| Some(result.cell.seed) == first) {
        let Some(way) = &result.cell.way else { continue };
        let (ratio, criterion) = (way.prune.to_string(), way.chosen_by());
        let same = |other: &Chosen<'_>| other.criterion == criterion;
        let chosen = Chosen {
            criterion: criterion.clone(),
            pruned: &result.pruned,
            scores: result.scores.as_deref(),
        };
        match ratios.iter_mut().find(|(known, _)| *known == ratio) {
            None => ratios.push((ratio, vec![chosen])),
            // Repairs and trainings have no part in the choice.
            Some((_, all)) if all.iter().any(same) => {}
            Some((_, all)) => all.push(chosen),
        }
    }
    ratios.retain(|(_, all)| all.len() > 1);
    ratios.into_iter().map(|(ratio, all)| (ratio, matrix(&all))).collect()
}

fn matrix(all: &[Chosen<'_>]) -> Table {
    let names = all.iter().map(|chosen| chosen.criterion.as_str());
    let mut table = Table::new(std::iter::once("").chain(names));
    for (at, one) in all.iter().enumerate() {
        let cells = all.iter().enumerate().map(|(other_at, other)| match at == other_at {
            true => "·".to_owned(),
            false => Agreement::between(one, other).text(),
        });
        table.add(std::iter::once(one.criterion.clone()).chain(cells).collect(), "");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen<'a>(pruned: &'a [usize], scores: Option<&'a [f64]>) -> Chosen<'a> {
        Chosen { criterion: "x".into(), pruned, scores }
    }

    #[test]
    fn what_two_choices_share() {
        let (up, down) = ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]);
        let one = chosen(&[0, 1, 2], Some(&up));
        let text = |other: &Chosen<'_>| Agreement::between(&one, other).text();
        assert_eq!(text(&one), "3/3, τ 1.00");
        assert_eq!(text(&chosen(&[1, 2, 3], Some(&down))), "2/3, τ −1.00");
        assert_eq!(text(&chosen(&[3, 5, 2], None)), "1/3");
        // Scores of another model say nothing, nor do equal ones.
        assert_eq!(text(&chosen(&[3, 4, 5], Some(&up[..3]))), "0/3");
        assert_eq!(text(&chosen(&[3, 4, 5], Some(&[1.0; 4]))), "0/3");
    }

    /// Against τ by hand: of six pairs one is swapped, (5 − 1) / 6.
    #[test]
    fn a_matrix_is_symmetric() {
        let (x, y) = ([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0]);
        let all = [
            Chosen { criterion: "a".into(), pruned: &[0, 1], scores: Some(&x) },
            Chosen { criterion: "b".into(), pruned: &[0, 3], scores: Some(&y) },
        ];
        assert_eq!(
            matrix(&all).markdown(),
            "|  | a | b |\n|---|--:|--:|\n| a | · | 1/2, τ 0.67 |\n| b | 1/2, τ 0.67 | · |"
        );
    }
}
