//! What a chat holds besides its texts, and whether a chat template shows it: what it leaves out, nobody learns.

use std::borrow::Cow;

use serde_json::Value;

use crate::json::parse;
use crate::template::REASONING;
use crate::{Chat, ChatTemplate, DatasetError, Message, Result};

/// Where reasoning within a content ends, and what it begins with.
const THOUGHT: (&str, &str) = ("<think>", "</think>");

impl ChatTemplate {
    /// The chat with the arguments of its calls as objects, if the template would write them as a quoted text in JSON.
    ///
    /// `OpenAI` has them as the text of an object. Some templates write that text as it is, others write JSON of whatever
    /// they are given.
    pub(crate) fn with_arguments<'a>(&self, chat: &'a Chat) -> Cow<'a, Chat> {
        let texts: Vec<String> = chat
            .messages
            .iter()
            .flat_map(calls)
            .filter_map(|call| Some(object_in_text(arguments(call)?)?.0.to_owned()))
            .collect();
        if texts.is_empty() {
            return Cow::Borrowed(chat);
        }
        // What it refuses it refuses again where it is learned.
        let Ok(text) = self.render(chat, false) else { return Cow::Borrowed(chat) };
        if !texts
            .iter()
            .any(|arguments| text.contains(&Value::from(arguments.as_str()).to_string()))
        {
            return Cow::Borrowed(chat);
        }
        let mut with_objects = chat.clone();
        for message in &mut with_objects.messages {
            let Some(Value::Array(calls)) = message.more.get_mut("tool_calls") else { continue };
            for call in calls {
                let function =
                    if call.get("function").is_some() { &mut call["function"] } else { call };
                if let Some((_, object)) = function.get("arguments").and_then(object_in_text) {
                    function["arguments"] = object;
                }
            }
        }
        // A template that joins texts takes no objects.
        match self.render(&with_objects, false) {
            Ok(_) => Cow::Owned(with_objects),
            Err(_) => Cow::Borrowed(chat),
        }
    }
}

/// Refuses a chat whose tools no text shows.
pub(crate) fn require_tools<'a>(
    chat: &Chat,
    mut texts: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let Some(name) = chat.tools.iter().find_map(name) else { return Ok(()) };
    if texts.any(|text| text.contains(name)) {
        return Ok(());
    }
    Err(left_out("`tools`", "--ignore-fields tools"))
}

/// Refuses a turn of which the template leaves out what it calls, or what it thinks; `shown` is what is learned of it.
pub(crate) fn require_whole(message: &Message, shown: &str) -> Result<()> {
    let called = |wanted: &str| calls(message).filter(|call| name(call) == Some(wanted)).count();
    let named =
        |call: &Value| name(call).is_none_or(|name| called(name) <= shown.matches(name).count());
    if !calls(message).all(named) {
        return Err(left_out("`tool_calls`", "--ignore-fields tool_calls"));
    }
    require_reasoning(message, shown)
}

/// Refuses a turn of which the template leaves out what it thinks.
fn require_reasoning(message: &Message, shown: &str) -> Result<()> {
    for key in REASONING {
        let thought = message.more.get(key).and_then(Value::as_str).unwrap_or_default();
        if !shown.contains(thought.trim()) {
            return Err(left_out(&format!("`{key}`"), &format!("--ignore-fields {key}")));
        }
    }
    let (begin, end) = THOUGHT;
    let Some((thought, _)) = message.text().split_once(end) else { return Ok(()) };
    let thought = thought.rsplit_once(begin).map_or(thought, |(_, thought)| thought);
    if shown.contains(thought.trim()) {
        return Ok(());
    }
    let what = format!(
        "the chat template drops everything before `{end}` in a reply, so the model would not learn it; take it out of the rows, \
         or give the model a template that shows it"
    );
    Err(DatasetError::Encode { what })
}

