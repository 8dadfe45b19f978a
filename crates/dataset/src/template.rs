//! A model's chat template, rendered as transformers renders it.

use std::path::Path;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use time::OffsetDateTime;

use crate::{Chat, DatasetError, Message, Result};

/// What base models get, which have no template: the texts, and the end-of-text token after each
/// reply.
const PLAIN: &str = "{% for message in messages %}{{ message.content }}\
    {% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}\
    {% endfor %}";

/// A chat template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, else the `chat_template` of
    /// `tokenizer_config.json`, else a plain one for base models.
    ///
    /// # Errors
    ///
    /// If a file is broken or the template does not parse.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let config: serde_json::Value = if path.exists() {
            serde_json::from_str(&fs_err::read_to_string(&path)?)
                .map_err(|source| DatasetError::Json { path, source })?
        } else {
            serde_json::Value::Null
        };
        let file = folder.join("chat_template.jinja");
        let template = if file.exists() {
            fs_err::read_to_string(&file)?
        } else {
            named_template(&config["chat_template"]).unwrap_or(PLAIN).to_owned()
        };
        Self::new(&template, &token_text(&config["bos_token"]), &token_text(&config["eos_token"]))
    }

    /// Parses a template.
    ///
    /// # Errors
    ///
    /// If it does not parse.
    pub fn new(template: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned("chat", without_generation_marks(template))?;
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The text of a chat; with `generate`, up to where the assistant's next reply begins.
    ///
    /// # Errors
    ///
    /// If the template refuses the messages.
    pub fn render(&self, chat: &Chat, generate: bool) -> Result<String> {
        self.render_turns(&chat.messages, &chat.tools, generate)
    }

    pub(crate) fn render_turns(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        generate: bool,
    ) -> Result<String> {
        Ok(self.environment.get_template("chat")?.render(context! {
            messages,
            tools => (!tools.is_empty()).then_some(tools),
            add_generation_prompt => generate,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
        })?)
    }

    /// The end-of-text token's text.
    pub fn eos_token(&self) -> &str {
        &self.eos_token
    }
}

/// A template, or the one named `default` of several.
fn named_template(value: &serde_json::Value) -> Option<&str> {
    match value {
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str()),
        _ => value.as_str(),
    }
}

/// A special token is a text, or an object that holds it.
fn token_text(value: &serde_json::Value) -> String {
    value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
}

/// Drops `{% generation %}` marks: they only tell transformers where replies are.
fn without_generation_marks(template: &str) -> String {
    let mut template = template.to_owned();
    for word in ["generation", "endgeneration"] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            template = template.replace(&format!("{open} {word} {close}"), "");
        }
    }
    template
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `datetime.now().strftime`, for the few codes templates use.
fn strftime_now(format: &str) -> String {
    let now = OffsetDateTime::now_utc();
    let month = now.month().to_string();
    format
        .replace("%d", &format!("{:02}", now.day()))
        .replace("%b", &month[..3])
        .replace("%B", &month)
        .replace("%m", &format!("{:02}", u8::from(now.month())))
        .replace("%Y", &now.year().to_string())
}

/// Python's `json.dumps`: unlike Jinja's own filter it does not escape for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let fail = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    let mut out = Vec::new();
    let result = if let Some(width) = indent {
        let spaces = vec![b' '; width];
        let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
        serde::Serialize::serialize(value, &mut serializer)
    } else {
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonFormatter);
        serde::Serialize::serialize(value, &mut serializer)
    };
    result.map_err(fail)?;
    String::from_utf8(out)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python puts a space after each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(template: &str, generate: bool, expected: &str) {
        let messages = vec![Message::new("user", "a <b> \"c\"")];
        let chat = Chat { messages, tools: Vec::new() };
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        assert_eq!(template.render(&chat, generate).unwrap(), expected);
    }

    #[test]
    fn renders_as_transformers_does() {
        check("{{ bos_token }}{{ messages[0]['content'] }}", false, "<s>a <b> \"c\"");
        check("{% if add_generation_prompt %}yes{% endif %}", true, "yes");
        // Blocks take their line with them.
        check("x\n  {% if true %}\ny\n  {% endif %}\nz", false, "x\ny\nz");
        check("{{ messages[0].content | tojson }}", false, r#""a <b> \"c\"""#);
        check("{{ {'a': [1, 2]} | tojson }}", false, r#"{"a": [1, 2]}"#);
        check("{{ messages[0].content.strip('a ').upper() }}", false, "<B> \"C\"");
        check("{% generation %}x{% endgeneration %}", false, "x");
        check(PLAIN, false, "a <b> \"c\"\n");
    }

    #[test]
    fn a_template_may_refuse() {
        let template = ChatTemplate::new("{{ raise_exception('no') }}", "", "").unwrap();
        assert!(matches!(
            template.render(&Chat::default(), false),
            Err(DatasetError::Template { .. })
        ));
    }
}
