//! All rows of a file as tokens, and what became of them.

use serde::{Deserialize, Serialize};

use crate::{DatasetError, Encoder, Example, Place, Result, Row};

/// Rows to train on, as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// What the rows have to learn, in their order.
    pub examples: Vec<Example>,
    /// Where the row of each of these stands.
    pub places: Vec<Place>,
    /// What became of all rows.
    pub counts: RowCounts,
}

/// What became of rows when they were encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// How many rows there are.
    pub rows: usize,
    /// How many examples they give; more than rows where a template shows replies differently later.
    #[serde(default)]
    pub examples: usize,
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
    /// Counts one row more, by its examples.
    pub fn add(&mut self, examples: &[Example]) {
        self.rows += 1;
        self.cut += usize::from(examples.iter().any(|example| example.cut > 0));
        self.left_out += usize::from(examples.iter().all(|example| example.learned() == 0));
        for example in examples.iter().filter(|example| example.learned() > 0) {
            self.examples += 1;
            self.tokens += example.tokens.len();
            self.learned += example.learned();
        }
    }

    /// Whether a tenth of the rows or more is cut or left out.
    pub fn loses_much(&self) -> bool {
        is_much(self.cut, self.rows) || is_much(self.left_out, self.rows)
    }
}

/// Whether a number of rows is a tenth of all or more.
pub fn is_much(count: usize, rows: usize) -> bool {
    count >= rows.div_ceil(10).max(1)
}

impl Encoder {
    /// Rows as tokens; those with nothing to learn within `max_tokens` are left out.
    ///
    /// # Errors
    ///
    /// As [`Encoder::examples_of`]; [`DatasetError::NothingToLearn`] if no row is left.
    pub fn examples(&self, rows: &[Row], max_tokens: usize) -> Result<Encoded> {
        let mut encoded =
            Encoded { examples: Vec::new(), places: Vec::new(), counts: RowCounts::default() };
        for row in rows {
            let examples = self.examples_of(row, max_tokens)?;
            encoded.counts.add(&examples);
            for example in examples.into_iter().filter(|example| example.learned() > 0) {
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
