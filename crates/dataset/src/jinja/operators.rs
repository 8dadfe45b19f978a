//! Arithmetic and slices, as Python does them.

use super::budget::{Budget, Builder};
use super::fault::{Fault, fail};
use super::percent::percent;
use super::tree::Operator;
use super::value::{ListKind, Value};

/// `a operator b`.
pub(super) fn arithmetic(
    a: &Value,
    operator: Operator,
    b: &Value,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    match (operator, a, b) {
        (Operator::Concatenate, _, _) => {
            let mut out = Builder::new(budget);
            a.print(&mut out)?;
            b.print(&mut out)?;
            Ok(Value::Text(out.finish()))
        }
        (Operator::Add, Value::Text(a), Value::Text(b)) => {
            let mut out = Builder::new(budget);
            out.push(a)?;
            out.push(b)?;
            Ok(Value::Text(out.finish()))
        }
        (Operator::Add, Value::List(a), Value::List(b)) if a.kind == b.kind => {
            budget.make(48 * (a.items.len() + b.items.len()))?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            Value::list(items, a.kind, budget)
        }
        (Operator::Remainder, Value::Text(format), _) => percent(format, b, budget),
        (Operator::Multiply, Value::Text(_) | Value::List(_), _) => repeat(a, b, budget),
        (Operator::Multiply, _, Value::Text(_) | Value::List(_)) => repeat(b, a, budget),
        _ => numbers(a, operator, b),
    }
}

fn repeat(value: &Value, count: &Value, budget: &mut Budget) -> Result<Value, Fault> {
    let Some(count) = count.as_int() else {
        return fail(format!("{} cannot be multiplied by {}", value.kind(), count.kind()));
    };
    let count = usize::try_from(count).unwrap_or(0);
    match value {
        Value::Text(text) => {
            budget.make(text.len().saturating_mul(count))?;
            let text = if text.is_empty() { String::new() } else { text.repeat(count) };
            Ok(Value::Text(text.into()))
        }
        Value::List(list) => {
            budget.make(list.items.len().saturating_mul(count).saturating_mul(48))?;
            let count = if list.items.is_empty() { 0 } else { count };
            let items = std::iter::repeat_n(&list.items, count).flatten().cloned().collect();
            Value::list(items, list.kind, budget)
        }
        other => fail(format!("{} cannot be multiplied", other.kind())),
    }
}

fn numbers(a: &Value, operator: Operator, b: &Value) -> Result<Value, Fault> {
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return integers(a, operator, b);
    }
    let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else {
        return fail(format!("{} and {} cannot be calculated with", a.kind(), b.kind()));
    };
    if y == 0.0
        && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder)
    {
        return fail("division by zero");
    }
    Ok(Value::Float(match operator {
        Operator::Add | Operator::Concatenate => x + y,
        Operator::Subtract => x - y,
        Operator::Multiply => x * y,
        Operator::Divide => x / y,
        Operator::FloorDivide => (x / y).floor(),
        Operator::Remainder => x - y * (x / y).floor(),
        Operator::Power => x.powf(y),
    }))
}

fn integers(a: i64, operator: Operator, b: i64) -> Result<Value, Fault> {
    let found = match operator {
        Operator::Add | Operator::Concatenate => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide | Operator::FloorDivide | Operator::Remainder if b == 0 => {
            return fail("division by zero");
        }
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDivide => a.checked_div_euclid(b).and_then(|quotient| {
            // Python rounds down, also by a negative number.
            let rest = a.checked_rem_euclid(b)?;
            if b < 0 && rest != 0 { quotient.checked_sub(1) } else { Some(quotient) }
        }),
        Operator::Remainder => a
            .checked_rem_euclid(b)
            .and_then(|rest| if b < 0 && rest != 0 { rest.checked_add(b) } else { Some(rest) }),
        Operator::Power if b < 0 => return Ok(Value::Float((a as f64).powf(b as f64))),
        Operator::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    match found {
        Some(found) => Ok(Value::Int(found)),
        None => fail("an integer is out of range"),
    }
}

/// `-value`.
pub(super) fn negative(value: &Value) -> Result<Value, Fault> {
    match (value.as_int(), value) {
        (Some(number), _) => match number.checked_neg() {
            Some(number) => Ok(Value::Int(number)),
            None => fail("an integer is out of range"),
        },
        (None, Value::Float(number)) => Ok(Value::Float(-number)),
        (None, other) => fail(format!("{} cannot be negative", other.kind())),
    }
}

/// `+value`.
pub(super) fn positive(value: Value) -> Result<Value, Fault> {
    match (value.as_int(), &value) {
        (Some(number), _) => Ok(Value::Int(number)),
        (None, Value::Float(_)) => Ok(value),
        (None, other) => fail(format!("{} cannot be positive", other.kind())),
    }
}

/// `value[start:stop:step]`.
pub(super) fn slice(
    value: &Value,
    parts: &[Option<Value>; 3],
    budget: &mut Budget,
) -> Result<Value, Fault> {
    let mut bounds = [None; 3];
    for (bound, part) in bounds.iter_mut().zip(parts) {
        *bound = match part {
            None | Some(Value::None) => None,
            Some(part) => match part.as_int() {
                Some(number) => Some(number),
                None => return fail(format!("{} cannot bound a slice", part.kind())),
            },
        };
    }
    match value {
        Value::Text(text) => {
            budget.make(4 * text.len())?;
            let chars: Vec<char> = text.chars().collect();
            let kept: String = positions(chars.len(), bounds)?.map(|at| chars[at]).collect();
            Ok(Value::Text(kept.into()))
        }
        Value::List(list) if list.kind != ListKind::Generator => {
            budget.make(48 * list.items.len())?;
            let kept = positions(list.items.len(), bounds)?.map(|at| list.items[at].clone());
            Value::list(kept.collect(), list.kind, budget)
        }
        Value::Undefined => fail("a slice is asked of an undefined value"),
        _ => Ok(Value::Undefined),
    }
}

/// The positions a slice takes of so many, as Python's `slice.indices` has it.
fn positions(
    length: usize,
    [start, stop, step]: [Option<i64>; 3],
) -> Result<impl Iterator<Item = usize>, Fault> {
    let (length, step) = (length as i64, step.unwrap_or(1));
    if step == 0 {
        return fail("the step of a slice must not be 0");
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |given: Option<i64>, default: i64| match given {
        None => default,
        Some(at) if at < 0 => at.saturating_add(length).clamp(low, high),
        Some(at) => at.clamp(low, high),
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let (start, stop) = (bound(start, first), bound(stop, last));
    let mut at = Some(start);
    Ok(std::iter::from_fn(move || {
        let found = at.filter(|&at| if step > 0 { at < stop } else { at > stop })?;
        at = found.checked_add(step);
        usize::try_from(found).ok()
    }))
}
