//! The figures of a comparison: seeds side by side, tests against the dense model.

use metrics::{Interval, wilson};
use pipeline::{CellResult, Comparison, EvaluatedOn, FinetuneMethod};

use super::rows;
use crate::table::Table;
use crate::units::{counted, millions, percent};

/// The columns of a table.
const HEADINGS: [&str; 11] = [
    "",
    "layers",
    "accuracy (95 % interval)",
    "over seeds",
    "points against dense",
    "perplexity, cut → tuned",
    "learning rate",
    "parameters",
    "tokens/s",
    "minutes",
    "minutes choosing",
];

/// A difference with a smaller probability is called one.
pub(super) const SIGNIFICANT: f64 = 0.05;

/// What a set is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// The share of rows with choices that are answered rightly.
    Accuracy,
    /// The likeness of generated replies to their references.
    RougeL,
    /// Where there is neither; less is better.
    Perplexity,
}

impl Figure {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::RougeL => "ROUGE-L",
            Self::Perplexity => "perplexity",
        }
    }

    /// A value as people read it.
    pub(super) fn text(self, value: f64) -> String {
        match self {
            Self::Accuracy => percent(value),
            Self::RougeL => format!("ROUGE-L {value:.3}"),
            Self::Perplexity => format!("perplexity {}", perplexity(Some(value))),
        }
    }

    /// The same with its name.
    pub(super) fn named_text(self, value: f64) -> String {
        match self {
            Self::Accuracy => format!("accuracy {}", percent(value)),
            Self::RougeL | Self::Perplexity => self.text(value),
        }
    }

    /// What one evaluation is judged by, and its value.
    pub(super) fn judging(on: &EvaluatedOn) -> Option<(Self, f64)> {
        let mut figures = [Self::Accuracy, Self::RougeL, Self::Perplexity].into_iter();
        figures.find_map(|figure| Some((figure, figure.of(on)?)))
    }

    /// A value such that more is better.
    pub(super) fn merit(self, value: f64) -> f64 {
        match self {
            Self::Accuracy | Self::RougeL => value,
            Self::Perplexity => -value,
        }
    }

    fn of(self, on: &EvaluatedOn) -> Option<f64> {
        match self {
            Self::Accuracy => on.after.acc,
            Self::RougeL => on.after.rouge.map(|scores| scores.rouge_l),
            Self::Perplexity => on.after.perplexity,
        }
    }
}

/// One way to prune, the dense model or a baseline, over all seeds, on one set.
pub(super) struct Line<'a> {
    pub(super) name: String,
    /// A result a seed.
    pub(super) results: Vec<&'a CellResult>,
    /// The same on the set.
    on: Vec<&'a EvaluatedOn>,
    /// The dense model that was fine-tuned alike: its place among the lines.
    pub(super) dense: Option<usize>,
    /// How likely the difference from it is by chance.
    pub(super) against_dense: Option<f64>,
}

/// Which lines' repairs were refused, and with which seeds; `None` if none was.
pub(super) fn refused(lines: &[Line<'_>]) -> Option<String> {
    let of_line = |line: &Line<'_>| {
        let is_refused =
            |result: &&&CellResult| result.verdict.as_ref().is_some_and(|verdict| !verdict.kept);
        let seeds: Vec<String> =
            line.results.iter().filter(is_refused).map(|x| x.cell.seed.to_string()).collect();
        (!seeds.is_empty()).then(|| format!("{} (seed {})", line.name, seeds.join(", ")))
    };
    let names: Vec<String> = lines.iter().filter_map(of_line).collect();
    (!names.is_empty()).then(|| {
        format!(
            "The repair was rejected because more was lost with it; the layers were dropped without it: {}.",
            names.join("; ")
        )
    })
}

/// For each ratio its lines: the dense model's first, then those of baselines, then the others by accuracy or perplexity.
pub(super) fn by_ratio(found: &Comparison, set: usize) -> Vec<(String, Vec<Line<'_>>)> {
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
            let finetune = result.cell.finetune;
            let name = match (&result.cell.way, &result.cell.baseline) {
                (None, None) => format!("dense, {finetune}"),
                (None, Some(model)) => {
                    format!("{model}, {}, {finetune}", counted(result.size.num_layers, "layer"))
                }
                (Some(way), _) if way.paper => format!("{}, {finetune}", way.chosen_by()),
                (Some(way), _) => format!("{}, {}, {finetune}", way.criterion, way.repair),
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
            let (dense, mut others): (Vec<_>, Vec<_>) =
                lines_of(None).into_iter().partition(Line::is_dense);
            let mut pruned = lines_of(Some(&ratio));
            pruned.sort_by(|x, y| y.merit().total_cmp(&x.merit()));
            others.append(&mut pruned);
            for line in &mut others {
                line.dense = dense.iter().position(|dense| dense.finetune() == line.finetune());
                line.against_dense = line.dense.and_then(|at| line.test(&dense[at]));
            }
            (ratio, dense.into_iter().chain(others).collect())
        })
        .collect()
}

