//! Calls: arguments, macros and the functions every template has.

use std::sync::Arc;

use super::budget::Budget;
use super::clock::strftime_now;
use super::evaluate::insert;
use super::fault::{Fault, fail};
use super::machine::Machine;
use super::value::{ListKind, Namespace, Value};

/// Longest `range`, as in Jinja's sandbox.
const MOST_ITEMS: i64 = 100_000;

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// The argument at a place, or of a name.
    pub(super) fn get(&self, place: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(found, _)| &**found == name);
        self.positional.get(place).or_else(|| named().map(|(_, value)| value))
    }

    pub(super) fn text(&self, place: usize, name: &str) -> Result<Option<&str>, Fault> {
        match self.get(place, name) {
            None | Some(Value::None | Value::Undefined) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => fail(format!("`{name}` must be a text and is {}", other.kind())),
        }
    }

    pub(super) fn int(&self, place: usize, name: &str) -> Result<Option<i64>, Fault> {
        match self.get(place, name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.as_int() {
                Some(number) => Ok(Some(number)),
                None => fail(format!("`{name}` must be an integer and is {}", value.kind())),
            },
        }
    }

    pub(super) fn is_true(&self, place: usize, name: &str) -> bool {
        self.get(place, name).is_some_and(Value::is_true)
    }
}

impl Machine {
    pub(super) fn call(&mut self, callee: &Value, given: Given) -> Result<Value, Fault> {
        match callee {
            Value::Macro(bound) => self.call_macro(bound, given),
            Value::Function(name) => match &**name {
                "range" => self.range(&given),
                "dict" => {
                    let mut entries = match given.positional.first() {
                        Some(Value::Dict(dict)) => {
                            self.budget.make(96 * dict.entries.len())?;
                            dict.entries.clone()
                        }
                        Some(other) => {
                            return fail(format!("`dict` cannot take {}", other.kind()));
                        }
                        None => Vec::new(),
                    };
                    for (name, value) in given.named {
                        insert(&mut entries, Value::Text(name), value, &mut self.budget)?;
                    }
                    Value::dict(entries, &mut self.budget)
                }
                "namespace" => namespace(&given, &mut self.budget),
                "raise_exception" => match given.get(0, "message") {
                    Some(message) => fail(message.printed(&mut self.budget)?.to_string()),
                    None => fail("the template refuses the chat"),
                },
                _ => match given.text(0, "format")? {
                    Some(format) => {
                        // The longest code, `%c`, makes 24 bytes of two.
                        self.budget.make(format.len().saturating_mul(16))?;
                        Value::text(&strftime_now(format), &mut self.budget)
                    }
                    None => fail("`strftime_now` needs a format"),
                },
            },
            Value::Undefined => fail("an undefined value is called"),
            other => fail(format!("{} cannot be called", other.kind())),
        }
    }

    fn range(&mut self, given: &Given) -> Result<Value, Fault> {
        let number = |place| given.int(place, "range");
        let (start, stop) = match (number(0)?, number(1)?) {
            (Some(stop), None) => (0, stop),
            (Some(start), Some(stop)) => (start, stop),
            _ => return fail("`range` needs a number"),
        };
        let step = number(2)?.unwrap_or(1);
        if step == 0 {
            return fail("the step of `range` must not be 0");
        }
        let span = if step > 0 { stop.checked_sub(start) } else { start.checked_sub(stop) };
        let width = step.unsigned_abs().min(i64::MAX as u64) as i64;
        let count = match span {
            Some(span) if span <= 0 => 0,
            Some(span) if (span - 1) / width < MOST_ITEMS => (span - 1) / width + 1,
            _ => return fail(format!("`range` is limited to {MOST_ITEMS} numbers")),
        };
        let items = (0..count).map(|at| Value::Int(start + at * step)).collect();
        Value::list(items, ListKind::List, &mut self.budget)
    }
}

fn namespace(given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let found = Namespace::default();
    if let Some(Value::Dict(dict)) = given.positional.first() {
        for (key, value) in &dict.entries {
            if let Value::Text(name) = key {
                found.set(name, value.clone(), budget)?;
            }
        }
    }
    for (name, value) in &given.named {
        found.set(name, value.clone(), budget)?;
    }
    Ok(Value::Namespace(Arc::new(found)))
}
