//! A model's chat template, rendered as transformers renders it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::bounded::{MOST_BYTES, read_json, read_text};
use crate::jinja::{Fault, Program, Rendered, Size};
use crate::{Chat, DatasetError, Message, Result};

/// What base models get, which have no template: the texts, and the end-of-text token after each
/// reply.
const PLAIN: &str = "{% for message in messages %}{{ message.content }}\
    {% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}\
    {% endfor %}";

/// Where the special tokens stand, and in the first the templates that have no files of their own.
const CONFIGS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
/// The special tokens that transformers hands to templates.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Where further templates lie, each in a file of its name; transformers has used both.
const FOLDERS: [&str; 2] = ["additional_chat_templates", "chat_templates"];
/// Under which names a message's reasoning comes; templates ask for the first two.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A chat template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    templates: Vec<Template>,
    special_tokens: Map<String, Value>,
    /// Whether the model has none of its own.
    is_plain: bool,
}

/// One of a model's templates.
#[derive(Debug)]
struct Template {
    name: String,
    /// Where it was read, for messages.
    origin: String,
    program: Program,
}

/// A template's text, before it is parsed.
struct Source {
    name: String,
    origin: String,
    text: String,
}

impl ChatTemplate {
    /// Reads the templates of a model folder, from where transformers does: `chat_template.jinja` and
    /// `additional_chat_templates/`, else the `chat_template` of `tokenizer_config.json`, else a
    /// plain one for base models.
    ///
    /// # Errors
    ///
    /// If a file is broken or a template does not parse.
    pub fn read(folder: &Path) -> Result<Self> {
        let [path, map] = CONFIGS.map(|name| folder.join(name));
        let config = read_json(&path)?;
        let mut sources = template_files(folder)?;
        if sources.is_empty() {
            sources = config_templates(&config["chat_template"], &path);
        }
        let map = read_json(&map)?;
        let tokens = SPECIAL_TOKENS.into_iter().filter_map(|name| {
            let text = token_text(&config[name]).or_else(|| token_text(&map[name]))?;
            Some((name.to_owned(), Value::from(text)))
        });
        Self::parse(sources, tokens.collect())
    }

    /// The files that [`ChatTemplate::read`] reads, whether or not they are there.
    pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let own = named_files(folder)?.into_iter().map(|(_, path)| path);
        Ok(CONFIGS.map(|name| folder.join(name)).into_iter().chain(own).collect())
    }

    /// Parses a template.
    ///
    /// # Errors
    ///
    /// If it does not parse.
    pub fn new(template: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let source = Source {
            name: "default".into(),
            origin: "the chat template".into(),
            text: template.into(),
        };
        let tokens = [("bos_token", bos_token), ("eos_token", eos_token)];
        let tokens = tokens.map(|(name, text)| (name.to_owned(), Value::from(text)));
        Self::parse(vec![source], tokens.into_iter().collect())
    }

    fn parse(mut sources: Vec<Source>, special_tokens: Map<String, Value>) -> Result<Self> {
        let is_plain = sources.is_empty();
        if is_plain {
            let (name, origin) = ("default".into(), "the template for base models".into());
            sources.push(Source { name, origin, text: PLAIN.into() });
        }
        let parse = |Source { name, origin, text }| match Program::parse(&text) {
            Ok(program) => Ok(Template { name, origin, program }),
            Err(fault) => Err(template_error(&origin, fault)),
        };
        let templates: Result<_> = sources.into_iter().map(parse).collect();
        Ok(Self { templates: templates?, special_tokens, is_plain })
    }

    /// The text of a chat; with `generate`, up to where the assistant's next reply begins.
    ///
    /// # Errors
    ///
    /// If the template refuses the messages, or takes more steps, memory or output than any
    /// template needs.
    pub fn render(&self, chat: &Chat, generate: bool) -> Result<String> {
        Ok(self.render_turns(&chat.messages, &chat.tools, generate)?.text)
    }

    pub(crate) fn render_turns(
        &self,
        messages: &[Message],
        tools: &[Value],
        generate: bool,
    ) -> Result<Rendered> {
        let template = self.template_for(tools)?;
        let is_silent = |message: &Message| message.content.is_none();
        let may_ask_content = messages.iter().any(is_silent);
        let messages: Vec<Value> = messages.iter().map(message_json).collect();
        let (turns, messages) = (messages.len(), Value::from(messages));
        let tools = if tools.is_empty() { Value::Null } else { Value::from(tools) };
        let bytes = messages.to_string().len() + tools.to_string().len();
        let mut variables: Vec<(&str, Value)> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token.clone()))
            .collect();
        variables.extend([
            ("messages", messages),
            ("tools", tools),
            ("documents", Value::Null),
            ("add_generation_prompt", json!(generate)),
        ]);
        let rendered = template.program.render(&variables, Size { turns, bytes });
        rendered.map_err(|mut fault| {
            if may_ask_content {
                let advice =
                    "; a turn has `tool_calls` and no content, which this template may not support";
                fault.what.push_str(advice);
            }
            template_error(&template.origin, fault)
        })
    }

    /// Whether the template says itself which words are the assistant's, by `{% generation %}`.
    pub(crate) fn has_marks(&self, chat: &Chat) -> Result<bool> {
        Ok(self.template_for(&chat.tools)?.program.has_marks())
    }

    /// Whether the model has no template of its own.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The template named `tool_use` if there are tools and such a one, else the one named `default`.
    fn template_for(&self, tools: &[Value]) -> Result<&Template> {
        let named = |name: &str| self.templates.iter().find(|template| template.name == name);
        let for_tools = if tools.is_empty() { None } else { named("tool_use") };
        for_tools.or_else(|| named("default")).ok_or_else(|| {
            let origin = self.templates.first().map_or("", |template| &template.origin);
            let what = "the model has several chat templates and none is named `default`";
            template_error(origin, Fault { line: 1, what: what.into() })
        })
    }

    /// The end-of-text token's text, or nothing if there is none.
    pub fn eos_token(&self) -> &str {
        self.special_tokens.get("eos_token").and_then(Value::as_str).unwrap_or_default()
    }
}

