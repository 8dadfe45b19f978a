//! Rows that stand for all rows of a file.

use dataset::{Content, Encoder, Example, Row};

use crate::Result;

/// Rows that are looked at to foretell all.
const SAMPLE_ROWS: usize = 2000;

/// Rows as tokens, standing for all rows of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub(super) examples: Vec<Example>,
    /// How many examples all rows give.
    pub(super) count: usize,
    /// Whether some rows are answered by choices.
    pub(super) has_choices: bool,
}

impl Sample {
    /// The first rows of a file to train on.
    ///
    /// # Errors
    ///
    /// If a row cannot be encoded.
    pub fn training(rows: &[Row], encoder: &Encoder, max_tokens: usize) -> Result<Self> {
        Self::of(rows, |row: &Row| Ok(encoder.examples_of(row, max_tokens)?))
    }

    /// The first rows of a file to evaluate on; of multiple-choice rows all choices count.
    ///
    /// # Errors
    ///
    /// If a row cannot be encoded.
    pub fn evaluation(rows: &[Row], encoder: &Encoder, max_tokens: usize) -> Result<Self> {
        let encode = |row: &Row| {
            let Content::Choice { .. } = row.content else {
                return Ok(encoder.examples_of(row, max_tokens)?);
            };
            let question = encoder.question(row, max_tokens)?;
            let choices: usize = question.choices.iter().map(Vec::len).sum();
            let reply = question.reply.len();
            let all = question.prompt.len() + choices + reply;
            let labelled = (0..all).map(|place| place < choices + reply).collect();
            Ok(vec![Example::whole(vec![0; all], labelled)])
        };
        Self::of(rows, encode)
    }

    fn of(rows: &[Row], encode: impl Fn(&Row) -> Result<Vec<Example>>) -> Result<Self> {
        let mut examples = Vec::new();
        for row in rows.iter().take(SAMPLE_ROWS) {
            examples.extend(encode(row)?);
        }
        let seen = rows.len().clamp(1, SAMPLE_ROWS);
        let count = (examples.len() as f64 / seen as f64 * rows.len() as f64).round() as usize;
        let has_choices = rows.iter().any(|row| matches!(row.content, Content::Choice { .. }));
        Ok(Self { examples, count, has_choices })
    }

    /// So many rows of so many tokens each, all of them to learn from.
    pub fn assumed(rows: usize, tokens: usize) -> Self {
        let row = Example::whole(vec![0; tokens], vec![true; tokens]);
        let examples = vec![row; rows.min(SAMPLE_ROWS)];
        Self { examples, count: rows, has_choices: false }
    }

    /// Whether some rows are answered by choices.
    pub(crate) fn has_choices(&self) -> bool {
        self.has_choices
    }

    pub(super) fn tokens(&self) -> f64 {
        self.scale() * self.examples.iter().map(|row| row.tokens.len()).sum::<usize>() as f64
    }

    /// How many examples of the file each of these stands for.
    pub(super) fn scale(&self) -> f64 {
        self.count as f64 / self.examples.len().max(1) as f64
    }

    pub(super) fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|row| row.tokens.len()).collect()
    }

    pub(super) fn labelled(&self) -> usize {
        let of_row = |row: &Example| row.labelled.iter().filter(|&&labelled| labelled).count();
        self.examples.iter().map(of_row).sum()
    }
}
