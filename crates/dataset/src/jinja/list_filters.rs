//! Jinja's filters of lists and dicts.

use std::cmp::Ordering;

use super::budget::{Budget, Builder};
use super::call::Given;
use super::checks::check;
use super::evaluate::attribute;
use super::fault::{Fault, fail};
use super::filters::filter;
use super::methods::call_method;
use super::operators::arithmetic;
use super::sorted::sorted;
use super::tree::Operator;
use super::value::{ListKind, Value};

pub(super) fn sorted_items(
    value: &Value,
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    let by_value = given.text(1, "by")? == Some("value");
    let items = call_method(value, "items", &Given::default(), budget)?.items(budget)?;
    let mut keyed = Vec::with_capacity(items.items.len());
    for item in &items.items {
        if let Value::List(pair) = item {
            let key = pair.at(i64::from(by_value)).cloned().unwrap_or(Value::None);
            keyed.push((folded(&key, given.is_true(0, "case_sensitive"), budget)?, item.clone()));
        }
    }
    let keyed = sort(keyed, given.is_true(2, "reverse"), budget)?;
    Value::list(keyed.into_iter().map(|(_, item)| item).collect(), ListKind::List, budget)
}

/// A key to sort by: texts regardless of case, unless it counts.
fn folded(key: &Value, case_counts: bool, budget: &mut Budget) -> Result<Value, Fault> {
    match key {
        Value::Text(text) if !case_counts => Value::text(&text.to_lowercase(), budget),
        _ => Ok(key.clone()),
    }
}

/// Sorts values by their keys, as Python does.
fn sort(
    keyed: Vec<(Value, Value)>,
    reversed: bool,
    budget: &mut Budget,
) -> Result<Vec<(Value, Value)>, Fault> {
    let first = if reversed { Ordering::Greater } else { Ordering::Less };
    sorted(keyed, &mut |(a, _), (b, _)| Ok(a.order(b, budget)? == first))
}

/// `value.a.b`, or an item by number.
fn path(value: &Value, path: &Value, budget: &mut Budget) -> Result<Value, Fault> {
    let mut found = value.clone();
    let parts = match path {
        Value::Text(path) => {
            budget.make(path.len() + 24 * path.matches('.').count())?;
            path.split('.').map(str::to_owned).collect()
        }
        other => vec![other.as_int().unwrap_or(0).to_string()],
    };
    for part in parts {
        found = match (&found, part.parse()) {
            (Value::List(list), Ok(position)) => {
                list.at(position).cloned().unwrap_or(Value::Undefined)
            }
            (Value::Dict(dict), _) => {
                dict.named(&part, budget)?.cloned().unwrap_or(Value::Undefined)
            }
            _ => attribute(&found, &part.into(), budget)?,
        };
    }
    Ok(found)
}

pub(super) fn of_list(
    name: &str,
    value: &Value,
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    if let (Value::Text(text), "reverse") = (value, name) {
        budget.make(text.len())?;
        let reversed: String = text.chars().rev().collect();
        return Value::text(&reversed, budget);
    }
    let list = value.items(budget)?;
    let items = &list.items;
    budget.step(items.len())?;
    match name {
        "first" => Ok(items.first().cloned().unwrap_or(Value::Undefined)),
        "last" => Ok(items.last().cloned().unwrap_or(Value::Undefined)),
        "list" => Value::list(items.clone(), ListKind::List, budget),
        "reverse" => {
            Value::list(items.iter().rev().cloned().collect(), ListKind::Generator, budget)
        }
        "join" => join(items, given, budget),
        "batch" | "slice" => grouped(name, items, given, budget),
        "sum" => {
            let mut sum = given.get(1, "start").cloned().unwrap_or(Value::Int(0));
            for item in items {
                let item = match given.get(0, "attribute") {
                    Some(name) if !matches!(name, Value::None) => path(item, name, budget)?,
                    _ => item.clone(),
                };
                sum = arithmetic(&sum, Operator::Add, &item, budget)?;
            }
            Ok(sum)
        }
        "min" | "max" | "sort" | "unique" | "groupby" => ordered(name, items, given, budget),
        "map" => map(items, given, budget),
        _ => chosen(name, items, given, budget),
    }
}

fn join(items: &[Value], given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let between = match given.get(0, "d") {
        Some(between) => between.printed(budget)?,
        None => "".into(),
    };
    let mut out = Builder::new(budget);
    for (number, item) in items.iter().enumerate() {
        out.push(if number > 0 { &between } else { "" })?;
        match given.get(1, "attribute") {
            Some(name) => path(item, name, out.budget)?.print(&mut out)?,
            None => item.print(&mut out)?,
        }
    }
    Ok(Value::Text(out.finish()))
}