fn template_error(template: &str, fault: Fault) -> DatasetError {
    let Fault { line, what } = fault;
    DatasetError::Template { template: template.to_owned(), line, what }
}

fn template_files(folder: &Path) -> Result<Vec<Source>> {
    let source = |(name, path): (String, PathBuf)| {
        let text = read_text(&path, MOST_BYTES)?;
        Ok(Source { name, origin: path.display().to_string(), text })
    };
    named_files(folder)?.into_iter().map(source).collect()
}

/// The names of the templates that have files of their own, and the files.
fn named_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let default = folder.join("chat_template.jinja");
    if default.exists() {
        found.push(("default".into(), default));
    }
    for folder in FOLDERS.map(|name| folder.join(name)) {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs_err::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == "jinja") {
                found.push((name, path));
            }
        }
    }
    Ok(found)
}

/// The value of `chat_template`: a text, or a list of named ones.
fn config_templates(value: &Value, path: &Path) -> Vec<Source> {
    let source = |name: &str, text: &str| Source {
        name: name.to_owned(),
        origin: format!("{}: `chat_template`", path.display()),
        text: text.to_owned(),
    };
    match value {
        Value::String(text) => vec![source("default", text)],
        Value::Array(named) => named
            .iter()
            .filter_map(|entry| Some(source(entry["name"].as_str()?, entry["template"].as_str()?)))
            .collect(),
        Value::Object(named) => {
            named.iter().filter_map(|(name, text)| Some(source(name, text.as_str()?))).collect()
        }
        _ => Vec::new(),
    }
}

/// A special token is a text, or an object that holds it.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// A message as transformers hands it to templates: without the keys that hold nothing, and with its
/// reasoning under the names that templates ask for.
fn message_json(message: &Message) -> Value {
    let more = || message.more.iter().filter(|(_, value)| !value.is_null());
    let reasoning =
        REASONING.iter().find_map(|key| message.more.get(*key).filter(|v| !v.is_null()));
    let mut found = Map::new();
    if let Some(reasoning) = reasoning {
        found.insert("thinking".into(), reasoning.clone());
    }
    found.insert("role".into(), message.role.as_str().into());
    if let Some(content) = &message.content {
        found.insert("content".into(), content.as_str().into());
    }
    found.extend(more().map(|(key, value)| (key.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        found.insert("reasoning_content".into(), reasoning.clone());
    }
    found.into()
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
        check("{{ {'b': [1, 2], 'a': none} | tojson }}", false, r#"{"b": [1, 2], "a": null}"#);
        check("{{ messages[0].content.strip('a ').upper() }}", false, "<B> \"C\"");
        check("{% generation %}x{% endgeneration %}", false, "x");
        check(PLAIN, false, "a <b> \"c\"\n");
    }

    #[test]
    fn a_template_may_refuse() {
        let template = ChatTemplate::new("\n{{ raise_exception('no') }}", "", "").unwrap();
        let error = template.render(&Chat::default(), false).unwrap_err();
        assert_eq!(error.to_string(), "the chat template line 2: no");
    }

    #[test]
    fn tools_have_a_template_of_their_own() {
        let folder = testkit::temporary_folder();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        };
        let render = |tools: Vec<Value>| {
            let template = ChatTemplate::read(folder.path()).unwrap();
            template.render(&Chat { messages: Vec::new(), tools }, false).unwrap()
        };
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "default", "template": "plain {{ tools }}"},
                {"name": "tool_use", "template": "tools"}]}"#,
        );
        assert_eq!(render(Vec::new()), "plain None");
        assert_eq!(render(vec![json!({})]), "tools");
        // Files come before what the configuration holds.
        write("chat_template.jinja", "file");
        assert_eq!(render(vec![json!({})]), "file");
        write("additional_chat_templates/tool_use.jinja", "tool file");
        assert_eq!(render(vec![json!({})]), "tool file");
    }

    #[test]
    fn nothing_is_handed_over_and_reasoning_is_under_both_names() {
        let mut message = Message::new("assistant", "a");
        message.content = None;
        message.more.insert("reasoning".into(), "r".into());
        message.more.insert("tool_calls".into(), Value::Null);
        let expected = json!({"thinking": "r", "role": "assistant", "reasoning": "r", "reasoning_content": "r"});
        assert_eq!(message_json(&message).to_string(), expected.to_string());
    }
}
