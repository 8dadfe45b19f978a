//! Python's `json.dumps`.

use super::budget::{Budget, Builder};
use super::call::Given;
use super::evaluate::compare;
use super::fault::{Fault, fail};
use super::sorted::sorted;
use super::tree::Comparison;
use super::value::{Value, float_text};

/// How to write JSON.
struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

/// `value | tojson`, with the arguments that transformers gives it.
pub(super) fn to_json(value: &Value, given: &Given, budget: &mut Budget) -> Result<Value, Fault> {
    let indent = match given.get(1, "indent") {
        None | Some(Value::None) => None,
        Some(Value::Text(indent)) => Some(indent.to_string()),
        Some(width) => {
            let width = usize::try_from(width.as_int().unwrap_or(0)).unwrap_or(0);
            budget.make(width)?;
            Some(" ".repeat(width))
        }
    };
    let separators = match given.get(2, "separators") {
        Some(Value::List(list)) => match list.items.as_slice() {
            [Value::Text(between), Value::Text(after)] => {
                Some((between.to_string(), after.to_string()))
            }
            _ => return fail("`separators` must be two texts"),
        },
        _ => None,
    };
    let between = if indent.is_some() { "," } else { ", " };
    let (between, after_key) = separators.unwrap_or_else(|| (between.into(), ": ".into()));
    let style = Style {
        ascii: given.is_true(0, "ensure_ascii"),
        indent,
        between,
        after_key,
        sorted: given.is_true(3, "sort_keys"),
    };
    let mut out = Builder::new(budget);
    write(value, &style, 0, &mut out)?;
    Ok(Value::Text(out.finish()))
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut Builder<'_>) -> Result<(), Fault> {
    match value {
        Value::None => out.push("null"),
        Value::Bool(value) => out.push(if *value { "true" } else { "false" }),
        Value::Int(value) => out.push(&value.to_string()),
        Value::Float(value) => out.push(&float(*value)),
        Value::Text(text) => string(text, style, out),
        Value::List(list) => {
            if list.items.is_empty() {
                return out.push("[]");
            }
            out.push("[")?;
            for (number, item) in list.items.iter().enumerate() {
                out.push(if number > 0 { &style.between } else { "" })?;
                line(style, depth + 1, out)?;
                write(item, style, depth + 1, out)?;
            }
            line(style, depth, out)?;
            out.push("]")
        }
        Value::Dict(dict) => {
            if dict.entries.is_empty() {
                return out.push("{}");
            }
            out.push("{")?;
            let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
            if style.sorted {
                entries = sorted(entries, &mut |(a, _), (b, _)| {
                    compare(a, Comparison::Less, b, out.budget)
                })?;
            }
            for (number, (key, value)) in entries.into_iter().enumerate() {
                out.push(if number > 0 { &style.between } else { "" })?;
                line(style, depth + 1, out)?;
                write_key(key, style, out)?;
                out.push(&style.after_key)?;
                write(value, style, depth + 1, out)?;
            }
            line(style, depth, out)?;
            out.push("}")
        }
        other => fail(format!("{} cannot be written as JSON", other.kind())),
    }
}

fn write_key(key: &Value, style: &Style, out: &mut Builder<'_>) -> Result<(), Fault> {
    match key {
        Value::Text(text) => string(text, style, out),
        Value::None => out.push("\"null\""),
        Value::Bool(value) => out.push(if *value { "\"true\"" } else { "\"false\"" }),
        Value::Int(value) => out.push(&format!("\"{value}\"")),
        Value::Float(value) => out.push(&format!("\"{}\"", float(*value))),
        other => fail(format!("{} cannot be a key in JSON", other.kind())),
    }
}

fn float(value: f64) -> String {
    match float_text(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        text => text.into(),
    }
}

fn line(style: &Style, depth: usize, out: &mut Builder<'_>) -> Result<(), Fault> {
    if let Some(indent) = &style.indent {
        out.push("\n")?;
        for _ in 0..depth {
            out.push(indent)?;
        }
    }
    Ok(())
}

fn string(text: &str, style: &Style, out: &mut Builder<'_>) -> Result<(), Fault> {
    out.push("\"")?;
    let mut from = 0;
    for (at, c) in text.char_indices() {
        let escaped = match c {
            '"' => "\\\"".into(),
            '\\' => "\\\\".into(),
            '\n' => "\\n".into(),
            '\r' => "\\r".into(),
            '\t' => "\\t".into(),
            '\u{8}' => "\\b".into(),
            '\u{c}' => "\\f".into(),
            c if (c as u32) < 0x20 => format!("\\u{:04x}", c as u32),
            c if style.ascii && !c.is_ascii() => {
                c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }
            _ => continue,
        };
        out.push(&text[from..at])?;
        out.push(&escaped)?;
        from = at + c.len_utf8();
    }
    out.push(&text[from..])?;
    out.push("\"")
}
