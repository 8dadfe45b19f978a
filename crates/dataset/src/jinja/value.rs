//! What templates compute with: Python's values, and how Python prints and compares them.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex};

use super::budget::{Budget, Builder};
use super::fault::{Fault, fail};
use super::tree::Macro;

/// Lists and dicts within one another.
const DEEPEST: usize = 200;
/// Bytes that a value takes in a list.
const ITEM_BYTES: usize = 48;

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// What a name stands for that nothing was given.
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    List(Arc<List>),
    Dict(Arc<Dict>),
    Namespace(Arc<Namespace>),
    Loop(Arc<Loop>),
    Macro(Arc<BoundMacro>),
    /// A function of ours, by name.
    Function(Arc<str>),
    /// A method that is named and not called.
    Method,
}

/// How a list came about, which shows when it is printed or asked whether it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListKind {
    List,
    Tuple,
    /// What most filters give in Python: it can be gone through, and its length is not known.
    Generator,
}

#[derive(Debug)]
pub(crate) struct List {
    pub(crate) items: Vec<Value>,
    pub(crate) kind: ListKind,
    depth: usize,
}

/// Keys and values in the order they came in.
#[derive(Debug)]
pub(crate) struct Dict {
    pub(crate) entries: Vec<(Value, Value)>,
    depth: usize,
}

/// The one thing that changes: it holds no other namespace, so nothing holds itself.
#[derive(Debug, Default)]
pub(crate) struct Namespace {
    pub(crate) entries: Mutex<Vec<(Arc<str>, Value)>>,
}

/// A loop's state within one turn.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) items: Arc<List>,
    pub(crate) index: usize,
}

/// A macro and the variables it sees.
#[derive(Debug)]
pub(crate) struct BoundMacro {
    pub(crate) code: Arc<Macro>,
    pub(crate) frame: usize,
}

impl Value {
    pub(super) fn text(text: &str, budget: &mut Budget) -> Result<Self, Fault> {
        budget.make(text.len())?;
        Ok(Self::Text(text.into()))
    }

    pub(super) fn list(
        items: Vec<Self>,
        kind: ListKind,
        budget: &mut Budget,
    ) -> Result<Self, Fault> {
        budget.make(ITEM_BYTES * (1 + items.len()))?;
        let depth = deepest(items.iter())?;
        Ok(Self::List(Arc::new(List { items, kind, depth })))
    }

    pub(super) fn dict(entries: Vec<(Self, Self)>, budget: &mut Budget) -> Result<Self, Fault> {
        budget.make(2 * ITEM_BYTES * (1 + entries.len()))?;
        let depth = deepest(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self::Dict(Arc::new(Dict { entries, depth })))
    }

