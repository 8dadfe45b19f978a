//! One message: who speaks, what is said, what else chat templates read, and whether it is learned.

use serde_json::{Map, Value, json};

use super::Turn;
use super::parts::take_content;
use super::tools::{call, take_calls};
use crate::Message;
use crate::fields::{Fields, kind};
use crate::json::parse;

/// Reads one message.
pub(super) fn turn(mut fields: Fields<'_>) -> Result<Turn, String> {
    let name = fields.name.clone();
    let said = take_role(&mut fields)?;
    let Some(role) = role(&said) else {
        return Err(format!(
            "`{name}` has the role `{said}`; known are system, user, assistant and tool, and what \
             ShareGPT calls them"
        ));
    };
    let mut content = take_content(&mut fields)?;
    let mut calls = take_calls(&mut fields)?;
    if said == "function_call" {
        calls.extend(called_in_text(content.take().unwrap_or_default().as_str(), &name)?);
    }
    if !calls.is_empty() && role != "assistant" {
        return Err(format!(
            "`{name}` calls tools, and it is the {role}'s; only the assistant may"
        ));
    }
    if content.is_none() && calls.is_empty() {
        return Err(format!(
            "`{name}.content` is missing or null; only a turn with `tool_calls` may leave it out"
        ));
    }
    let said = take_learned(&mut fields, role)?;
    let learned = said.is_none_or(|(_, learned)| learned) || role != "assistant";
    let learned_by = said.and_then(|(key, learned)| learned.then_some(key));
    let more = take_more(&mut fields, role, calls)?;
    fields.finish()?;
    let message = Message { role: role.to_owned(), content, learned, more };
    Ok(Turn { name, message, learned_by })
}

fn take_role(fields: &mut Fields<'_>) -> Result<String, String> {
    let key = fields.first(&["role", "from"]);
    match key.map(|key| fields.take_text(key)).transpose()?.flatten() {
        Some(role) => Ok(role),
        None => Err(format!("`{}` has no `role`", fields.name)),
    }
}

/// The role as chat templates know it.
fn role(said: &str) -> Option<&'static str> {
    Some(match said {
        "system" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" | "function_call" => "assistant",
        "tool" | "function" | "observation" => "tool",
        _ => return None,
    })
}

/// The calls that a turn of the role `function_call` spells out.
fn called_in_text(text: &str, name: &str) -> Result<Vec<Value>, String> {
    let wrong = || format!("`{name}` must be a call in JSON, with `name` and `arguments`");
    match parse(text).map_err(|_| wrong())? {
        Value::Array(calls) => {
            calls.into_iter().map(|value| call(value).ok_or_else(wrong)).collect()
        }
        value => Ok(vec![call(value).ok_or_else(wrong)?]),
    }
}

/// Whether the turn is learned, and which field says so: `weight` 0 or 1, `train` true or false.
fn take_learned(
    fields: &mut Fields<'_>,
    role: &str,
) -> Result<Option<(&'static str, bool)>, String> {
    let mut said = None;
    for key in ["weight", "train"] {
        let Some(value) = fields.take(key) else { continue };
        let path = fields.path(key);
        let learned = match (&value, value.as_f64()) {
            (Value::Bool(learned), _) => *learned,
            (_, Some(0.0)) => false,
            (_, Some(1.0)) => true,
            _ => {
                let found = if value.is_number() { value.to_string() } else { kind(&value).into() };
                return Err(format!("`{path}` is {found}; it must be 0 or 1, or false or true"));
            }
        };
        if learned && role != "assistant" {
            return Err(format!(
                "`{path}` says to learn the {role}'s turn, and only the assistant's are learned; \
                 pass `--ignore-fields {key}` to skip it"
            ));
        }
        if said.is_some_and(|(_, said)| said != learned) {
            return Err(format!("`weight` and `train` of `{}` contradict each other", fields.name));
        }
        said = Some((key, learned));
    }
    Ok(said)
}

/// What else chat templates may ask of a turn.
fn take_more(
    fields: &mut Fields<'_>,
    role: &str,
    calls: Vec<Value>,
) -> Result<Map<String, Value>, String> {
    let mut more = Map::new();
    if !calls.is_empty() {
        more.insert("tool_calls".into(), json!(calls));
    }
    let texts: &[&str] = match role {
        "assistant" => &["reasoning_content", "name"],
        "tool" => &["name", "tool_call_id"],
        _ => &["name"],
    };
    for key in texts {
        if let Some(text) = fields.take_text(key)?.filter(|text| !text.is_empty()) {
            more.insert((*key).to_owned(), text.into());
        }
    }
    Ok(more)
}
