//! What a row is: a chat, a question with choices, or plain text; and where it stands.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a chat, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said; `None` where a turn only calls tools.
    #[serde(default)]
    pub content: Option<String>,
    /// Whether the turn is learned, if it is the assistant's; else it is shown alone.
    #[serde(skip, default = "learned")]
    pub learned: bool,
    /// What else templates may ask for: `tool_calls`, `reasoning_content`, `name`, `tool_call_id`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

fn learned() -> bool {
    true
}

impl Message {
    /// A turn that says a text and nothing else, to be learned if it is the assistant's.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: Some(content.into()),
            learned: true,
            more: Map::new(),
        }
    }

    /// Whether it is a reply without words, calls and reasoning: such a one is shown, but to answer nothing is not what
    /// anybody means to teach.
    pub(crate) fn says_nothing(&self) -> bool {
        let says_more =
            || ["tool_calls", "reasoning_content"].iter().any(|key| self.more.contains_key(*key));
        self.role == "assistant" && self.text().trim().is_empty() && !says_more()
    }

    /// What is said, or nothing.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }
}

/// The turns of a chat and the tools it may call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// The turns.
    pub messages: Vec<Message>,
    /// Descriptions of tools, handed to the chat template as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
}

/// What a row teaches or asks.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// A chat that ends with the assistant's reply.
    Chat(Chat),
    /// A chat that ends with the right one of several replies.
    Choice {
        /// The chat, the right reply its last turn.
        chat: Chat,
        /// Every candidate for the last reply.
        choices: Vec<String>,
        /// The position of the right one.
        answer: usize,
    },
    /// A text, learned as a whole.
    Text(String),
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// Its line, counted from 1, or the row's number in a file that has no lines.
    pub number: usize,
    /// Whether the number is a line's.
    pub is_line: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.is_line { "line" } else { "row" };
        write!(f, "{} {unit} {}", self.file.display(), self.number)
    }
}

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// What it teaches or asks.
    pub content: Content,
}

impl Row {
    /// The row's chat, unless it is plain text.
    pub fn chat(&self) -> Option<&Chat> {
        match &self.content {
            Content::Chat(chat) | Content::Choice { chat, .. } => Some(chat),
            Content::Text(_) => None,
        }
    }
}
