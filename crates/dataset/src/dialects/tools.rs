//! Tools: the descriptions beside a chat, and the calls of a turn.

use serde_json::{Value, json};

use crate::fields::{Fields, kind};

/// Takes the descriptions of the tools that the chat may call.
pub(super) fn take(row: &mut Fields<'_>) -> Result<Vec<Value>, String> {
    let tools = row.take_list("tools")?;
    match tools.iter().position(|tool| !tool.is_object()) {
        None => Ok(tools),
        Some(at) => Err(format!("`tools[{at}]` is {}; it must be an object", kind(&tools[at]))),
    }
}

/// Takes a message's calls: `tool_calls`, or the older `function_call`.
pub(super) fn take_calls(message: &mut Fields<'_>) -> Result<Vec<Value>, String> {
    let path = message.path("tool_calls");
    let mut calls = message.take_list("tool_calls")?;
    for (at, call) in calls.iter().enumerate() {
        if !(has_name(call) || call.get("function").is_some_and(has_name)) {
            return Err(format!("`{path}[{at}]` has no `function` with a `name`"));
        }
    }
    if let Some(value) = message.take_more_than_nothing("function_call") {
        let path = message.path("function_call");
        calls.push(call(value).ok_or_else(|| format!("`{path}` must be an object with a `name`"))?);
    }
    Ok(calls)
}

/// A function's name and arguments as a call of today's form.
pub(super) fn call(function: Value) -> Option<Value> {
    has_name(&function).then(|| json!({"type": "function", "function": function}))
}

fn has_name(function: &Value) -> bool {
    function.get("name").is_some_and(Value::is_string)
}
