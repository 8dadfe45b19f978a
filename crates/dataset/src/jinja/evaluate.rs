//! What expressions come to.

use std::cmp::Ordering;
use std::sync::Arc;

use super::budget::Budget;
use super::call::Given;
use super::checks::check;
use super::fault::{Fault, fail};
use super::filters::filter;
use super::machine::Machine;
use super::methods::{call_method, has_method};
use super::operators::{arithmetic, negative, positive, slice};
use super::tree::{Arguments, Comparison, Expression, Suffix};
use super::value::{ListKind, Value};

impl Machine {
    pub(super) fn evaluate(&mut self, expression: &Expression) -> Result<Value, Fault> {
        self.budget.step(1)?;
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => self.lookup(name),
            _ => self.deeper(|machine| machine.compound(expression)),
        }
    }

    fn compound(&mut self, expression: &Expression) -> Result<Value, Fault> {
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => self.lookup(name),
            Expression::And(parts) => self.first(parts, false),
            Expression::Or(parts) => self.first(parts, true),
            Expression::Not(inner) => Ok(Value::Bool(!self.evaluate(inner)?.is_true())),
            Expression::Negative(inner) => negative(&self.evaluate(inner)?),
            Expression::Positive(inner) => positive(self.evaluate(inner)?),
            Expression::Compare(first, rest) => self.compare(first, rest),
            Expression::Arithmetic(first, rest) => {
                let mut found = self.evaluate(first)?;
                for (operator, operand) in rest {
                    let operand = self.evaluate(operand)?;
                    found = arithmetic(&found, *operator, &operand, &mut self.budget)?;
                }
                Ok(found)
            }
            Expression::Conditional(parts) => {
                if self.evaluate(&parts.condition)?.is_true() {
                    self.evaluate(&parts.then)
                } else {
                    let otherwise = parts.otherwise.as_ref();
                    otherwise.map_or(Ok(Value::Undefined), |value| self.evaluate(value))
                }
            }
            Expression::List(items) => self.list(items, ListKind::List),
            Expression::Tuple(items) => self.list(items, ListKind::Tuple),
            Expression::Dict(entries) => self.dict(entries),
            Expression::Postfix(base, suffixes) => {
                let base = self.evaluate(base)?;
                self.suffixed(base, suffixes)
            }
        }
    }

    /// The first of some parts that is true, or false; else the last.
    fn first(&mut self, parts: &[Expression], wanted: bool) -> Result<Value, Fault> {
        let mut found = Value::Undefined;
        for part in parts {
            found = self.evaluate(part)?;
            if found.is_true() == wanted {
                break;
            }
        }
        Ok(found)
    }

    fn compare(
        &mut self,
        first: &Expression,
        rest: &[(Comparison, Expression)],
    ) -> Result<Value, Fault> {
        let mut left = self.evaluate(first)?;
        for (comparison, right) in rest {
            let right = self.evaluate(right)?;
            if !compare(&left, *comparison, &right, &mut self.budget)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn list(&mut self, items: &[Expression], kind: ListKind) -> Result<Value, Fault> {
        let items: Result<_, Fault> = items.iter().map(|item| self.evaluate(item)).collect();
        Value::list(items?, kind, &mut self.budget)
    }

    fn dict(&mut self, entries: &[(Expression, Expression)]) -> Result<Value, Fault> {
        let mut found: Vec<(Value, Value)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let (key, value) = (self.evaluate(key)?, self.evaluate(value)?);
            insert(&mut found, key, value, &mut self.budget)?;
        }
        Value::dict(found, &mut self.budget)
    }

    /// An expression with what follows it.
    pub(super) fn suffixed(&mut self, base: Value, suffixes: &[Suffix]) -> Result<Value, Fault> {
        let (mut found, mut rest) = (base, suffixes);
        while let Some((suffix, after)) = rest.split_first() {
            self.budget.step(1)?;
            rest = after;
            found = match (suffix, after.first()) {
                (Suffix::Attribute(name), Some(Suffix::Call(arguments)))
                    if has_method(&found, name) =>
                {
                    rest = &after[1..];
                    let given = self.given(arguments)?;
                    call_method(&found, name, &given, &mut self.budget)?
                }
                _ => self.suffix(&found, suffix)?,
            };
        }
        Ok(found)
    }

    fn suffix(&mut self, value: &Value, suffix: &Suffix) -> Result<Value, Fault> {
        match suffix {
            Suffix::Attribute(name) => attribute(value, name, &mut self.budget),
            Suffix::Item(item) => {
                let item = self.evaluate(item)?;
                subscript(value, &item, &mut self.budget)
            }
            Suffix::Slice(parts) => {
                let mut found = [None, None, None];
                for (found, part) in found.iter_mut().zip(parts.iter()) {
                    *found = part.as_ref().map(|part| self.evaluate(part)).transpose()?;
                }
                slice(value, &found, &mut self.budget)
            }
            Suffix::Call(arguments) => {
                let given = self.given(arguments)?;
                self.call(value, given)
            }
            Suffix::Filter(name, arguments) => {
                let given = self.given(arguments)?;
                filter(name, value, &given, &mut self.budget)
            }
            Suffix::Test(test) => {
                let given = self.given(&test.arguments)?;
                let found = check(&test.name, value, &given, &mut self.budget)?;
                Ok(Value::Bool(found != test.negated))
            }
        }
    }

    /// Arguments as values.
    pub(super) fn given(&mut self, arguments: &Arguments) -> Result<Given, Fault> {
        let mut given = Given::default();
        for value in &arguments.positional {
            given.positional.push(self.evaluate(value)?);
        }
        for (name, value) in &arguments.named {
            given.named.push((Arc::clone(name), self.evaluate(value)?));
        }
        if let Some(rest) = &arguments.rest {
            let items = self.evaluate(rest)?.items(&mut self.budget)?;
            self.budget.make(48 * items.items.len())?;
            given.positional.extend(items.items.iter().cloned());
        }
        if let Some(rest) = &arguments.rest_named {
            let Value::Dict(dict) = self.evaluate(rest)? else {
                return fail("what follows `**` must be a dict");
            };
            self.budget.make(96 * dict.entries.len())?;
            for (key, value) in &dict.entries {
                if let Value::Text(name) = key {
                    given.named.push((Arc::clone(name), value.clone()));
                }
            }
        }
        Ok(given)
    }
}

