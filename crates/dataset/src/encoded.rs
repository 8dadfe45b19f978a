//! All rows of a file as tokens, and what became of them.

use serde::{Deserialize, Serialize};

use crate::{DatasetError, Encoder, Example, Place, Result, Row};

/// Rows to train on, as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The rows that have something to learn.
    pub examples: Vec<Example>,
    /// Where each of these stands.
    pub places: Vec<Place>,
    /// What became of all rows.
    pub counts: RowCounts,
}

/// What became of rows when they were encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// How many rows there are.
    pub rows: usize,
    /// How many of them were cut to the length limit.
    pub cut: usize,
    /// How many were left out, since nothing to learn lies within the limit.
    pub left_out: usize,
    /// Tokens of the rows that are used.
    pub tokens: usize,
    /// How many of these are learned.
    pub learned: usize,
}

impl RowCounts {
    /// Counts one row more.
    pub fn add(&mut self, example: &Example) {
        let learned = example.labelled.iter().filter(|&&labelled| labelled).count();
        self.rows += 1;
        self.cut += usize::from(example.cut > 0);
        self.left_out += usize::from(learned == 0);
        if learned > 0 {
            self.tokens += example.tokens.len();
            self.learned += learned;
        }
    }
}

impl Encoder {
    /// Rows as tokens; those with nothing to learn within `max_tokens` are left out.
    ///
    /// # Errors
    ///
    /// As [`Encoder::example`]; [`DatasetError::NothingToLearn`] if no row is left.
    pub fn examples(&self, rows: &[Row], max_tokens: usize) -> Result<Encoded> {
        let mut encoded =
            Encoded { examples: Vec::new(), places: Vec::new(), counts: RowCounts::default() };
        for row in rows {
            let example = self.example(row, max_tokens)?;
            encoded.counts.add(&example);
            if example.labelled.contains(&true) {
                encoded.examples.push(example);
                encoded.places.push(row.place.clone());
            }
        }
        if encoded.examples.is_empty() {
            return Err(DatasetError::NothingToLearn { max_tokens });
        }
        Ok(encoded)
    }
}