fn left_out(what: &str, flag: &str) -> DatasetError {
    let what = format!(
        "the chat template does not show {what}, so the model would not learn it; leave such rows out, pass `{flag}` to train on \
         the rest of each row, or give the model a template that shows it"
    );
    DatasetError::Encode { what }
}

/// The calls of a turn.
fn calls(message: &Message) -> impl Iterator<Item = &Value> {
    message.more.get("tool_calls").and_then(Value::as_array).into_iter().flatten()
}

/// What a call, or the description of a tool, says of the function.
fn function(value: &Value) -> &Value {
    value.get("function").unwrap_or(value)
}

fn name(value: &Value) -> Option<&str> {
    function(value).get("name")?.as_str()
}

fn arguments(call: &Value) -> Option<&Value> {
    function(call).get("arguments")
}

/// The text of an object, and the object.
fn object_in_text(value: &Value) -> Option<(&str, Value)> {
    let text = value.as_str()?;
    let object = parse(text).ok().filter(Value::is_object)?;
    Some((text, object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WHOLE: &str = "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}{{ m.content }}\
        {% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %};{% endfor %}{{ tools }}";
    const TEXTS: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";

    fn chat(more: &Value, tools: &Value) -> Chat {
        let mut reply = Message::new("assistant", "a");
        reply.more = more.as_object().unwrap().clone();
        let messages = vec![Message::new("user", "q"), reply];
        Chat { messages, tools: tools.as_array().unwrap().clone() }
    }

    #[test]
    fn what_a_template_leaves_out_is_refused() {
        let call = json!({"type": "function", "function": {"name": "look", "arguments": {}}});
        let tools = json!([{"type": "function", "function": {"name": "look"}}]);
        let read = |template: &str, chat: &Chat| {
            let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
            template.pieces(chat).map(|_| ()).map_err(|error| error.to_string())
        };
        for (more, tools, named) in [
            (json!({"tool_calls": [call]}), json!([]), "`tool_calls`"),
            (json!({"reasoning_content": " so "}), json!([]), "`reasoning_content`"),
            (json!({}), tools, "`tools`"),
        ] {
            let chat = chat(&more, &tools);
            assert_eq!(read(WHOLE, &chat), Ok(()));
            let error = read(TEXTS, &chat).unwrap_err();
            assert!(error.contains(&format!("does not show {named}")), "{error}");
        }
        // Of two calls of the same function, one.
        let first = "{% for m in messages %}{{ m.content }}{{ m.tool_calls[0].function.name if m.tool_calls }}{% endfor %}";
        assert_eq!(read(first, &chat(&json!({"tool_calls": [call]}), &json!([]))), Ok(()));
        assert!(read(first, &chat(&json!({"tool_calls": [call, call]}), &json!([]))).is_err());
        let mut thinks = chat(&json!({}), &json!([]));
        thinks.messages[1].content = Some("<think>so</think>a".into());
        assert_eq!(read(TEXTS, &thinks), Ok(()));
        let cuts = "{% for m in messages %}{{ m.role }}:{{ m.content.split('</think>')[-1] }};{% endfor %}";
        let error = read(cuts, &thinks).unwrap_err();
        assert!(error.contains("before `</think>`"), "{error}");
    }

    /// As text they are quoted by a template that writes JSON, and by no other.
    #[test]
    fn arguments_are_what_the_template_takes() {
        let call = json!({"type": "function", "function": {"name": "look", "arguments": "{\"at\":\"x\"}"}});
        let chat = chat(&json!({"tool_calls": [call]}), &json!([]));
        let shown = |template: &str| {
            let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
            let chat = template.with_arguments(&chat);
            template.render(&chat, false).unwrap()
        };
        assert!(
            shown(WHOLE).contains(r#"{"name": "look", "arguments": {"at": "x"}}"#),
            "{}",
            shown(WHOLE)
        );
        let as_it_is = "{{ messages[1].tool_calls[0].function.arguments + '!' }}";
        assert_eq!(shown(as_it_is), r#"{"at":"x"}!"#);
    }
}
