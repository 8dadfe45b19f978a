//! Why a template could not be parsed or rendered.

use std::fmt;

/// What is wrong, and on which line of the template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Counted from 1; 0 while it is not known.
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { line: 0, what: what.into() }
    }

    /// The fault with a line, unless it has one.
    pub(super) fn on(self, line: usize) -> Self {
        if self.line == 0 { Self { line, ..self } } else { self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// A fault as a result.
pub(super) fn fail<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(what))
}