fn grouped(
    name: &str,
    items: &[Value],
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    let count = match given.int(0, "count")?.and_then(|count| usize::try_from(count).ok()) {
        Some(count) if count > 0 => count,
        _ => return fail(format!("`{name}` needs a number above 0")),
    };
    let fill = given.get(1, "fill_with").filter(|fill| !matches!(fill, Value::None));
    let mut groups = Vec::new();
    let mut group = |mut items: Vec<Value>, length: usize, budget: &mut Budget| {
        if let Some(fill) = fill {
            budget.make(length.saturating_sub(items.len()).saturating_mul(48))?;
            items.resize(items.len().max(length), fill.clone());
        }
        groups.push(Value::list(items, ListKind::List, budget)?);
        Ok::<_, Fault>(())
    };
    if name == "batch" {
        for items in items.chunks(count) {
            group(items.to_vec(), count, budget)?;
        }
    } else {
        budget.make(count.saturating_mul(48))?;
        let (each, more) = (items.len() / count, items.len() % count);
        let mut rest = items;
        for number in 0..count {
            let (taken, after) = rest.split_at(each + usize::from(number < more));
            rest = after;
            let length = if more > 0 && number >= more { each + 1 } else { taken.len() };
            group(taken.to_vec(), length, budget)?;
        }
    }
    Value::list(groups, ListKind::Generator, budget)
}

fn ordered(
    name: &str,
    items: &[Value],
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    // `sort(reverse, case_sensitive, attribute)`, `groupby(attribute)`, the others
    // `(case_sensitive, attribute)`.
    let place = usize::from(name == "sort");
    let by = given.get(if name == "groupby" { 0 } else { place + 1 }, "attribute");
    let case_counts = name != "groupby" && given.is_true(place, "case_sensitive");
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        let key = match by {
            Some(name) if !matches!(name, Value::None) => path(item, name, budget)?,
            _ => item.clone(),
        };
        keyed.push((folded(&key, case_counts, budget)?, item.clone()));
    }
    if name == "unique" {
        let mut kept: Vec<(Value, Value)> = Vec::new();
        for (key, item) in keyed {
            let mut seen = false;
            for (other, _) in &kept {
                seen = seen || other.equals(&key, budget)?;
            }
            if !seen {
                kept.push((key, item));
            }
        }
        let kept = kept.into_iter().map(|(_, item)| item).collect();
        return Value::list(kept, ListKind::Generator, budget);
    }
    let keyed = sort(keyed, name == "sort" && given.is_true(0, "reverse"), budget)?;
    if name == "groupby" {
        return groups(keyed, budget);
    }
    let mut sorted = keyed.into_iter();
    Ok(match name {
        "min" => sorted.next().map_or(Value::Undefined, |(_, item)| item),
        "max" => {
            // Of equals the first, as in Python.
            let mut best = sorted.next();
            for (key, item) in sorted {
                if let Some((most, _)) = &best
                    && key.order(most, budget)? == Ordering::Greater
                {
                    best = Some((key, item));
                }
            }
            best.map_or(Value::Undefined, |(_, item)| item)
        }
        _ => Value::list(sorted.map(|(_, item)| item).collect(), ListKind::List, budget)?,
    })
}

fn groups(keyed: Vec<(Value, Value)>, budget: &mut Budget) -> Result<Value, Fault> {
    let mut found: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in keyed {
        match found.last_mut() {
            Some((last, items)) if last.equals(&key, budget)? => items.push(item),
            _ => found.push((key, vec![item])),
        }
    }
    let mut pairs = Vec::with_capacity(found.len());
    for (key, items) in found {
        let items = Value::list(items, ListKind::List, budget)?;
        pairs.push(Value::list(vec![key, items], ListKind::Tuple, budget)?);
    }
    Value::list(pairs, ListKind::List, budget)
}

fn map(items: &[Value], given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let by = given.named.iter().find(|(name, _)| &**name == "attribute");
    let default = given.named.iter().find(|(name, _)| &**name == "default");
    let mut found = Vec::with_capacity(items.len());
    let rest = rest_of(given, 1);
    for item in items {
        budget.step(1 + rest.named.len() / 16)?;
        found.push(match (by, given.positional.first()) {
            (Some((_, name)), _) => match (path(item, name, budget)?, default) {
                (Value::Undefined, Some((_, default))) => default.clone(),
                (value, _) => value,
            },
            (None, Some(Value::Text(name))) => filter(name, item, &rest, budget)?,
            _ => return fail("`map` needs a filter or an attribute"),
        });
    }
    Value::list(found, ListKind::Generator, budget)
}

fn rest_of(given: &Given, from: usize) -> Given {
    let positional = given.positional.iter().skip(from).cloned().collect();
    Given { positional, named: given.named.clone() }
}

/// `select`, `reject`, `selectattr` and `rejectattr`.
fn chosen(name: &str, items: &[Value], given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let by_attribute = name.ends_with("attr");
    let place = usize::from(by_attribute);
    let rest = rest_of(given, place + 1);
    let mut kept = Vec::new();
    for item in items {
        budget.step(1 + rest.named.len() / 16)?;
        let value = match (by_attribute, given.positional.first()) {
            (true, Some(name)) => path(item, name, budget)?,
            (true, None) => return fail(format!("`{name}` needs an attribute")),
            (false, _) => item.clone(),
        };
        let holds = match given.positional.get(place) {
            Some(Value::Text(test)) => {
                let test = match &**test {
                    "==" => "eq",
                    "!=" => "ne",
                    "<" => "lt",
                    "<=" => "le",
                    ">" => "gt",
                    ">=" => "ge",
                    other => other,
                };
                check(test, &value, &rest, budget)?
            }
            Some(_) => return fail(format!("`{name}` needs the name of a test")),
            None => value.is_true(),
        };
        if holds == name.starts_with("select") {
            kept.push(item.clone());
        }
    }
    Value::list(kept, ListKind::Generator, budget)
}