    /// The value of a JSON document.
    pub(super) fn json(json: &serde_json::Value, budget: &mut Budget) -> Result<Self, Fault> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Self::Int(whole),
                (None, Some(float)) => Self::Float(float),
                (None, None) => Self::None,
            },
            serde_json::Value::String(text) => Self::Text(text.as_str().into()),
            serde_json::Value::Array(items) => {
                let items: Result<_, Fault> =
                    items.iter().map(|item| Self::json(item, budget)).collect();
                Self::list(items?, ListKind::List, budget)?
            }
            serde_json::Value::Object(entries) => {
                let entries: Result<_, Fault> = entries
                    .iter()
                    .map(|(key, value)| {
                        Ok((Self::Text(key.as_str().into()), Self::json(value, budget)?))
                    })
                    .collect();
                Self::dict(entries?, budget)?
            }
        })
    }

    /// What Python's `bool` says.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => list.kind == ListKind::Generator || !list.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// A name for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "an undefined value",
            Self::None => "none",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Namespace(_) => "a namespace",
            Self::Loop(_) => "a loop",
            Self::Macro(_) | Self::Function(_) | Self::Method => "a function",
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer; in Python booleans are.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    /// What a loop over it sees.
    pub(super) fn items(&self, budget: &mut Budget) -> Result<Arc<List>, Fault> {
        let items = match self {
            Self::List(list) => return Ok(Arc::clone(list)),
            Self::Undefined => Vec::new(),
            Self::Text(text) => {
                budget.make(2 * ITEM_BYTES * text.chars().count())?;
                text.chars().map(|c| Self::Text(c.to_string().into())).collect()
            }
            Self::Dict(dict) => dict.entries.iter().map(|(key, _)| key.clone()).collect(),
            other => return fail(format!("{} cannot be looped over", other.kind())),
        };
        match Self::list(items, ListKind::List, budget)? {
            Self::List(list) => Ok(list),
            _ => fail("a list is expected"),
        }
    }

    /// What Python's `len` says.
    pub(super) fn length(&self, budget: &mut Budget) -> Result<usize, Fault> {
        match self {
            Self::Undefined => Ok(0),
            Self::Text(text) => {
                budget.step(text.len() / 64)?;
                Ok(text.chars().count())
            }
            Self::List(list) if list.kind != ListKind::Generator => Ok(list.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            Self::Loop(state) => Ok(state.items.items.len()),
            Self::List(_) => fail("what a filter gives has no length; put `| list` after it"),
            other => fail(format!("{} has no length", other.kind())),
        }
    }

    /// What Python's `str` says.
    pub(super) fn print(&self, out: &mut Builder<'_>) -> Result<(), Fault> {
        match self {
            Self::Undefined => Ok(()),
            Self::Text(text) => out.push(text),
            _ => self.represent(out),
        }
    }

    /// What Python's `str` says, as a text.
    pub(super) fn printed(&self, budget: &mut Budget) -> Result<Arc<str>, Fault> {
        if let Self::Text(text) = self {
            return Ok(Arc::clone(text));
        }
        let mut out = Builder::new(budget);
        self.print(&mut out)?;
        Ok(out.finish())
    }

    /// What Python's `repr` says.
    pub(super) fn represent(&self, out: &mut Builder<'_>) -> Result<(), Fault> {
        match self {
            Self::Undefined => out.push("Undefined"),
            Self::None => out.push("None"),
            Self::Bool(true) => out.push("True"),
            Self::Bool(false) => out.push("False"),
            Self::Int(value) => out.push(&value.to_string()),
            Self::Float(value) => out.push(&float_text(*value)),
            Self::Text(text) => quote(text, out),
            Self::List(list) => list.represent(out),
            Self::Dict(dict) => {
                out.push("{")?;
                for (number, (key, value)) in dict.entries.iter().enumerate() {
                    out.push(if number > 0 { ", " } else { "" })?;
                    key.represent(out)?;
                    out.push(": ")?;
                    value.represent(out)?;
                }
                out.push("}")
            }
            other => fail(format!("{} cannot be printed", other.kind())),
        }
    }

    /// Python's `==`.
    pub(super) fn equals(&self, other: &Self, budget: &mut Budget) -> Result<bool, Fault> {
        budget.step(1)?;
        Ok(match (self, other) {
            (Self::Undefined, Self::Undefined) | (Self::None, Self::None) => true,
            (Self::Text(a), Self::Text(b)) => {
                budget.step(a.len().min(b.len()) / 64)?;
                a == b
            }
            (Self::List(a), Self::List(b)) => {
                if a.kind != b.kind || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Dict(a), Self::Dict(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    match b.get(key, budget)? {
                        Some(found) if found.equals(value, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Namespace(a), Self::Namespace(b)) => Arc::ptr_eq(a, b),
            (Self::Float(_), _) | (_, Self::Float(_)) => {
                matches!((self.as_float(), other.as_float()), (Some(a), Some(b)) if a == b)
            }
            _ => matches!((self.as_int(), other.as_int()), (Some(a), Some(b)) if a == b),
        })
    }

    /// Python's order, for numbers, texts and lists of these.
    pub(super) fn order(&self, other: &Self, budget: &mut Budget) -> Result<Ordering, Fault> {
        budget.step(1)?;
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => {
                budget.step(a.len().min(b.len()) / 64)?;
                Ok(a.cmp(b))
            }
            (Self::List(a), Self::List(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    match a.order(b, budget)? {
                        Ordering::Equal => {}
                        other => return Ok(other),
                    }
                }
                Ok(a.items.len().cmp(&b.items.len()))
            }
            _ => {
                let found = match (self.as_int(), other.as_int()) {
                    (Some(a), Some(b)) => Some(a.cmp(&b)),
                    _ => match (self.as_float(), other.as_float()) {
                        (Some(a), Some(b)) => a.partial_cmp(&b),
                        _ => None,
                    },
                };
                let (a, b) = (self.kind(), other.kind());
                found.ok_or_else(|| Fault::new(format!("{a} and {b} have no order")))
            }
        }
    }

    /// Whether it lies in `whole`, as Python's `in` has it.
    pub(super) fn is_in(&self, whole: &Self, budget: &mut Budget) -> Result<bool, Fault> {
        match whole {
            Self::Text(text) => match self.as_text() {
                Some(part) => {
                    budget.step(text.len() / 64)?;
                    Ok(text.contains(part))
                }
                None => fail(format!("{} cannot be in a text", self.kind())),
            },
            Self::Dict(dict) => Ok(dict.get(self, budget)?.is_some()),
            Self::List(list) => {
                for item in &list.items {
                    if item.equals(self, budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Undefined => Ok(false),
            other => fail(format!("nothing can be in {}", other.kind())),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::List(list) => list.depth,
            Self::Dict(dict) => dict.depth,
            Self::Loop(state) => 1 + state.items.depth,
            // Holding one would let a namespace hold itself.
            Self::Namespace(_) => DEEPEST,
            _ => 0,
        }
    }

    /// Whether a list or a namespace may hold it.
    pub(super) fn require_holdable(&self) -> Result<(), Fault> {
        deepest([self].into_iter()).map(|_| ())
    }
}

fn deepest<'a>(items: impl Iterator<Item = &'a Value>) -> Result<usize, Fault> {
    let depth = 1 + items.map(Value::depth).max().unwrap_or(0);
    if depth > DEEPEST {
        return fail(format!(
            "lists and dicts are nested more than {DEEPEST} deep, or hold a namespace"
        ));
    }
    Ok(depth)
}

impl List {
    fn represent(&self, out: &mut Builder<'_>) -> Result<(), Fault> {
        let tuple = self.kind == ListKind::Tuple;
        out.push(if tuple { "(" } else { "[" })?;
        for (number, item) in self.items.iter().enumerate() {
            out.push(if number > 0 { ", " } else { "" })?;
            item.represent(out)?;
        }
        out.push(if tuple && self.items.len() == 1 { "," } else { "" })?;
        out.push(if tuple { ")" } else { "]" })
    }

    /// The item at a position; negative ones count from the end.
    pub(super) fn at(&self, position: i64) -> Option<&Value> {
        let from_end = if position < 0 { self.items.len() as i64 } else { 0 };
        self.items.get(usize::try_from(from_end.checked_add(position)?).ok()?)
    }
}

impl Dict {
    pub(super) fn get(&self, key: &Value, budget: &mut Budget) -> Result<Option<&Value>, Fault> {
        for (found, value) in &self.entries {
            if found.equals(key, budget)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    pub(super) fn named(&self, name: &str, budget: &mut Budget) -> Result<Option<&Value>, Fault> {
        budget.step(self.entries.len() / 16)?;
        let found = self.entries.iter().find(|(key, _)| key.as_text() == Some(name));
        Ok(found.map(|(_, value)| value))
    }
}

impl Namespace {
    pub(super) fn get(&self, name: &str, budget: &mut Budget) -> Result<Option<Value>, Fault> {
        let entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        budget.step(entries.len() / 16)?;
        Ok(entries.iter().find(|(key, _)| &**key == name).map(|(_, value)| value.clone()))
    }

    pub(super) fn set(
        &self,
        name: &Arc<str>,
        value: Value,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        value.require_holdable()?;
        if name.starts_with('_') {
            return fail(format!("a namespace may not hold `{name}`, which begins with `_`"));
        }
        let mut entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        budget.step(entries.len() / 16)?;
        match entries.iter_mut().find(|(key, _)| key == name) {
            Some((_, slot)) => *slot = value,
            None => entries.push((Arc::clone(name), value)),
        }
        Ok(())
    }
}

/// Python's `repr` of a float: the shortest digits that say it.
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Python's `repr` of a text.
fn quote(text: &str, out: &mut Builder<'_>) -> Result<(), Fault> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\\' => out.push("\\\\")?,
            c if c == quote => {
                out.push_char('\\')?;
                out.push_char(c)?;
            }
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                out.push(&format!("\\x{:02x}", c as u32))?;
            }
            c => out.push_char(c)?,
        }
    }
    out.push_char(quote)
}
