//! The methods of Python's texts, dicts and lists that Jinja's sandbox allows.

use std::sync::Arc;

use super::budget::{Budget, Builder};
use super::call::Given;
use super::fault::{Fault, fail};
use super::text::{
    Ends, Replacement, capitalized, is_blank, lines, split, split_blank, swapped, titled, trimmed,
};
use super::value::{Dict, ListKind, Value};

const OF_TEXTS: [&str; 44] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "encode",
    "isidentifier",
    "translate",
];
const OF_DICTS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// What would change a list or dict; the sandbox refuses it.
const CHANGING: [&str; 13] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "add",
    "discard",
];

/// Whether Python's value has a method of this name.
pub(super) fn has_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Text(_) => OF_TEXTS.contains(&name),
        Value::Dict(_) => {
            OF_DICTS.contains(&name)
                || matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update")
        }
        Value::List(_) => {
            matches!(name, "count" | "index" | "copy")
                || CHANGING.contains(&name) && !matches!(name, "add" | "discard")
        }
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        _ => false,
    }
}

/// `value.name(given)`.
pub(super) fn call_method(
    value: &Value,
    name: &str,
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    match value {
        Value::Text(text) => {
            budget.make(text.len())?;
            of_text(text, name, given, budget)
        }
        Value::Dict(dict) if OF_DICTS.contains(&name) => of_dict(dict, name, given, budget),
        Value::List(list) => match (name, given.positional.first()) {
            ("copy", _) => Ok(value.clone()),
            ("count", Some(wanted)) => {
                let mut count = 0;
                for item in &list.items {
                    count += i64::from(item.equals(wanted, budget)?);
                }
                Ok(Value::Int(count))
            }
            ("index", Some(wanted)) => {
                for (at, item) in list.items.iter().enumerate() {
                    if item.equals(wanted, budget)? {
                        return Ok(Value::Int(at as i64));
                    }
                }
                fail("what `index` looks for is not in the list")
            }
            _ => fail(format!("`{name}` would change a list, which templates may not")),
        },
        Value::Loop(state) => match (name, given.positional.len()) {
            ("cycle", count) if count > 0 => Ok(given.positional[state.index % count].clone()),
            _ => fail(format!("`loop.{name}` is not supported")),
        },
        _ => fail(format!("`{name}` would change {}, which templates may not", value.kind())),
    }
}

fn of_dict(
    dict: &Arc<Dict>,
    name: &str,
    given: &Given,
    budget: &mut Budget,
) -> Result<Value, Fault> {
    let pair = |key: &Value, value: &Value, budget: &mut Budget| {
        Value::list(vec![key.clone(), value.clone()], ListKind::Tuple, budget)
    };
    let mut items = Vec::new();
    match name {
        "get" => {
            let Some(key) = given.positional.first() else { return fail("`get` needs a key") };
            let found = dict.get(key, budget)?;
            let default = || given.positional.get(1).cloned().unwrap_or(Value::None);
            return Ok(found.cloned().unwrap_or_else(default));
        }
        "copy" => return Ok(Value::Dict(Arc::clone(dict))),
        "items" => {
            for (key, value) in &dict.entries {
                items.push(pair(key, value, budget)?);
            }
        }
        "keys" => items.extend(dict.entries.iter().map(|(key, _)| key.clone())),
        _ => items.extend(dict.entries.iter().map(|(_, value)| value.clone())),
    }
    Value::list(items, ListKind::List, budget)
}

fn of_text(text: &str, name: &str, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let made = |text: &str, budget: &mut Budget| Value::text(text, budget);
    match name {
        "upper" => made(&text.to_uppercase(), budget),
        "lower" | "casefold" => made(&text.to_lowercase(), budget),
        "capitalize" => made(&capitalized(text), budget),
        "title" => made(&titled(text, char::is_alphabetic), budget),
        "swapcase" => made(&swapped(text), budget),
        "strip" => made(trimmed(text, given.text(0, "chars")?, Ends::Both), budget),
        "lstrip" => made(trimmed(text, given.text(0, "chars")?, Ends::Start), budget),
        "rstrip" => made(trimmed(text, given.text(0, "chars")?, Ends::End), budget),
        "removeprefix" => made(text.strip_prefix(wanted(given)?).unwrap_or(text), budget),
        "removesuffix" => made(text.strip_suffix(wanted(given)?).unwrap_or(text), budget),
        "replace" => {
            let (Some(old), Some(new)) = (given.text(0, "old")?, given.text(1, "new")?) else {
                return fail("`replace` needs two texts");
            };
            let most = given.int(2, "count")?.and_then(|count| usize::try_from(count).ok());
            Replacement { old, new, most }.apply(text, budget)
        }
        "split" | "rsplit" => parts(text, name == "rsplit", given, budget),
        "splitlines" => {
            budget.make(16 * text.len())?;
            texts(&lines(text, given.is_true(0, "keepends")), budget)
        }
        "partition" | "rpartition" => {
            let sign = wanted(given)?;
            let found = match name {
                "partition" => text.split_once(sign),
                _ => text.rsplit_once(sign),
            };
            let found = match (found, name) {
                (Some((before, after)), _) => [before, sign, after],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            let items: Result<_, Fault> = found.iter().map(|part| made(part, budget)).collect();
            Value::list(items?, ListKind::Tuple, budget)
        }
        "join" => joined(text, given, budget),
        "startswith" | "endswith" => affix(text, name == "startswith", given, budget),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, given),
        "center" | "ljust" | "rjust" | "zfill" => padded(text, name, given, budget),
        "format" => formatted(text, given, budget),
        _ if name.starts_with("is") => Ok(Value::Bool(is_of(text, name)?)),
        _ => fail(format!("the method `{name}` of texts is not supported")),
    }
}