/// Sets a key of a dict that is being made.
pub(super) fn insert(
    entries: &mut Vec<(Value, Value)>,
    key: Value,
    value: Value,
    budget: &mut Budget,
) -> Result<(), Fault> {
    if matches!(key, Value::List(_) | Value::Dict(_) | Value::Namespace(_)) {
        return fail(format!("{} cannot be a key", key.kind()));
    }
    for (found, slot) in entries.iter_mut() {
        if found.equals(&key, budget)? {
            *slot = value;
            return Ok(());
        }
    }
    entries.push((key, value));
    Ok(())
}

/// Whether a comparison holds.
pub(super) fn compare(
    a: &Value,
    comparison: Comparison,
    b: &Value,
    budget: &mut Budget,
) -> Result<bool, Fault> {
    Ok(match comparison {
        Comparison::Equal => a.equals(b, budget)?,
        Comparison::NotEqual => !a.equals(b, budget)?,
        Comparison::In => a.is_in(b, budget)?,
        Comparison::NotIn => !a.is_in(b, budget)?,
        Comparison::Less => a.order(b, budget)? == Ordering::Less,
        Comparison::LessOrEqual => a.order(b, budget)? != Ordering::Greater,
        Comparison::Greater => a.order(b, budget)? == Ordering::Greater,
        Comparison::GreaterOrEqual => a.order(b, budget)? != Ordering::Less,
    })
}

/// `value.name`: in Jinja a method comes before a key.
pub(super) fn attribute(
    value: &Value,
    name: &Arc<str>,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    if has_method(value, name) {
        return Ok(Value::Method);
    }
    Ok(match value {
        Value::Undefined => return fail(format!("`{name}` is asked of an undefined value")),
        Value::Dict(dict) => dict.named(name, budget)?.cloned().unwrap_or(Value::Undefined),
        Value::Namespace(namespace) => namespace.get(name, budget)?.unwrap_or(Value::Undefined),
        Value::Loop(state) => {
            let (at, all) = (state.index as i64, state.items.items.len() as i64);
            match &**name {
                "index" => Value::Int(at + 1),
                "index0" => Value::Int(at),
                "revindex" => Value::Int(all - at),
                "revindex0" => Value::Int(all - at - 1),
                "first" => Value::Bool(at == 0),
                "last" => Value::Bool(at + 1 == all),
                "length" => Value::Int(all),
                "depth" => Value::Int(1), // Only recursive loops lie deeper.
                "depth0" => Value::Int(0),
                "previtem" if at > 0 => state.items.items[state.index - 1].clone(),
                "nextitem" if at + 1 < all => state.items.items[state.index + 1].clone(),
                _ => Value::Undefined,
            }
        }
        Value::Macro(bound) if &**name == "name" => Value::Text(Arc::clone(&bound.code.name)),
        _ => Value::Undefined,
    })
}

/// `value[item]`: in Jinja a key comes before a method.
fn subscript(value: &Value, item: &Value, budget: &mut Budget) -> Result<Value, Fault> {
    let found = match (value, item) {
        (Value::Undefined, _) => return fail("an item is asked of an undefined value"),
        (Value::List(list), _) if list.kind != ListKind::Generator => {
            item.as_int().and_then(|position| list.at(position)).cloned()
        }
        (Value::Dict(dict), _) => dict.get(item, budget)?.cloned(),
        (Value::Text(text), _) => match item.as_int() {
            Some(position) => {
                budget.step(text.len() / 64)?;
                let from_end = if position < 0 { text.chars().count() as i64 } else { 0 };
                let position = usize::try_from(position.saturating_add(from_end)).ok();
                let found = position.and_then(|position| text.chars().nth(position));
                found.map(|c| Value::Text(c.to_string().into()))
            }
            None => None,
        },
        _ => None,
    };
    match (found, item) {
        (Some(found), _) => Ok(found),
        (None, Value::Text(name)) => attribute(value, name, budget),
        (None, _) => Ok(Value::Undefined),
    }
}
