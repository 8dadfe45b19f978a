//! The figures of a comparison: seeds side by side, tests against the dense model.

use metrics::{sign_test, wilson};
use pipeline::{CellResult, Comparison, EvaluatedOn, FinetuneMethod};

/// How many columns a table has.
pub(crate) const COLUMNS: usize = 9;

/// What they are.
pub(crate) const HEADINGS: [&str; COLUMNS] = [
    "",
    "layers",
    "accuracy (95 % interval)",
    "by seed",
    "against dense",
    "perplexity, cut → tuned",
    "parameters",
    "tokens/s",
    "minutes",
];

/// A difference with a smaller probability is called one.
const SIGNIFICANT: f64 = 0.05;

/// One way to prune or the dense model, over all seeds, on one set.
pub(crate) struct Line<'a> {
    pub(crate) name: String,
    /// A result a seed.
    pub(crate) results: Vec<&'a CellResult>,
    /// The same on the set.
    on: Vec<&'a EvaluatedOn>,
    /// The dense model that was fine-tuned alike: its place among the lines.
    pub(crate) dense: Option<usize>,
    /// How likely the difference from it is by chance.
    pub(crate) against_dense: Option<f64>,
}

/// For each ratio its lines, the dense model's first, the others by accuracy or perplexity.
pub(crate) fn by_ratio(found: &Comparison, set: usize) -> Vec<(String, Vec<Line<'_>>)> {
    let mut ratios: Vec<String> = Vec::new();
    for way in found.cells.iter().filter_map(|result| result.cell.way.as_ref()) {
        let ratio = way.prune.to_string();
        if !ratios.contains(&ratio) {
            ratios.push(ratio);
        }
    }
    let lines_of = |wanted: Option<&str>| {
        let mut lines: Vec<Line<'_>> = Vec::new();
        for result in &found.cells {
            let ratio = result.cell.way.as_ref().map(|way| way.prune.to_string());
            let Some(on) = result.evaluations.get(set) else { continue };
            if ratio.as_deref() != wanted {
                continue;
            }
            let name = match &result.cell.way {
                None => format!("dense, {}", result.cell.finetune),
                Some(way) => {
                    format!("{}, {}, {}", way.criterion, way.repair, result.cell.finetune)
                }
            };
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => {
                    line.results.push(result);
                    line.on.push(on);
                }
                None => lines.push(Line {
                    name,
                    results: vec![result],
                    on: vec![on],
                    dense: None,
                    against_dense: None,
                }),
            }
        }
        lines
    };
    ratios
        .into_iter()
        .map(|ratio| {
            let mut lines = lines_of(Some(&ratio));
            let dense = lines_of(None);
            for line in &mut lines {
                line.dense = dense.iter().position(|dense| dense.finetune() == line.finetune());
                line.against_dense = line.dense.and_then(|at| line.test(&dense[at]));
            }
            lines.sort_by(|x, y| y.merit().total_cmp(&x.merit()));
            (ratio, dense.into_iter().chain(lines).collect())
        })
        .collect()
}

