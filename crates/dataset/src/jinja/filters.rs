//! Jinja's filters: `value | name`.

use std::sync::Arc;

use super::budget::{Budget, Builder};
use super::call::Given;
use super::fault::{Fault, fail};
use super::json::to_json;
use super::list_filters::{of_list, sorted_items};
use super::methods::{call_method, has_method};
use super::percent::percent;
use super::text::{Ends, Replacement, capitalized, lines, titled, trimmed};
use super::value::{ListKind, Value};

/// `value | name(given)`.
pub(super) fn filter(
    name: &str,
    value: &Value,
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    match name {
        "default" | "d" => {
            let missing = matches!(value, Value::Undefined)
                || given.is_true(1, "boolean") && !value.is_true();
            let default = || given.get(0, "default_value").cloned();
            Ok(match missing {
                true => default().unwrap_or_else(|| Value::Text("".into())),
                false => value.clone(),
            })
        }
        "tojson" => to_json(value, given, budget),
        "length" | "count" => Ok(Value::Int(value.length(budget)? as i64)),
        "items" => match value {
            Value::Undefined => Value::list(Vec::new(), ListKind::Generator, budget),
            Value::Dict(_) => call_method(value, "items", given, budget),
            other => fail(format!("`items` needs a dict and gets {}", other.kind())),
        },
        "dictsort" => sorted_items(value, given, budget),
        "attr" => match given.text(0, "name")? {
            Some(name) if has_method(value, name) => Ok(Value::Method),
            _ => Ok(Value::Undefined),
        },
        "abs" => match (value.as_int(), value) {
            (Some(number), _) => Ok(Value::Int(number.saturating_abs())),
            (None, Value::Float(number)) => Ok(Value::Float(number.abs())),
            _ => fail(format!("`abs` needs a number and gets {}", value.kind())),
        },
        "int" | "float" => {
            budget.step(value.as_text().map_or(0, str::len) / 64)?;
            number(name, value, given)
        }
        "round" => round(value, given),
        "first" | "last" | "list" | "reverse" | "join" | "batch" | "slice" | "sum" | "min"
        | "max" | "sort" | "unique" | "map" | "select" | "reject" | "selectattr" | "rejectattr"
        | "groupby" => of_list(name, value, given, budget),
        "format" => {
            if !given.named.is_empty() {
                return fail("`format` with names is not supported");
            }
            let values = Value::list(given.positional.clone(), ListKind::Tuple, budget)?;
            percent(&value.printed(budget)?, &values, budget)
        }
        _ => of_text(name, value, given, budget),
    }
}

fn number(name: &str, value: &Value, given: &Given) -> Result<Value, Fault> {
    if name == "int" {
        return Ok(Value::Int(whole(value).or(given.int(0, "default")?).unwrap_or(0)));
    }
    let default = || given.get(0, "default")?.as_float();
    Ok(Value::Float(real(value).or_else(default).unwrap_or(0.0)))
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Float(number) => Some(*number as i64),
        Value::Text(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as i64))
        }
        _ => value.as_int(),
    }
}

fn real(value: &Value) -> Option<f64> {
    match value {
        Value::Text(text) => text.trim().parse().ok(),
        _ => value.as_float(),
    }
}

fn round(value: &Value, given: &Given) -> Result<Value, Fault> {
    let Some(number) = value.as_float() else {
        return fail(format!("`round` needs a number and gets {}", value.kind()));
    };
    let precision = given.int(0, "precision")?.unwrap_or(0).clamp(-300, 300);
    let method = given.text(1, "method")?.unwrap_or("common");
    if let (Some(whole), "common", 0..) = (value.as_int(), method, precision) {
        return Ok(Value::Int(whole));
    }
    let scale = 10_f64.powi(i32::try_from(precision).unwrap_or(0));
    let scaled = number * scale;
    let rounded = match method {
        "ceil" => scaled.ceil() / scale,
        "floor" => scaled.floor() / scale,
        // Through its digits, as Python does.
        _ if precision >= 0 => {
            let digits = usize::try_from(precision).unwrap_or(0).min(20);
            format!("{number:.digits$}").parse().unwrap_or(number)
        }
        _ => scaled.round_ties_even() / scale,
    };
    Ok(Value::Float(rounded))
}

