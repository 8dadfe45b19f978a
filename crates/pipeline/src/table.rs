//! The comparison a run ends with, and the strip of layers above it.

use finetune::EvalReport;
use metrics::Interval;
use repair::Size;
use selection::Plan;
use serde::{Deserialize, Serialize};

use crate::run::Evaluations;

/// One model of the comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ComparisonRow {
    pub name: String,
    pub num_layers: Option<usize>,
    pub parameters: Option<u64>,
    pub flops_per_token: Option<u64>,
    pub size_bytes: Option<u64>,
    pub tokens_per_second: Option<f64>,
    pub perplexity: Option<f64>,
    pub acc: Option<f64>,
    pub acc_interval: Option<Interval>,
    pub acc_norm: Option<f64>,
    pub rouge_l: Option<f64>,
}

/// The models of a run side by side, the majority class first.
pub fn comparison(evaluations: &Evaluations) -> Vec<ComparisonRow> {
    let Evaluations { dense, dense_tuned, pruned, pruned_tuned, sizes, .. } = evaluations;
    let mut rows = Vec::new();
    if let Some(majority) = [dense, pruned].into_iter().flatten().find_map(|report| report.majority)
    {
        let name = "majority class".into();
        rows.push(ComparisonRow { name, acc: Some(majority), ..ComparisonRow::default() });
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

/// Whether a model's accuracy may be no better than that of always giving the most frequent answer.
pub(crate) fn no_better_than_majority(report: &EvalReport) -> bool {
    let found = report.acc_interval.zip(report.majority);
    found.is_some_and(|(accuracy, majority)| accuracy.low <= majority)
}

fn of_size(name: &str, size: Size) -> ComparisonRow {
    ComparisonRow {
        name: name.into(),
        num_layers: Some(size.num_layers),
        parameters: Some(size.parameters),
        flops_per_token: Some(size.flops_per_token),
        size_bytes: Some(size.size_bytes),
        ..ComparisonRow::default()
    }
}

fn of_report(name: &str, report: &EvalReport, size: Size) -> ComparisonRow {
    ComparisonRow {
        tokens_per_second: Some(report.tokens_per_second),
        perplexity: report.perplexity,
        acc: report.acc,
        acc_interval: report.acc_interval,
        acc_norm: report.acc_norm,
        rouge_l: report.rouge.map(|scores| scores.rouge_l),
        ..of_size(name, size)
    }
}

/// A column: its heading, and a row's cell if it has one.
type Column = (&'static str, fn(&ComparisonRow) -> Option<String>);

const COLUMNS: [Column; 9] = [
    ("layers", |row| row.num_layers.map(|count| count.to_string())),
    ("parameters", |row| row.parameters.map(|count| count_text(count as f64, 1e6, "M"))),
    ("FLOPs/token", |row| row.flops_per_token.map(|count| count_text(count as f64, 1e6, "M"))),
    ("size", |row| row.size_bytes.map(|bytes| count_text(bytes as f64, 1e6, " MB"))),
    ("tokens/s", |row| row.tokens_per_second.map(|speed| format!("{speed:.0}"))),
    ("perplexity", |row| row.perplexity.map(perplexity_text)),
    ("accuracy (95 % interval)", |row| {
        let acc = percent(row.acc?);
        Some(match row.acc_interval {
            Some(Interval { low, high }) => format!("{acc} ({} – {})", percent(low), percent(high)),
            None => format!("{acc}{}", " ".repeat(16)),
        })
    }),
    ("acc_norm", |row| row.acc_norm.map(percent)),
    ("ROUGE-L", |row| row.rouge_l.map(|score| format!("{score:.3}"))),
];

/// The table's headings and cells; columns nobody fills are left out.
pub(crate) fn cells(rows: &[ComparisonRow]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let used: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|(_, cell)| rows.iter().any(|row| cell(row).is_some()))
        .collect();
    let headings = std::iter::once("").chain(used.iter().map(|(heading, _)| *heading)).collect();
    let body = rows
        .iter()
        .map(|row| {
            let cells = used.iter().map(|(_, cell)| cell(row).unwrap_or_else(|| "–".into()));
            std::iter::once(row.name.clone()).chain(cells).collect()
        })
        .collect();
    (headings, body)
}

/// The comparison as aligned text.
pub fn table_text(rows: &[ComparisonRow]) -> String {
    let (headings, body) = cells(rows);
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            let cells = body.iter().map(|row| width(&row[column]));
            cells.chain([width(headings[column])]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let fill = " ".repeat(widths[column] - width(cell));
            match column {
                0 => text.push_str(&format!("{cell}{fill}")),
                _ => text.push_str(&format!("  {fill}{cell}")),
            }
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(headings.clone())];
    lines.push("─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
    lines.extend(body.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// The layers in a row: `█` kept, `·` dropped, `◂` merged into the kept layer before it.
pub fn layer_strip(plan: &Plan) -> String {
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

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn count_text(value: f64, unit: f64, suffix: &str) -> String {
    let value = value / unit;
    if value < 100.0 { format!("{value:.1}{suffix}") } else { format!("{value:.0}{suffix}") }
}

fn perplexity_text(value: f64) -> String {
    if value < 1000.0 { format!("{value:.3}") } else { format!("{value:.2e}") }
}

#[cfg(test)]
mod tests {
    use selection::Merge;

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
    fn better_than_the_majority_or_not() {
        let report = |acc: f64, low: f64| -> EvalReport {
            serde_json::from_value(serde_json::json!({
                "rows": 100, "acc": acc, "acc_interval": {"low": low, "high": 1.0}, "majority": 0.6,
                "labelled_tokens": 9, "tokens": 9, "seconds": 1.0, "tokens_per_second": 9.0,
                "parameters": 1, "flops_per_token": 2, "num_layers": 3,
            }))
            .unwrap()
        };
        assert!(!no_better_than_majority(&report(0.9, 0.8)));
        assert!(no_better_than_majority(&report(0.65, 0.55)));
        let unasked = EvalReport { acc_interval: None, majority: None, ..report(0.9, 0.8) };
        assert!(!no_better_than_majority(&unasked));
    }

    #[test]
    fn columns_nobody_fills_are_left_out() {
        let row = |name: &str, acc| ComparisonRow {
            name: name.into(),
            perplexity: acc,
            acc,
            ..ComparisonRow::default()
        };
        let text = table_text(&[row("a", Some(0.5)), row("longer", None)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "        perplexity  accuracy (95 % interval)");
        assert_eq!(lines[2], "a            0.500    50.0 %");
        assert_eq!(lines[3], "longer           –                         –");
    }
}
