//! The Jinja of chat templates, within limits.
//!
//! A template comes with a model, so nobody here vouches for it, and it has to render to the byte as
//! transformers renders it. Neither can be had of an engine made for web pages: texts that double in
//! a loop or a list that holds itself take all memory or the stack before any count of instructions
//! ends them, and `True`, `%`, generators and dicts are not Python's. So every step and every byte a
//! template makes is counted here, nothing holds itself, and nesting is bounded.

mod budget;
mod call;
mod checks;
mod clock;
mod evaluate;
mod expressions;
mod fault;
mod filters;
mod json;
mod lexer;
mod list_filters;
mod machine;
mod methods;
mod operators;
mod parser;
mod percent;
mod sorted;
mod text;
mod tree;
mod value;

#[cfg(test)]
mod hostile;

use std::ops::Range;

pub(crate) use fault::Fault;

use budget::Budget;
use machine::Machine;
use tree::{Block, Node, Statement};
use value::Value;

/// Bytes that a template may write beyond the text it was given.
const MORE_OUTPUT_BYTES: usize = 1 << 20;
/// Bytes of texts and lists made on the way, dropped ones included.
const MOST_BYTES: usize = 256 << 20;
/// Steps for a chat of no turns.
const BASE_STEPS: usize = 2_000_000;
/// Steps for each turn, and for each byte of text.
const TURN_STEPS: usize = 20_000;
const BYTE_STEPS: usize = 4;
/// Most steps of all; they take some seconds.
const MOST_STEPS: usize = 20_000_000;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Program {
    body: Block,
    marks: bool,
}

/// How large a chat is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) turns: usize,
    /// Of all its text, as JSON.
    pub(crate) bytes: usize,
}

/// What a template made of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// What `{% generation %}` encloses, in characters of the text, in the order it was written.
    pub(crate) marked: Vec<Range<usize>>,
}

impl Program {
    pub(crate) fn parse(source: &str) -> Result<Self, Fault> {
        let body = parser::parse(source)?;
        let marks = has_marks(&body);
        Ok(Self { body, marks })
    }

    /// Whether there is a `{% generation %}` in it.
    pub(crate) fn has_marks(&self) -> bool {
        self.marks
    }

    /// Renders with variables, which decide how much may be used up.
    pub(crate) fn render(
        &self,
        variables: &[(&str, serde_json::Value)],
        size: Size,
    ) -> Result<Rendered, Fault> {
        let Size { turns, bytes } = size;
        let steps = BASE_STEPS
            .saturating_add(turns.saturating_mul(TURN_STEPS))
            .saturating_add(bytes.saturating_mul(BYTE_STEPS))
            .min(MOST_STEPS.max(bytes.saturating_mul(BYTE_STEPS)));
        let mut budget = Budget::new(steps, MOST_BYTES.saturating_add(bytes.saturating_mul(8)));
        let mut names = Vec::with_capacity(variables.len());
        for (name, value) in variables {
            names.push(((*name).into(), Value::json(value, &mut budget)?));
        }
        let machine = Machine::new(names, budget, bytes.saturating_add(MORE_OUTPUT_BYTES));
        let (text, marked) = machine.run(&self.body)?;
        Ok(Rendered { text, marked })
    }
}

fn has_marks(body: &[Node]) -> bool {
    body.iter().any(|node| match &node.statement {
        Statement::Generation(_) => true,
        Statement::If { branches, otherwise } => {
            branches.iter().any(|(_, body)| has_marks(body)) || has_marks(otherwise)
        }
        Statement::For(found) => has_marks(&found.body) || has_marks(&found.otherwise),
        Statement::SetBlock { body, .. }
        | Statement::With { body, .. }
        | Statement::Filter { body, .. } => has_marks(body),
        Statement::Macro(code) | Statement::Call { caller: code, .. } => has_marks(&code.body),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of Jinja rendered by transformers; what it refuses has no text.
    #[test]
    fn pieces_are_as_in_transformers() {
        let fixture = testkit::json(&testkit::fixture("chats/jinja.json"));
        let context = fixture["context"].as_object().unwrap();
        let variables: Vec<(&str, serde_json::Value)> =
            context.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let mut wrong = String::new();
        for piece in fixture["pieces"].as_array().unwrap() {
            let source = piece[0].as_str().unwrap();
            let found = Program::parse(source)
                .and_then(|program| program.render(&variables, Size { turns: 1, bytes: 1000 }))
                .map(|rendered| rendered.text);
            if found.as_deref().ok() != piece[1].as_str() {
                wrong += &format!("{source}\n  {found:?}\n  {:?}\n", piece[1].as_str());
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
