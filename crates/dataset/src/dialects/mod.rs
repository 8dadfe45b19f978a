//! The spellings of a row, each a file; all come to the same [`Content`].

mod alpaca;
mod choices;
mod messages;
mod order;
mod pair;
mod parts;
mod refused;
mod tools;
mod turn;

use serde_json::{Map, Value};

use crate::fields::Fields;
use crate::{Chat, Content, Message};

/// A spelling: the field that it is known by, and how the chat is read.
struct Dialect {
    /// With this field a row is of the dialect.
    known_by: &'static str,
    /// What else it must have, if its reply is not to come from `choices`: one of these.
    replies: &'static [&'static str],
    read: fn(&mut Fields<'_>, &Dialect) -> Result<Vec<Turn>, String>,
}

/// Every dialect; of several that a row could be, the first.
const DIALECTS: &[Dialect] = &[
    Dialect { known_by: "messages", replies: &[], read: messages::read },
    Dialect { known_by: "conversations", replies: &[], read: messages::read },
    Dialect { known_by: "conversation", replies: &[], read: messages::read },
    Dialect { known_by: "instruction", replies: &["output", "response"], read: alpaca::read },
    Dialect { known_by: "prompt", replies: &["completion", "response"], read: pair::read },
    Dialect { known_by: "question", replies: &["answer", "response"], read: pair::read },
    Dialect { known_by: "query", replies: &["response", "answer"], read: pair::read },
];

/// Plain text, where there is no chat.
const TEXT: &str = "text";

/// A message, and what it is called in errors.
#[derive(Debug)]
struct Turn {
    name: String,
    message: Message,
    /// The field that says to learn it, if one does.
    learned_by: Option<&'static str>,
}

impl Turn {
    fn new(name: &str, role: &str, content: String) -> Self {
        let message = Message::new(role, content);
        Self { name: name.to_owned(), message, learned_by: None }
    }
}

/// Whether fields of these names can make a row.
pub(crate) fn is_a_row(has: impl Fn(&str) -> bool) -> bool {
    let replied = |dialect: &Dialect| {
        dialect.replies.is_empty() || has("choices") || dialect.replies.iter().any(|key| has(key))
    };
    has(TEXT) || DIALECTS.iter().any(|dialect| has(dialect.known_by) && replied(dialect))
}

/// What an object teaches or asks; the error says what is wrong with it.
pub(crate) fn content(object: Map<String, Value>, ignored: &[String]) -> Result<Content, String> {
    let mut row = Fields::new(String::new(), object, ignored);
    refused::check(&row)?;
    let Some(dialect) = DIALECTS.iter().find(|dialect| row.has(dialect.known_by)) else {
        return text(row);
    };
    let asked = choices::take(&mut row)?;
    if let [usual, ..] = dialect.replies
        && asked.is_none()
        && row.first(dialect.replies).is_none()
    {
        return Err(format!("it has `{}` but no `{usual}`", dialect.known_by));
    }
    let mut turns = (dialect.read)(&mut row, dialect)?;
    take_system(&mut row, &mut turns)?;
    let tools = tools::take(&mut row)?;
    row.finish()?;
    if let Some(asked) = &asked {
        asked.settle(&mut turns)?;
    }
    order::check(&turns)?;
    turns
        .iter_mut()
        .filter(|turn| turn.message.says_nothing())
        .for_each(|turn| turn.message.learned = false);
    let messages = turns.into_iter().map(|turn| turn.message).collect();
    let chat = Chat { messages, tools };
    Ok(match asked {
        Some(choices::Asked { choices, answer }) => Content::Choice { chat, choices, answer },
        None => Content::Chat(chat),
    })
}

/// Plain text, learned as a whole.
fn text(mut row: Fields<'_>) -> Result<Content, String> {
    let Some(text) = row.take_text(TEXT)? else {
        return Err("it has neither `messages`, `conversations`, `instruction` and `output`, \
                    `prompt` and `completion`, `question` and `answer`, nor `text`"
            .into());
    };
    row.finish()?;
    match text.is_empty() {
        true => Err("`text` is empty".into()),
        false => Ok(Content::Text(text)),
    }
}

/// Puts a row's `system` before its turns, unless it says what they say already.
fn take_system(row: &mut Fields<'_>, turns: &mut Vec<Turn>) -> Result<(), String> {
    for key in ["system", "system_prompt"] {
        let Some(text) = row.take_text(key)?.filter(|text| !text.is_empty()) else {
            continue;
        };
        match turns.iter().find(|turn| turn.message.role == "system") {
            None => turns.insert(0, Turn::new(key, "system", text)),
            Some(turn) if turn.message.text() == text => {}
            Some(turn) => {
                return Err(format!("`{key}` and `{}` differ; only one can be shown", turn.name));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
