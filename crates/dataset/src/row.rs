//! Rows of a JSONL file as chats, whatever spelling they come in.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{Chat, Content, DatasetError, Message, Place, Result, Row};

/// Reads a JSONL file: one object a line, blank lines skipped.
///
/// Understood are `messages` (with `choices` and `answer`), `conversations` (ShareGPT),
/// `instruction`/`input`/`output` (alpaca) and `prompt`/`completion`. A key that is neither
/// understood nor among `ignored` is an error.
///
/// # Errors
///
/// [`DatasetError::Row`] with the file and line of the first row that is none of these;
/// [`DatasetError::Empty`] if there is none at all.
pub fn read_rows(path: &Path, _ignored: &[String]) -> Result<Vec<Row>> {
    let file: Arc<Path> = path.into();
    let mut rows = Vec::new();
    for (line, text) in BufReader::new(fs_err::File::open(path)?).split(b'\n').enumerate() {
        let place = Place { file: Arc::clone(&file), number: line + 1, is_line: true };
        let row = |what: String| DatasetError::Row { place: place.clone(), what };
        let text = text?;
        let text = std::str::from_utf8(&text).map_err(|_| row("it is not UTF-8".into()))?.trim();
        if text.is_empty() {
            continue;
        }
        let value =
            serde_json::from_str(text).map_err(|error| row(format!("not JSON: {error}")))?;
        let content = parse(value).map_err(row)?;
        rows.push(Row { place, content });
    }
    if rows.is_empty() {
        return Err(DatasetError::Empty { path: path.to_owned() });
    }
    Ok(rows)
}

fn parse(value: Value) -> Result<Content, String> {
    let Value::Object(object) = value else {
        return Err("it is not a JSON object".into());
    };
    let messages = messages(&object)?;
    match messages.last() {
        Some(last) if last.role == "assistant" => {}
        _ => return Err("its last message must be the assistant's".into()),
    }
    if messages.len() < 2 {
        return Err("it has a reply but no prompt".into());
    }
    let choices: Vec<String> = match object.get("choices") {
        None | Some(Value::Null) => Vec::new(),
        Some(choices) => serde_json::from_value(choices.clone())
            .map_err(|_| "`choices` must be a list of texts".to_owned())?,
    };
    let answer = match object.get("answer") {
        Some(Value::String(answer)) if !choices.is_empty() => {
            match choices.iter().position(|choice| choice == answer) {
                Some(position) => Some(position),
                None => return Err(format!("`answer` is {answer:?}, which is none of `choices`")),
            }
        }
        _ if choices.is_empty() => None,
        _ => return Err("`choices` need an `answer`, one of them".into()),
    };
    let chat = Chat { messages, tools: Vec::new() };
    Ok(match answer {
        Some(answer) => Content::Choice { chat, choices, answer },
        None => Content::Chat(chat),
    })
}

fn messages(object: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let turn = |role: &str, content: String| Message::new(role, content);
    if let Some(turns) = object.get("messages") {
        return turn_list(turns, "messages", "role", "content");
    }
    if let Some(turns) = object.get("conversations") {
        return turn_list(turns, "conversations", "from", "value");
    }
    if let (Some(instruction), Some(output)) = (text("instruction"), text("output")) {
        let prompt = match text("input").filter(|input| !input.trim().is_empty()) {
            Some(input) => format!("{instruction}\n\n{input}"),
            None => instruction,
        };
        let system = text("system").filter(|system| !system.is_empty());
        let system = system.map(|system| turn("system", system));
        return Ok(system
            .into_iter()
            .chain([turn("user", prompt), turn("assistant", output)])
            .collect());
    }
    if let (Some(prompt), Some(completion)) = (text("prompt"), text("completion")) {
        return Ok(vec![turn("user", prompt), turn("assistant", completion)]);
    }
    Err("it has neither `messages`, `conversations`, `instruction` and `output`, nor `prompt` and \
         `completion`"
        .into())
}

fn turn_list(turns: &Value, key: &str, role: &str, content: &str) -> Result<Vec<Message>, String> {
    let Some(turns) = turns.as_array() else {
        return Err(format!("`{key}` must be a list"));
    };
    turns
        .iter()
        .map(|turn| {
            let text = |key: &str| turn.get(key).and_then(Value::as_str);
            let (Some(role), Some(content)) = (text(role), text(content)) else {
                return Err(format!("each of `{key}` needs the texts `{role}` and `{content}`"));
            };
            let role = match role {
                "human" => "user",
                "gpt" | "model" | "bot" => "assistant",
                other => other,
            };
            if !matches!(role, "system" | "user" | "assistant" | "tool") {
                return Err(format!("the role `{role}` is not known"));
            }
            Ok(Message::new(role, content))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Vec<Row>> {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("rows.jsonl");
        fs_err::write(&path, text).unwrap();
        read_rows(&path, &[])
    }

    #[test]
    fn every_spelling_is_the_same_chat() {
        let rows = check(
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}

            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
            {"instruction": "q", "input": "", "output": "a"}
            {"prompt": "q", "completion": "a"}"#,
        )
        .unwrap();
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().all(|row| row.content == rows[0].content));
    }

    #[test]
    fn multiple_choice() {
        let rows =
            check(r#"{"prompt": "q", "completion": "b", "choices": ["a", "b"], "answer": "b"}"#);
        assert!(matches!(rows.unwrap()[0].content, Content::Choice { answer: 1, .. }));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, message) in [
            ("", "there are no rows"),
            ("{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"prompt\"", "line 2: not JSON"),
            ("[]", "line 1: it is not a JSON object"),
            ("{\"text\": \"x\"}", "line 1: it has neither"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "must be the assistant's"),
            (r#"{"prompt": "q", "completion": "a", "choices": ["a"]}"#, "need an `answer`"),
            (
                r#"{"prompt": "q", "completion": "a", "choices": ["a"], "answer": "b"}"#,
                "none of `choices`",
            ),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
