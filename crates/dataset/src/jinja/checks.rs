//! Jinja's tests: `value is name`.

use super::budget::Budget;
use super::call::Given;
use super::evaluate::compare;
use super::fault::{Fault, fail};
use super::tree::Comparison;
use super::value::{ListKind, Value};

/// `value is name(given)`.
pub(super) fn check(
    name: &str,
    value: &Value,
    given: &Given,
    budget: &mut Budget,
) -> Result<bool, Fault> {
    let comparison = match name {
        "eq" | "equalto" => Some(Comparison::Equal),
        "ne" => Some(Comparison::NotEqual),
        "lt" | "lessthan" => Some(Comparison::Less),
        "le" => Some(Comparison::LessOrEqual),
        "gt" | "greaterthan" => Some(Comparison::Greater),
        "ge" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let Some(other) = given.positional.first() else {
            return fail(format!("`is {name}` needs a value to compare with"));
        };
        return compare(value, comparison, other, budget);
    }
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined),
        "undefined" => matches!(value, Value::Undefined),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => match value {
            Value::List(list) => list.kind != ListKind::Generator,
            _ => matches!(value, Value::Undefined | Value::Text(_) | Value::Dict(_)),
        },
        "iterable" => {
            matches!(value, Value::Text(_) | Value::List(_) | Value::Dict(_) | Value::Undefined)
        }
        "callable" => {
            matches!(value, Value::Macro(_) | Value::Function(_) | Value::Method)
        }
        "odd" | "even" | "divisibleby" => {
            let by = if name == "divisibleby" { given.int(0, "num")?.unwrap_or(0) } else { 2 };
            match value.as_int().and_then(|number| number.checked_rem_euclid(by)) {
                Some(rest) => (rest == 0) != (name == "odd"),
                None => return fail(format!("`is {name}` needs integers")),
            }
        }
        "lower" | "upper" => {
            let text = value.printed(budget)?;
            budget.step(text.len() / 16)?; // Twice character by character.
            let cased = |is: fn(char) -> bool, not: fn(char) -> bool| {
                text.chars().any(is) && !text.chars().any(not)
            };
            match name {
                "lower" => cased(char::is_lowercase, char::is_uppercase),
                _ => cased(char::is_uppercase, char::is_lowercase),
            }
        }
        "escaped" => false,
        "sameas" => match (value, given.positional.first()) {
            (Value::Bool(a), Some(Value::Bool(b))) => a == b,
            (Value::None, Some(Value::None)) => true,
            (a, Some(b)) if std::mem::discriminant(a) == std::mem::discriminant(b) => {
                a.equals(b, budget)?
            }
            _ => false,
        },
        _ => return fail(format!("the test `{name}` is not known")),
    })
}
