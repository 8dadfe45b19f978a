//! `instruction`, `input` and `output`, as alpaca spells a question; `history` comes before it.

use serde_json::Value;

use super::{Dialect, Turn};
use crate::fields::{Fields, kind};

pub(super) fn read(row: &mut Fields<'_>, dialect: &Dialect) -> Result<Vec<Turn>, String> {
    let mut turns = take_history(row)?;
    let mut asked = row.take_text("instruction")?.unwrap_or_default();
    if let Some(input) = row.take_text("input")?.filter(|input| !input.trim().is_empty()) {
        if !asked.is_empty() {
            asked.push_str("\n\n");
        }
        asked.push_str(&input);
    }
    turns.push(Turn::new(dialect.known_by, "user", asked));
    if let Some(key) = row.first_filled(dialect.replies).or_else(|| row.first(dialect.replies)) {
        turns.push(Turn::new(key, "assistant", row.take_text(key)?.unwrap_or_default()));
    }
    Ok(turns)
}

/// What was said before, as pairs of what the user and the assistant said.
fn take_history(row: &mut Fields<'_>) -> Result<Vec<Turn>, String> {
    let mut turns = Vec::new();
    for (at, pair) in row.take_list("history")?.iter().enumerate() {
        let texts: Option<Vec<&str>> =
            pair.as_array().and_then(|pair| pair.iter().map(Value::as_str).collect());
        let Some([asked, replied]) = texts.as_deref() else {
            let found = if pair.is_array() { "another list" } else { kind(pair) };
            return Err(format!("`history[{at}]` is {found}; it must be a list of two strings"));
        };
        turns.push(Turn::new(&format!("history[{at}][0]"), "user", (*asked).to_owned()));
        turns.push(Turn::new(&format!("history[{at}][1]"), "assistant", (*replied).to_owned()));
    }
    Ok(turns)
}
