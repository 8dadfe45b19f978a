//! The models of a run side by side: the one table of its report, its cards and the terminal.

use finetune::EvalReport;
use metrics::Interval;
use pipeline::Evaluations;
use repair::Size;
use serde::Serialize;

use crate::table::Table;
use crate::units::{millions, percent, perplexity_text};

/// One model of the comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ModelRow {
    pub(crate) name: String,
    pub(crate) num_layers: Option<usize>,
    pub(crate) parameters: Option<u64>,
    pub(crate) flops_per_token: Option<u64>,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) perplexity: Option<f64>,
    pub(crate) perplexity_interval: Option<Interval>,
    pub(crate) acc: Option<f64>,
    pub(crate) acc_interval: Option<Interval>,
    pub(crate) acc_norm: Option<f64>,
    pub(crate) rouge_l: Option<f64>,
    pub(crate) rouge_l_interval: Option<Interval>,
}

/// The models of a run side by side, the majority class first.
pub(crate) fn model_rows(evaluations: &Evaluations) -> Vec<ModelRow> {
    let Evaluations { dense, dense_tuned, pruned, pruned_tuned, sizes, .. } = evaluations;
    let mut rows = Vec::new();
    if let Some(majority) = [dense, pruned].into_iter().flatten().find_map(|report| report.majority)
    {
        let name = "majority class".into();
        rows.push(ModelRow { name, acc: Some(majority), ..ModelRow::default() });
    }
    // Without rows to evaluate on, the sizes still say something.
    let evaluated = dense.is_some();
    for (name, report, size) in [
        ("dense, zero-shot", dense, sizes.0),
        ("dense, fine-tuned", dense_tuned, sizes.0),
        ("pruned, not tuned", pruned, sizes.1),
        ("pruned, fine-tuned", pruned_tuned, sizes.1),
    ] {
        match report {
            Some(report) => rows.push(of_report(name, report, size)),
            None if evaluated || name.ends_with("fine-tuned") => {}
            None => rows.push(of_size(name.split(',').next().unwrap_or(name), size)),
        }
    }
    rows
}

/// The majority's share, if a model's accuracy may be no better than that of always giving the most frequent answer.
pub(crate) fn no_better_than_majority(report: &EvalReport) -> Option<f64> {
    let (accuracy, majority) = report.acc_interval.zip(report.majority)?;
    (accuracy.low <= majority).then_some(majority)
}

fn of_size(name: &str, size: Size) -> ModelRow {
    ModelRow {
        name: name.into(),
        num_layers: Some(size.num_layers),
        parameters: Some(size.parameters),
        flops_per_token: Some(size.flops_per_token),
        size_bytes: Some(size.size_bytes),
        ..ModelRow::default()
    }
}

fn of_report(name: &str, report: &EvalReport, size: Size) -> ModelRow {
    ModelRow {
        tokens_per_second: Some(report.tokens_per_second),
        perplexity: report.perplexity,
        perplexity_interval: report.perplexity_interval,
        acc: report.acc,
        acc_interval: report.acc_interval,
        acc_norm: report.acc_norm,
        rouge_l: report.rouge.map(|scores| scores.rouge_l),
        rouge_l_interval: report.rouge_l_interval,
        ..of_size(name, size)
    }
}

/// A column: its heading, and a row's cell if it has one.
type Column = (&'static str, fn(&ModelRow) -> Option<String>);

const COLUMNS: [Column; 10] = [
    ("layers", |row| row.num_layers.map(|count| count.to_string())),
    ("parameters", |row| row.parameters.map(|count| millions(count, "M"))),
    ("FLOPs/token", |row| row.flops_per_token.map(|count| millions(count, "M"))),
    ("size", |row| row.size_bytes.map(|bytes| millions(bytes, " MB"))),
    ("tokens/s", |row| row.tokens_per_second.map(|speed| format!("{speed:.0}"))),
    ("perplexity", |row| row.perplexity.filter(|_| !shows_interval(row)).map(perplexity_text)),
    ("perplexity (95 % interval)", |row| {
        let value = row.perplexity.filter(|_| shows_interval(row))?;
        Some(with_interval(value, row.perplexity_interval, perplexity_text))
    }),
    ("accuracy (95 % interval)", |row| {
        let acc = percent(row.acc?);
        Some(match row.acc_interval {
            Some(Interval { low, high }) => format!("{acc} ({} – {})", percent(low), percent(high)),
            None => format!("{acc}{}", " ".repeat(16)), // Below the others' accuracy.
        })
    }),
    ("acc_norm", |row| row.acc_norm.map(percent)),
    ("ROUGE-L (95 % interval)", |row| {
        let text = |score: f64| format!("{score:.3}");
        row.rouge_l.map(|score| with_interval(score, row.rouge_l_interval, text))
    }),
];

/// Whether perplexity is what a model is judged by: where there is an accuracy, its interval is the one to look at.
fn shows_interval(row: &ModelRow) -> bool {
    row.acc.is_none() && row.perplexity_interval.is_some()
}

/// A value and its 95 % interval, if it has one.
fn with_interval(value: f64, interval: Option<Interval>, text: fn(f64) -> String) -> String {
    match interval {
        Some(Interval { low, high }) => {
            format!("{} ({} – {})", text(value), text(low), text(high))
        }
        None => text(value),
    }
}

/// The table of these models; columns nobody fills are left out.
pub(crate) fn model_table(rows: &[ModelRow]) -> Table {
    let used: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|(_, cell)| rows.iter().any(|row| cell(row).is_some()))
        .collect();
    let headings = std::iter::once("").chain(used.iter().map(|(heading, _)| *heading));
    let mut table = Table::new(headings);
    for row in rows {
        let cells = used.iter().map(|(_, cell)| cell(row).unwrap_or_else(|| "–".into()));
        let class = if row.name.starts_with("pruned, fine") { "best" } else { "" };
        table.add(std::iter::once(row.name.clone()).chain(cells).collect(), class);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_than_the_majority_or_not() {
        let report = |acc: f64, low: f64| -> EvalReport {
            serde_json::from_value(serde_json::json!({
                "rows": 100, "acc": acc, "acc_interval": {"low": low, "high": 1.0}, "majority": 0.6,
                "labelled_tokens": 9, "tokens": 9, "seconds": 1.0, "tokens_per_second": 9.0,
                "parameters": 1, "flops_per_token": 2, "num_layers": 3,
            }))
            .unwrap()
        };
        assert_eq!(no_better_than_majority(&report(0.9, 0.8)), None);
        assert_eq!(no_better_than_majority(&report(0.65, 0.55)), Some(0.6));
        let unasked = EvalReport { acc_interval: None, majority: None, ..report(0.9, 0.8) };
        assert_eq!(no_better_than_majority(&unasked), None);
    }

    #[test]
    fn columns_nobody_fills_are_left_out() {
        let row = |name: &str, acc| ModelRow {
            name: name.into(),
            perplexity: acc,
            acc,
            ..ModelRow::default()
        };
        let text = model_table(&[row("a", Some(0.5)), row("longer", None)]).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "        perplexity  accuracy (95 % interval)");
        assert_eq!(lines[2], "a            0.500    50.0 %");
        assert_eq!(lines[3], "longer           –                         –");
    }
}
