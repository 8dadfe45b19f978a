//! What a comparison found, for people: lines of a table, sentences, a page.

mod figures;
mod page;

use pipeline::{Cell, Comparison, Way};

use self::figures::Line;
pub(crate) use self::page::html;

/// A cell in a few words.
pub(crate) fn cell_text(cell: &Cell) -> String {
    let Cell { way, finetune, seed } = cell;
    let what = match way {
        None => "dense".to_owned(),
        Some(Way { prune, criterion, repair }) => {
            format!("{prune} by {}, {repair}", criterion)
        }
    };
    format!("{what}, {finetune}, seed {seed}")
}

/// The comparison as Markdown: for each set and ratio a table, and a sentence on the best.
pub(crate) fn markdown(found: &Comparison) -> String {
    let mut text = format!("# {} on {}\n", found.model, found.train);
    for (set, name) in found.evals.iter().enumerate() {
        for (ratio, lines) in figures::by_ratio(found, set) {
            text.push_str(&format!("\n## {name}, {ratio} pruned\n\n"));
            text.push_str(&format!("| {} |\n", figures::HEADINGS.join(" | ")));
            text.push_str(&format!("|{}\n", "---|".repeat(figures::HEADINGS.len())));
            for line in &lines {
                text.push_str(&format!("| {} |\n", line.cells().join(" | ")));
            }
            if let Some(sentence) = figures::sentence(&lines) {
                text.push_str(&format!("\n{sentence}\n"));
            }
        }
    }
    if !found.left_out.is_empty() {
        let left_out: Vec<_> = found.left_out.iter().map(cell_text).collect();
        text.push_str(&format!("\nNo time was left for: {}.\n", left_out.join("; ")));
    }
    text
}

/// The comparison as CSV, a line a cell and set.
pub(crate) fn csv(found: &Comparison) -> String {
    let mut text = "prune,criterion,repair,finetune,seed,data,layers,parameters,flops_per_token,acc,acc_low,\
                    acc_high,acc_norm,rouge_l,perplexity_before,perplexity_after,tokens_per_second,peak_memory_bytes,\
                    seconds,pruned\n"
        .to_owned();
    for result in &found.cells {
        for on in &result.evaluations {
            let after = &on.after;
            let number = |value: Option<f64>| value.map_or_else(String::new, |x| x.to_string());
            let way = result.cell.way.as_ref();
            let layers: Vec<_> = result.pruned.iter().map(usize::to_string).collect();
            let fields = [
                way.map_or_else(|| "0".into(), |way| way.prune.to_string()),
                way.map_or_else(String::new, |way| way.criterion.to_string()),
                way.map_or_else(String::new, |way| way.repair.to_string()),
                result.cell.finetune.to_string(),
                result.cell.seed.to_string(),
                quoted(&on.data),
                result.size.num_layers.to_string(),
                result.size.parameters.to_string(),
                result.size.flops_per_token.to_string(),
                number(after.acc),
                number(after.acc_interval.map(|interval| interval.low)),
                number(after.acc_interval.map(|interval| interval.high)),
                number(after.acc_norm),
                number(after.rouge.map(|scores| scores.rouge_l)),
                number(on.before.perplexity),
                number(after.perplexity),
                after.tokens_per_second.to_string(),
                after.peak_memory_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
                result.seconds.to_string(),
                layers.join(" "),
            ];
            text.push_str(&format!("{}\n", fields.join(",")));
        }
    }
    text
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// The comparison as aligned text for a terminal, with a sentence on the best.
pub(crate) fn terminal(found: &Comparison) -> String {
    let mut text = String::new();
    for (set, name) in found.evals.iter().enumerate() {
        for (ratio, lines) in figures::by_ratio(found, set) {
            text.push_str(&format!("{name}, {ratio} pruned\n\n{}\n", aligned(&lines)));
            if let Some(sentence) = figures::sentence(&lines) {
                text.push_str(&format!("\n{sentence}\n"));
            }
            text.push('\n');
        }
    }
    if !found.left_out.is_empty() {
        text.push_str(&format!("no time was left for {} cells\n", found.left_out.len()));
    }
    text.trim_end().to_owned()
}

fn aligned(lines: &[Line<'_>]) -> String {
    let headings = figures::HEADINGS.map(str::to_owned);
    let rows: Vec<[String; figures::COLUMNS]> =
        std::iter::once(headings).chain(lines.iter().map(Line::cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..figures::COLUMNS).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &[String; figures::COLUMNS]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            let fill = " ".repeat(width - cell.chars().count());
            if column == 0 { format!("{cell}{fill}") } else { format!("{fill}{cell}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