impl Line<'_> {
    /// The mean over seeds of accuracy; where there are no choices, of ROUGE-L, or else less perplexity.
    pub(crate) fn merit(&self) -> f64 {
        self.mean(|on| {
            on.after
                .acc
                .or_else(|| on.after.rouge.map(|scores| scores.rouge_l))
                .or_else(|| on.after.perplexity.map(|value| -value))
        })
        .unwrap_or(f64::NEG_INFINITY)
    }

    pub(crate) fn accuracy(&self) -> Option<f64> {
        self.mean(|on| on.after.acc)
    }

    fn mean(&self, of: impl Fn(&EvaluatedOn) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.on.iter().filter_map(|on| of(on)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Whether it may be no better than always giving the most frequent answer, whose share that is.
    fn no_better_than_majority(&self) -> Option<f64> {
        let (accuracy, majority) = (self.accuracy()?, self.mean(|on| on.after.majority)?);
        let rows = self.on.first().map_or(0, |on| on.right.len());
        let interval = wilson((accuracy * rows as f64).round() as usize, rows);
        (interval.low <= majority).then_some(majority)
    }

    pub(crate) fn finetune(&self) -> Option<FinetuneMethod> {
        self.results.first().map(|result| result.cell.finetune)
    }

    pub(crate) fn is_dense(&self) -> bool {
        self.results.iter().any(|result| result.cell.way.is_none())
    }

    /// The sign test against another line over the rows that both answered, each row by how often over the seeds it was
    /// answered rightly; of one seed that is `McNemar`'s test.
    pub(crate) fn test(&self, other: &Self) -> Option<f64> {
        let mut lead: Vec<i64> = Vec::new();
        for (result, on) in self.results.iter().zip(&self.on) {
            let found = other.results.iter().position(|other| other.cell.seed == result.cell.seed);
            let Some(theirs) = found.and_then(|at| other.on.get(at)) else { continue };
            if theirs.right.len() != on.right.len() {
                return None;
            }
            lead.resize(on.right.len(), 0);
            for (lead, (own, theirs)) in lead.iter_mut().zip(on.right.iter().zip(&theirs.right)) {
                *lead += i64::from(*own) - i64::from(*theirs);
            }
        }
        let count = |wanted: i64| lead.iter().filter(|lead| lead.signum() == wanted).count();
        (!lead.is_empty()).then(|| sign_test(count(1), count(-1)))
    }

    /// The cells of a table's row.
    pub(crate) fn cells(&self) -> [String; COLUMNS] {
        let dash = || "–".to_owned();
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let rows = self.on.first().map_or(0, |on| on.right.len());
        let accuracy = match self.accuracy() {
            Some(accuracy) => {
                let interval = wilson((accuracy * rows as f64).round() as usize, rows);
                let (low, high) = (percent(interval.low), percent(interval.high));
                format!("{} ({low} – {high})", percent(accuracy))
            }
            None => self
                .mean(|on| on.after.rouge.map(|scores| scores.rouge_l))
                .map_or_else(dash, |rouge| format!("ROUGE-L {rouge:.3}")),
        };
        let by_seed: Vec<String> = self
            .on
            .iter()
            .filter_map(|on| on.after.acc.map(|acc| format!("{:.1}", 100.0 * acc)))
            .collect();
        let against = match self.against_dense {
            Some(p) if p < SIGNIFICANT => format!("differs, p = {p:.1e}"),
            Some(p) => format!("no difference found, p = {p:.2}"),
            None => dash(),
        };
        let perplexity = |of: fn(&EvaluatedOn) -> Option<f64>| {
            self.mean(of).map_or_else(
                || "not finite".into(),
                |x| if x < 1e4 { format!("{x:.3}") } else { format!("{x:.1e}") },
            )
        };
        let size = self.results.first().map(|result| result.size);
        let seconds: f64 = self.results.iter().map(|result| result.seconds).sum();
        [
            self.name.clone(),
            size.map_or_else(dash, |size| size.num_layers.to_string()),
            accuracy,
            if by_seed.is_empty() { dash() } else { by_seed.join(" / ") },
            against,
            format!(
                "{} → {}",
                perplexity(|on| on.before.perplexity),
                perplexity(|on| on.after.perplexity)
            ),
            size.map_or_else(dash, |size| format!("{:.1} M", size.parameters as f64 / 1e6)),
            self.mean(|on| Some(on.after.tokens_per_second))
                .map_or_else(dash, |speed| format!("{speed:.0}")),
            format!("{:.1}", seconds / 60.0),
        ]
    }
}

/// A sentence on the best line, and whether it differs from the dense model and from the next.
pub(crate) fn sentence(lines: &[Line<'_>]) -> Option<String> {
    let mut pruned = lines.iter().filter(|line| !line.is_dense());
    let best = pruned.next()?;
    let figure = |line: &Line<'_>| {
        line.accuracy().map_or_else(String::new, |acc| format!(" ({:.1} %)", 100.0 * acc))
    };
    let mut text = format!("Best: {}{}", best.name, figure(best));
    if let (Some(dense), Some(p)) = (best.dense.map(|at| &lines[at]), best.against_dense) {
        text.push_str(&match p < SIGNIFICANT {
            true if best.merit() < dense.merit() => {
                format!(", worse than {}{} beyond noise", dense.name, figure(dense))
            }
            true => format!(", better than {}{} beyond noise", dense.name, figure(dense)),
            false => format!(", within noise of {}{}", dense.name, figure(dense)),
        });
    }
    if let Some(next) = pruned.next() {
        let how = match best.test(next) {
            Some(p) if p < SIGNIFICANT => " is worse beyond noise",
            Some(_) => " is within noise of it",
            None => " follows",
        };
        text.push_str(&format!("; the next, {}{},{how}", next.name, figure(next)));
    }
    text.push('.');
    if let Some(majority) = best.no_better_than_majority() {
        text.push_str(&format!(
            " It may be no better than always giving the most frequent answer ({:.1} %): train longer or on more rows, \
             or prune fewer layers.",
            100.0 * majority
        ));
    }
    Some(text)
}