/// The text a method needs first.
fn wanted(given: &Given) -> Result<&str, Fault> {
    match given.text(0, "text")? {
        Some(text) => Ok(text),
        None => fail("a text is missing among the arguments"),
    }
}

/// Texts as a list.
pub(super) fn texts(parts: &[&str], budget: &mut Budget) -> Result<Value, Fault> {
    let items: Result<_, Fault> = parts.iter().map(|part| Value::text(part, budget)).collect();
    Value::list(items?, ListKind::List, budget)
}

fn parts(text: &str, from_end: bool, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let most = given.int(1, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
    let found = match given.text(0, "sep")? {
        Some("") => return fail("the separator of `split` is empty"),
        Some(sign) => {
            budget.make(16 * text.matches(sign).count())?;
            split(text, sign, most, from_end)
        }
        None => {
            budget.make(8 * text.len())?;
            split_blank(text, most, from_end)
        }
    };
    texts(&found, budget)
}

fn joined(text: &str, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let Some(items) = given.positional.first() else { return fail("`join` needs a list") };
    let items = items.items(budget)?;
    let mut out = Builder::new(budget);
    for (number, item) in items.items.iter().enumerate() {
        out.push(if number > 0 { text } else { "" })?;
        match item {
            Value::Text(item) => out.push(item)?,
            other => return fail(format!("`join` of texts meets {}", other.kind())),
        }
    }
    Ok(Value::Text(out.finish()))
}

fn affix(text: &str, start: bool, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let has = |affix: &str| if start { text.starts_with(affix) } else { text.ends_with(affix) };
    match given.positional.first() {
        Some(Value::Text(affix)) => Ok(Value::Bool(has(affix))),
        Some(Value::List(list)) => {
            for item in &list.items {
                let affix = item.as_text();
                budget.step(1 + affix.map_or(0, str::len).min(text.len()) / 64)?;
                if affix.is_some_and(has) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        _ => fail("a text is missing among the arguments"),
    }
}

fn search(text: &str, name: &str, given: &Given) -> Result<Value, Fault> {
    let wanted = wanted(given)?;
    if name == "count" {
        return Ok(Value::Int(text.matches(wanted).count() as i64));
    }
    let found = if name.starts_with('r') { text.rfind(wanted) } else { text.find(wanted) };
    match found {
        Some(at) => Ok(Value::Int(text[..at].chars().count() as i64)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => fail(format!("what `{name}` looks for is not in the text")),
    }
}

fn padded(text: &str, name: &str, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let width = given.int(0, "width")?.unwrap_or(0);
    let length = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    let fill = given.text(1, "fillchar")?.and_then(|fill| fill.chars().next()).unwrap_or(' ');
    let mut out = Builder::new(budget);
    match name {
        "zfill" => {
            let sign = usize::from(text.starts_with(['-', '+']));
            out.push(&text[..sign])?;
            out.fill('0', missing)?;
            out.push(&text[sign..])?;
        }
        "center" => {
            // Python's rule for an odd rest.
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            out.fill(fill, left)?;
            out.push(text)?;
            out.fill(fill, missing - left)?;
        }
        "ljust" => {
            out.push(text)?;
            out.fill(fill, missing)?;
        }
        _ => {
            out.fill(fill, missing)?;
            out.push(text)?;
        }
    }
    Ok(Value::Text(out.finish()))
}

/// `str.format`, of plain fields.
fn formatted(text: &str, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let mut out = Builder::new(budget);
    let (mut rest, mut next) = (text, 0);
    while let Some(at) = rest.find(['{', '}']) {
        out.push(&rest[..at])?;
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push(brace)?;
            rest = after;
            continue;
        }
        let Some((field, after)) = rest.split_once('}').filter(|_| brace == "{") else {
            return fail("a brace of `format` stands alone");
        };
        rest = after;
        let place = if field.is_empty() {
            next += 1;
            Some(next - 1)
        } else {
            field.parse().ok()
        };
        let value = match place {
            Some(place) => given.positional.get(place),
            None => given.named.iter().find(|(name, _)| **name == *field).map(|(_, value)| value),
        };
        match value {
            Some(value) => value.print(&mut out)?,
            None => return fail(format!("`format` has no value for `{{{field:.40}}}`")),
        }
    }
    out.push(rest)?;
    Ok(Value::Text(out.finish()))
}

fn is_of(text: &str, name: &str) -> Result<bool, Fault> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let cased = |is: fn(char) -> bool, not: fn(char) -> bool| {
        text.chars().any(is) && !text.chars().any(not)
    };
    Ok(match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_blank),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        _ => return fail(format!("the method `{name}` of texts is not supported")),
    })
}
