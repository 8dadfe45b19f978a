//! `gradpruner inspect DATA --model M`: rows as the model sees them.

use std::path::Path;

use anyhow::{Context, ensure};
use checkpoint::locate;
use dataset::{Encoder, Example, Row, RowCounts, Stretch};
use pipeline::{read_data, read_encoder};
use serde::Serialize;
use serde_json::json;

use crate::printer::{Outcome, wants_colour};
use crate::texts::rows_text;

/// The rows to show, and how.
pub(super) struct RowsView<'a> {
    pub(super) data: &'a Path,
    /// Fields of the rows to skip.
    pub(super) ignored: &'a [String],
    /// One row, counted from 1, or all in numbers.
    pub(super) row: Option<usize>,
    pub(super) max_tokens: usize,
}

/// The lengths of rows in tokens, before any cut.
#[derive(Debug, Serialize)]
struct Lengths {
    shortest: usize,
    median: usize,
    percent_90: usize,
    percent_99: usize,
    longest: usize,
}

/// A row's example, for programs.
#[derive(Debug, Serialize)]
struct ExampleView {
    tokens: usize,
    learned: usize,
    cut: usize,
    text: Vec<Stretch>,
}

impl RowsView<'_> {
    pub(super) fn show(&self, model: &str) -> anyhow::Result<Outcome> {
        let folder = locate(model)?;
        let rows = read_data(self.data, self.ignored)?;
        let encoder = read_encoder(&folder)?;
        let number = self.row.unwrap_or(1);
        let shown = rows.get(number - 1);
        let shown = shown.with_context(|| match rows.len() {
            1 => "it has only 1 row".to_owned(),
            count => format!("it has only {count} rows"),
        })?;
        let (text, examples) = self.one(&encoder, shown)?;
        let row = json!({"place": shown.place.to_string(), "examples": examples});
        if self.row.is_some() {
            return Outcome::new(text, &json!({"kind": "row", "row": row}));
        }
        let (counts, lengths) = self.all(&encoder, &rows)?;
        let Lengths { shortest, median, percent_90, percent_99, longest } = &lengths;
        let text = format!(
            "{}\ntokens of a row: {shortest} to {longest}, half up to {median}, 90 % up to \
             {percent_90}, 99 % up to {percent_99}\n\n{text}",
            rows_text(&counts)
        );
        Outcome::new(
            text,
            &json!({"kind": "rows", "counts": counts, "lengths": lengths, "row": row}),
        )
    }

    /// One row, rendered.
    fn one(&self, encoder: &Encoder, row: &Row) -> anyhow::Result<(String, Vec<ExampleView>)> {
        let examples = encoder.examples_of(row, self.max_tokens)?;
        let (mut texts, mut views) = (Vec::new(), Vec::new());
        let total = examples.len();
        for (number, example) in examples.iter().enumerate() {
            let (tokens, learned, cut) = (example.tokens.len(), example.learned(), example.cut);
            let stretches = encoder.stretches(example)?;
            let part = match total {
                1 => String::new(),
                _ => format!(", example {} of {total}", number + 1),
            };
            let cut_off = if cut > 0 { format!(", {cut} more cut off") } else { String::new() };
            texts.push(format!(
                "{}{part}: {tokens} tokens, {learned} learned{cut_off}\n\n{}",
                row.place,
                marked(&stretches, wants_colour())
            ));
            views.push(ExampleView { tokens, learned, cut, text: stretches });
        }
        Ok((texts.join("\n\n"), views))
    }

    fn all(&self, encoder: &Encoder, rows: &[Row]) -> anyhow::Result<(RowCounts, Lengths)> {
        let (mut counts, mut lengths) = (RowCounts::default(), Vec::with_capacity(rows.len()));
        for row in rows {
            let examples = encoder.examples_of(row, self.max_tokens)?;
            let whole = |example: &Example| example.tokens.len() + example.cut;
            lengths.push(examples.iter().map(whole).max().unwrap_or(0));
            counts.add(&examples);
        }
        lengths.sort_unstable();
        ensure!(!lengths.is_empty(), "there are no rows in it");
        let up_to = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).max(1) - 1];
        let found = Lengths {
            shortest: lengths[0],
            median: up_to(50),
            percent_90: up_to(90),
            percent_99: up_to(99),
            longest: up_to(100),
        };
        Ok((counts, found))
    }
}

/// A text with the learned parts in colour, or between brackets.
fn marked(stretches: &[Stretch], colour: bool) -> String {
    let (open, close) = if colour { ("\u{1b}[32m", "\u{1b}[0m") } else { ("[[", "]]") };
    let show = |stretch: &Stretch| {
        // A row must not command the terminal.
        let mut text = String::with_capacity(stretch.text.len());
        for c in stretch.text.chars() {
            match c.is_control() && !matches!(c, '\n' | '\t') {
                true => text.extend(c.escape_default()),
                false => text.push(c),
            }
        }
        if stretch.learned { format!("{open}{text}{close}") } else { text }
    };
    stretches.iter().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learned_text_is_marked_and_commands_are_not_obeyed() {
        let stretch = |text: &str, learned| Stretch { text: text.to_owned(), learned };
        let row = [stretch("a\n", false), stretch("b\u{1b}[2J", true), stretch("c", false)];
        assert_eq!(marked(&row, false), "a\n[[b\\u{1b}[2J]]c");
        assert_eq!(marked(&row, true), "a\n\u{1b}[32mb\\u{1b}[2J\u{1b}[0mc");
    }
}