fn of_text(name: &str, value: &Value, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let text = value.printed(budget)?;
    budget.make(text.len())?;
    let made = |text: &str, budget: &mut Budget| Value::text(text, budget);
    match name {
        "string" | "safe" => Ok(Value::Text(text)),
        "trim" => made(trimmed(&text, given.text(0, "chars")?, Ends::Both), budget),
        "upper" => made(&text.to_uppercase(), budget),
        "lower" => made(&text.to_lowercase(), budget),
        "capitalize" => made(&capitalized(&text), budget),
        "title" => made(&titled(&text, |c| !is_title_break(c)), budget),
        "replace" => {
            let part = |place, name| match given.get(place, name) {
                Some(part) => Ok(part),
                None => fail("`replace` needs two texts"),
            };
            let old = part(0, "old")?.printed(budget)?;
            let new = part(1, "new")?.printed(budget)?;
            let most = given.int(2, "count")?.and_then(|count| usize::try_from(count).ok());
            Replacement { old: &old, new: &new, most }.apply(&text, budget)
        }
        "indent" => indent(&text, given, budget),
        "center" => {
            let width = Value::Int(given.int(0, "width")?.unwrap_or(80));
            let given = Given { positional: vec![width], named: Vec::new() };
            call_method(&Value::Text(text), "center", &given, budget)
        }
        "truncate" => truncate(&text, given, budget),
        "wordcount" => {
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i64))
        }
        "escape" | "e" | "forceescape" => {
            let mut out = Builder::new(budget);
            for c in text.chars() {
                match c {
                    '&' => out.push("&amp;")?,
                    '<' => out.push("&lt;")?,
                    '>' => out.push("&gt;")?,
                    '"' => out.push("&#34;")?,
                    '\'' => out.push("&#39;")?,
                    c => out.push_char(c)?,
                }
            }
            Ok(Value::Text(out.finish()))
        }
        _ => fail(format!("the filter `{name}` is not known")),
    }
}

fn is_title_break(c: char) -> bool {
    c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<')
}

fn indent(text: &str, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let width = match given.get(0, "width") {
        None => Ok(4),
        Some(Value::Text(indent)) => Err(Arc::clone(indent)),
        Some(width) => Ok(usize::try_from(width.as_int().unwrap_or(0)).unwrap_or(0)),
    };
    let (first, blank) = (given.is_true(1, "first"), given.is_true(2, "blank"));
    budget.make(16 * text.len())?;
    let lines = lines(text, false);
    let mut out = Builder::new(budget);
    // An empty text is one empty line.
    let lines = if lines.is_empty() { vec![""] } else { lines };
    let ends = text.chars().next_back().is_some_and(|c| matches!(c, '\n' | '\r'));
    let all = lines.into_iter().chain(ends.then_some(""));
    for (number, line) in all.enumerate() {
        out.push(if number > 0 { "\n" } else { "" })?;
        if if number == 0 { first } else { blank || !line.is_empty() } {
            match &width {
                Ok(width) => out.fill(' ', *width)?,
                Err(indent) => out.push(indent)?,
            }
        }
        out.push(line)?;
    }
    Ok(Value::Text(out.finish()))
}

fn truncate(text: &str, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let size = |place, name, default| -> Result<usize, Fault> {
        Ok(usize::try_from(given.int(place, name)?.unwrap_or(default)).unwrap_or(0))
    };
    let (length, leeway) = (size(0, "length", 255)?, size(3, "leeway", 5)?);
    let end = given.text(2, "end")?.unwrap_or("...");
    if text.chars().count() <= length.saturating_add(leeway) {
        return Value::text(text, budget);
    }
    let room = length.saturating_sub(end.chars().count());
    let kept: String = text.chars().take(room).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((before, _)) if !given.is_true(1, "killwords") => before,
        _ => &kept,
    };
    Value::text(&format!("{kept}{end}"), budget)
}
