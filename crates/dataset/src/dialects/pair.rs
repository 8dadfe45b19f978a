//! What is asked and what is replied: `prompt` and `completion`, `question` and `answer`, and the
//! like; each a text or, as TRL has it, a list of messages.

use serde_json::Value;

use super::messages::take_turns;
use super::{Dialect, Turn};
use crate::fields::{Fields, kind};

pub(super) fn read(row: &mut Fields<'_>, dialect: &Dialect) -> Result<Vec<Turn>, String> {
    let mut turns = take_side(row, dialect.known_by, "user")?;
    for turn in turns.iter_mut().filter(|turn| turn.message.role == "assistant") {
        if let Some(key) = turn.learned_by {
            return Err(format!(
                "`{}.{key}` says to learn a turn of the prompt, which is only shown; pass \
                 `--ignore-fields {key}` to skip it",
                turn.name
            ));
        }
        turn.message.learned = false; // What is asked is shown, replies in it too.
    }
    if let Some(key) = row.first_filled(dialect.replies).or_else(|| row.first(dialect.replies)) {
        turns.extend(take_side(row, key, "assistant")?);
    }
    Ok(turns)
}

fn take_side(row: &mut Fields<'_>, key: &str, role: &str) -> Result<Vec<Turn>, String> {
    if row.is_list(key) {
        return take_turns(row, key);
    }
    match row.take(key) {
        Some(Value::String(text)) => Ok(vec![Turn::new(key, role, text)]),
        other => {
            let found = kind(&other.unwrap_or_default());
            Err(format!("`{key}` is {found}; it must be a string or a list of messages"))
        }
    }
}