impl Line<'_> {
    /// What it is judged by.
    pub(super) fn figure(&self) -> Figure {
        let has = |figure: &Figure| self.on.iter().any(|on| figure.of(on).is_some());
        [Figure::Accuracy, Figure::RougeL].into_iter().find(has).unwrap_or(Figure::Perplexity)
    }

    /// The mean of its figure over seeds; none if a seed has none, as where a loss is not finite.
    pub(super) fn value(&self) -> Option<f64> {
        let figure = self.figure();
        match figure {
            Figure::Perplexity => self.mean_perplexity(|on| figure.of(on)),
            _ => self.mean_of_all(|on| figure.of(on)),
        }
    }

    /// The perplexity of the seeds' mean loss.
    fn mean_perplexity(&self, of: impl Fn(&EvaluatedOn) -> Option<f64>) -> Option<f64> {
        Some(self.mean_of_all(|on| of(on).map(f64::ln))?.exp())
    }

    /// A mean over seeds; none if a seed has none.
    fn mean_of_all(&self, of: impl Fn(&EvaluatedOn) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = self.on.iter().map(|on| of(on)).collect();
        let values = values.filter(|values| !values.is_empty())?;
        Some(values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Its figure's least and greatest value over seeds.
    pub(super) fn spread(&self) -> Option<(f64, f64)> {
        let figure = self.figure();
        let values = || self.on.iter().filter_map(|on| figure.of(on));
        Some((values().reduce(f64::min)?, values().reduce(f64::max)?))
    }

    /// More is better.
    pub(super) fn merit(&self) -> f64 {
        self.value().map_or(f64::NEG_INFINITY, |value| self.figure().merit(value))
    }

    fn accuracy(&self) -> Option<f64> {
        self.mean(|on| on.after.acc)
    }

    fn mean(&self, of: impl Fn(&EvaluatedOn) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.on.iter().filter_map(|on| of(on)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The share of the most frequent answer, where rows have choices.
    pub(super) fn majority(&self) -> Option<f64> {
        self.mean(|on| on.after.majority)
    }

    /// The majority's share, if it may be no better than always giving that answer.
    pub(super) fn no_better_than_majority(&self) -> Option<f64> {
        let (accuracy, majority) = (self.accuracy()?, self.majority()?);
        (self.interval(accuracy).low <= majority).then_some(majority)
    }

    /// Wilson's of an accuracy on as many rows as there are.
    fn interval(&self, accuracy: f64) -> Interval {
        let rows = self.on.first().map_or(0, |on| on.right.len());
        wilson((accuracy * rows as f64).round() as usize, rows)
    }

    pub(super) fn finetune(&self) -> Option<FinetuneMethod> {
        self.results.first().map(|result| result.cell.finetune)
    }

    pub(super) fn is_dense(&self) -> bool {
        self.results.iter().any(|result| result.cell.is_dense())
    }

    pub(super) fn is_pruned(&self) -> bool {
        self.results.iter().any(|result| result.cell.way.is_some())
    }

    /// How likely its difference from another line is by chance, over the rows and seeds that both have; `None` where that cannot
    /// be told.
    pub(super) fn test(&self, other: &Self) -> Option<f64> {
        let pairs = self.results.iter().zip(&self.on).filter_map(|(result, on)| {
            let found = other.results.iter().position(|other| other.cell.seed == result.cell.seed);
            Some((*on, *other.on.get(found?)?))
        });
        rows::test(self.figure(), pairs)
    }

    /// The 95 % interval of its figure.
    fn figure_interval(&self) -> Option<Interval> {
        match self.figure() {
            Figure::Accuracy => Some(self.interval(self.accuracy()?)),
            figure => rows::interval(figure, &self.on),
        }
    }

    /// The cells of a table's row; `lines` are all of the table.
    fn cells(&self, lines: &[Self]) -> Vec<String> {
        let dash = || "–".to_owned();
        let value = self.value().map(|value| {
            let text = |value: f64| match self.figure() {
                Figure::Accuracy => percent(value),
                Figure::RougeL => format!("{value:.3}"),
                Figure::Perplexity => perplexity(Some(value)),
            };
            match self.figure_interval() {
                Some(Interval { low, high }) => {
                    let low = text(low);
                    format!("{} ({} – {})", text(value), low.trim_end_matches(" %"), text(high))
                }
                None => text(value),
            }
        });
        let size = self.results.first().map(|result| result.size);
        let minutes = |of: fn(&CellResult) -> f64| -> f64 {
            self.results.iter().map(|result| of(result)).sum::<f64>() / 60.0
        };
        vec![
            self.name.clone(),
            size.map_or_else(dash, |size| size.num_layers.to_string()),
            value.unwrap_or_else(dash),
            self.spread_text().unwrap_or_else(dash),
            self.difference_text(lines).unwrap_or_else(dash),
            format!(
                "{} → {}",
                perplexity(self.mean_perplexity(|on| on.before.perplexity)),
                perplexity(self.mean_perplexity(|on| on.after.perplexity))
            ),
            self.rates_text().unwrap_or_else(dash),
            size.map_or_else(dash, |size| millions(size.parameters, " M")),
            self.mean(|on| Some(on.after.tokens_per_second))
                .map_or_else(dash, |speed| format!("{speed:.0}")),
            format!("{:.1}", minutes(|result| result.seconds)),
            match self.is_pruned() {
                true => format!("{:.1}", minutes(|result| result.seconds_choosing)),
                false => dash(),
            },
        ]
    }

    /// The learning rates that were taken, over seeds, if there was a choice.
    fn rates_text(&self) -> Option<String> {
        let mut rates: Vec<String> = Vec::new();
        for taken in self.results.iter().filter_map(|result| result.rates.first()) {
            let text = format!("{:e}", taken.learning_rate);
            if !rates.contains(&text) {
                rates.push(text);
            }
        }
        (!rates.is_empty()).then(|| rates.join(", "))
    }

    /// From the worst to the best seed; nothing of one.
    fn spread_text(&self) -> Option<String> {
        let (low, high) = self.spread().filter(|_| self.results.len() > 1)?;
        let seeds = self.on.iter().filter(|on| self.figure().of(on).is_some()).count();
        Some(match self.figure() {
            Figure::Accuracy => {
                format!("{:.1} – {:.1} % ({seeds})", 100.0 * low, 100.0 * high)
            }
            Figure::RougeL | Figure::Perplexity => format!("{low:.3} – {high:.3} ({seeds})"),
        })
    }

    /// How far it is from the dense model, and how likely so by chance.
    fn difference_text(&self, lines: &[Self]) -> Option<String> {
        let dense = lines.get(self.dense?)?;
        let (own, theirs, p) = (self.value()?, dense.value()?, self.against_dense?);
        let more = match self.figure() {
            Figure::Accuracy | Figure::RougeL => own - theirs,
            Figure::Perplexity => own / theirs - 1.0,
        };
        let sign = if more < 0.0 { "−" } else { "+" };
        let size = match self.figure() {
            Figure::Accuracy => format!("{:.1}", 100.0 * more.abs()),
            Figure::RougeL => format!("{:.3}", more.abs()),
            Figure::Perplexity => percent(more.abs()),
        };
        Some(format!("{sign}{size}, {}", probability(p)))
    }
}

/// The table of a ratio.
pub(super) fn table(lines: &[Line<'_>]) -> Table {
    let mut headings = HEADINGS;
    let is_all = |figure| lines.iter().all(|line| line.figure() == figure);
    for (figure, heading) in [
        (Figure::RougeL, "ROUGE-L (95 % interval)"),
        (Figure::Perplexity, "perplexity (95 % interval)"),
    ] {
        if is_all(figure) {
            (headings[2], headings[4]) = (heading, "against dense");
        }
    }
    let mut table = Table::new(headings);
    let best = lines.iter().position(Line::is_pruned);
    for (at, line) in lines.iter().enumerate() {
        let class = match (line.is_pruned(), Some(at) == best) {
            (false, _) => "dense",
            // What is no better than one answer for all is not marked as good.
            (_, true) if line.no_better_than_majority().is_none() => "best",
            _ => "",
        };
        table.add(line.cells(lines), class);
    }
    table.without_empty_columns()
}

/// A probability, with the digits that say something.
fn probability(p: f64) -> String {
    match p {
        ..0.001 => "p < 0.001".into(),
        ..0.1 => format!("p = {p:.3}"),
        _ => format!("p = {p:.2}"),
    }
}

fn perplexity(value: Option<f64>) -> String {
    match value {
        None => "not finite".into(),
        Some(value) if value < 1e4 => format!("{value:.3}"),
        Some(value) => format!("{value:.1e}"),
    }
}
