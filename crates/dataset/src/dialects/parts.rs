//! What a message says: a text, or a list of parts that are texts.

use serde_json::Value;

use crate::fields::{Fields, kind};

/// Takes `content` or `value`, if it is there.
pub(super) fn take_content(message: &mut Fields<'_>) -> Result<Option<String>, String> {
    let Some(key) = message.first(&["content", "value"]) else {
        return Ok(None);
    };
    let path = message.path(key);
    match message.take(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let texts: Vec<String> = parts
                .into_iter()
                .enumerate()
                .map(|(at, part)| text(message.inner(format!("{path}[{at}]"), part)?))
                .collect::<Result<_, _>>()?;
            Ok(Some(texts.concat()))
        }
        Some(other) => Err(format!(
            "`{path}` is {}; it must be a string or a list of text parts",
            kind(&other)
        )),
    }
}

fn text(mut part: Fields<'_>) -> Result<String, String> {
    let name = part.name.clone();
    match part.take_text("type")? {
        Some(of) if of == "text" => {}
        Some(other) => {
            return Err(format!("`{name}` is of the type `{other}`; only text is supported"));
        }
        None => return Err(format!("`{name}` has no `type`")),
    }
    let text = part.take_text("text")?.ok_or_else(|| format!("`{name}` has no `text`"))?;
    part.finish()?;
    Ok(text)
}
