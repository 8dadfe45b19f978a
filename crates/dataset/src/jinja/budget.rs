//! What a template may use up: steps and bytes.

use std::sync::Arc;

use super::fault::{Fault, fail};

/// Steps and bytes that are left to a rendering.
///
/// Every expression costs a step, whatever goes through a text or a list more, and every text and
/// list that is made its bytes, even if it is dropped at once. So neither the time nor the memory
/// of a template can run away.
#[derive(Debug)]
pub(crate) struct Budget {
    steps: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(steps: usize, bytes: usize) -> Self {
        Self { steps, bytes }
    }

    pub(super) fn step(&mut self, count: usize) -> Result<(), Fault> {
        match self.steps.checked_sub(count) {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => fail("the limit on steps is reached: the template loops too long"),
        }
    }

    /// Asks for the bytes of something that is about to be made.
    pub(super) fn make(&mut self, bytes: usize) -> Result<(), Fault> {
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => fail("the limit on memory is reached: the template makes too much text"),
        }
    }
}

/// A text that grows within the budget.
pub(super) struct Builder<'a> {
    pub(super) budget: &'a mut Budget,
    text: String,
}

impl<'a> Builder<'a> {
    pub(super) fn new(budget: &'a mut Budget) -> Self {
        Self { budget, text: String::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Fault> {
        self.budget.step(1)?;
        self.budget.make(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(super) fn push_char(&mut self, c: char) -> Result<(), Fault> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// A character so many times.
    pub(super) fn fill(&mut self, c: char, count: usize) -> Result<(), Fault> {
        self.budget.make(count.saturating_mul(c.len_utf8()))?;
        self.text.push_str(&c.to_string().repeat(count));
        Ok(())
    }

    pub(super) fn finish(self) -> Arc<str> {
        self.text.into()
    }
}
