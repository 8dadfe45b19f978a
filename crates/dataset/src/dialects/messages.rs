//! A list of messages: OpenAI's `messages`, and ShareGPT's `conversations`.

use serde_json::Value;

use super::turn::turn;
use super::{Dialect, Turn};
use crate::fields::{Fields, kind};

pub(super) fn read(row: &mut Fields<'_>, dialect: &Dialect) -> Result<Vec<Turn>, String> {
    take_turns(row, dialect.known_by)
}

/// Takes a list of messages.
pub(super) fn take_turns(row: &mut Fields<'_>, key: &str) -> Result<Vec<Turn>, String> {
    match row.take(key) {
        Some(Value::Array(list)) if list.is_empty() => Err(format!("`{key}` is empty")),
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(at, value)| turn(row.inner(format!("{key}[{at}]"), value)?))
            .collect(),
        other => {
            let found = kind(&other.unwrap_or_default());
            Err(format!("`{key}` is {found}; it must be a list of messages"))
        }
    }
}
