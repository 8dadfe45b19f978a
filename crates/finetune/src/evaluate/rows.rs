//! Rows to evaluate on, as tokens.

use dataset::{Content, Encoder, Example, Question, Row};

use crate::Result;

/// Rows to evaluate on, encoded once for any number of evaluations.
#[derive(Debug, Clone)]
pub struct EvalRows {
    /// How many rows.
    pub(super) rows: usize,
    /// How many of these were cut to the length limit.
    pub(super) cut_rows: usize,
    /// Those with choices, longest first, each with its number, counted from 1.
    pub(super) questions: Vec<(usize, Question)>,
    /// What the others give, longest first, each with its row's number.
    pub(super) examples: Vec<(usize, Example)>,
}

impl EvalRows {
    /// Encodes rows; longer ones than `max_tokens` are cut.
    ///
    /// # Errors
    ///
    /// If a row cannot be encoded.
    pub fn encode(encoder: &Encoder, rows: &[Row], max_tokens: usize) -> Result<Self> {
        let (mut cut_rows, mut questions, mut examples) = (0, Vec::new(), Vec::new());
        for (number, row) in rows.iter().enumerate() {
            if let Content::Choice { .. } = row.content {
                let question = encoder.question(row, max_tokens)?;
                cut_rows += usize::from(question.cut > 0);
                questions.push((number + 1, question));
            } else {
                let of_row = encoder.examples_of(row, max_tokens)?;
                cut_rows += usize::from(of_row.iter().any(|example| example.cut > 0));
                examples.extend(of_row.into_iter().map(|example| (number + 1, example)));
            }
        }
        Ok(Self::sorted(rows.len(), cut_rows, questions, examples))
    }

    /// Rows that are tokens already.
    pub fn new(questions: Vec<Question>, examples: Vec<Example>) -> Self {
        let cut = questions.iter().map(|question| question.cut);
        let cut_rows = cut.chain(examples.iter().map(|example| example.cut));
        let cut_rows = cut_rows.filter(|&cut| cut > 0).count();
        let rows = questions.len() + examples.len();
        let asked = questions.len();
        let questions = (1..).zip(questions).collect();
        let examples = (asked + 1..).zip(examples).collect();
        Self::sorted(rows, cut_rows, questions, examples)
    }

    /// Longest first: what does not fit memory fails at once, and the time left is never too low.
    fn sorted(
        rows: usize,
        cut_rows: usize,
        mut questions: Vec<(usize, Question)>,
        mut examples: Vec<(usize, Example)>,
    ) -> Self {
        questions.sort_by_key(|(_, question)| std::cmp::Reverse(question_tokens(question)));
        examples.sort_by_key(|(_, example)| std::cmp::Reverse(example.tokens.len()));
        Self { rows, cut_rows, questions, examples }
    }

    /// Every `of`-th row, from `first` on; longest first as all are, so that shares are about as long.
    pub(super) fn share(&self, first: usize, of: usize) -> Self {
        let questions = self.questions.iter().skip(first).step_by(of).cloned().collect();
        // The longest examples to those that have the shorter questions.
        let examples = self.examples.iter().skip(of - 1 - first).step_by(of).cloned().collect();
        Self { questions, examples, ..*self }
    }

    /// The most choices that a row has.
    pub(super) fn most_choices(&self) -> usize {
        self.questions.iter().map(|(_, question)| question.choices.len()).max().unwrap_or(0)
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Rows with choices, so many tokens together.
    pub(super) fn question_batches(
        &self,
        most: usize,
    ) -> impl Iterator<Item = &[(usize, Question)]> {
        batches(&self.questions, most, |(_, question)| question_tokens(question))
    }

    /// Examples, so many tokens together.
    pub(super) fn example_batches(&self, most: usize) -> impl Iterator<Item = &[(usize, Example)]> {
        batches(&self.examples, most, |(_, example)| example.tokens.len())
    }
}

/// Runs of items with at most so many tokens together, or one item.
fn batches<T>(
    items: &[T],
    most: usize,
    tokens: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |item: &&T| {
            sum += tokens(item);
            sum <= most
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, after) = rest.split_at(count);
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

fn question_tokens(question: &Question) -> usize {
    question.prompt.len() + question.choices.iter().map(Vec::len).sum::<usize>()
}
