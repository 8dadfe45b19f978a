//! Ollama's `Modelfile` for a GGUF file: how chats are written, where replies stop, how tokens are
//! drawn.

use std::path::Path;

use serde_json::Value;

use super::vocabulary::{chat_template, optional};
use crate::{Result, sha256_bytes};

/// How turns are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    ChatMl,
    Llama3,
}

impl Form {
    /// The template in Ollama's language. Its last line break stands in an action, where nothing
    /// trims it.
    fn template(self) -> &'static str {
        match self {
            Self::ChatMl => {
                "{{ range .Messages }}<|im_start|>{{ .Role }}\n\
                 {{ .Content }}<|im_end|>\n\
                 {{ end }}<|im_start|>assistant{{ \"\\n\" }}"
            }
            Self::Llama3 => {
                "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n\
                 {{ .Content }}<|eot_id|>{{ end }}\
                 <|start_header_id|>assistant<|end_header_id|>{{ \"\\n\\n\" }}"
            }
        }
    }
}

/// A chat template that is known to the letter.
struct Known {
    form: Form,
    /// Between what the text of the default system turn stands, if there is one.
    system: Option<(&'static str, &'static str)>,
    /// The SHA-256 of the template without that text.
    rest: &'static str,
    /// Whether it also writes tools, which are not translated.
    has_tools: bool,
}

const KNOWN: [Known; 5] = [
    // SmolLM2.
    Known {
        form: Form::ChatMl,
        system: Some(("{{ '<|im_start|>system\n", "<|im_end|>")),
        rest: "bf0c34b1af07f37d86dd9c6624d1a8d02574b3d3e5c158356534cb7ffa44add3",
        has_tools: false,
    },
    // Qwen2.5.
    Known {
        form: Form::ChatMl,
        system: Some(("{%- else %}\n        {{- '", "' }}")),
        rest: "0b13fb322ccd9216b4b6ff11bc10d39f5919ca11ef9ef26b2470497a8dd15fa7",
        has_tools: true,
    },
    // ChatML and nothing else.
    Known {
        form: Form::ChatMl,
        system: None,
        rest: "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3",
        has_tools: false,
    },
    // Llama 3, with and without the condition on the last line.
    Known {
        form: Form::Llama3,
        system: None,
        rest: "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",
        has_tools: false,
    },
    Known {
        form: Form::Llama3,
        system: None,
        rest: "b48c47f6443892716176eb200bf4ef108f64e06ca26ed0fa8ebc0a4b3992fcb2",
        has_tools: false,
    },
];

/// The text of a `Modelfile` for the GGUF file `gguf` beside it, which was made of a model folder.
///
/// A chat template is translated only if it is known to the letter; else Ollama goes by the one in
/// the GGUF file.
///
/// # Errors
///
/// If a file of the folder cannot be read.
pub fn modelfile(folder: &Path, gguf: &str) -> Result<String> {
    let of_tokenizer = optional(&folder.join("tokenizer_config.json"))?;
    let settings = optional(&folder.join("generation_config.json"))?;
    let mut text = format!("FROM ./{gguf}\n");
    match chat_template(folder, &of_tokenizer)? {
        None => text.push_str("# The model has no chat template.\n"),
        Some(template) => text.push_str(&template_lines(&template)),
    }
    for token in stop_tokens(folder, &settings)? {
        text.push_str(&format!("PARAMETER stop \"{token}\"\n"));
    }
    for name in ["temperature", "top_p", "top_k"] {
        if let Value::Number(value) = &settings[name] {
            text.push_str(&format!("PARAMETER {name} {value}\n"));
        }
    }
    Ok(text)
}

fn template_lines(template: &str) -> String {
    let Some((known, system)) = recognised(template) else {
        return "# No TEMPLATE: gradpruner does not translate this model's chat template, and Ollama goes by the one \
                in the file.\n"
            .into();
    };
    let mut lines = String::new();
    if known.has_tools {
        lines.push_str(
            "# Tools, which the model's own template also writes, are left out of this one.\n",
        );
    }
    lines.push_str(&format!("TEMPLATE \"\"\"{}\"\"\"\n", known.form.template()));
    if let Some(system) = system {
        lines.push_str(&format!("SYSTEM \"\"\"{system}\"\"\"\n"));
    }
    lines
}

/// The known template that this one is, and its default system turn.
fn recognised(template: &str) -> Option<(&'static Known, Option<String>)> {
    // A line break may be written as one, or by its name.
    let template = template.trim_end().replace("\\n", "\n");
    KNOWN.iter().find_map(|known| {
        let (system, rest) = match known.system {
            None => (None, template.clone()),
            Some((before, after)) => {
                let (_, from) = template.split_once(before)?;
                let (system, _) = from.split_once(after)?;
                let is_plain = !system.is_empty() && !system.contains(['\\', '\'', '"', '{', '}']);
                let rest = is_plain.then(|| template.replace(system, ""))?;
                (Some(system.to_owned()), rest)
            }
        };
        (sha256_bytes(rest.as_bytes()) == known.rest).then_some((known, system))
    })
}

/// The tokens that end a reply, as text.
fn stop_tokens(folder: &Path, settings: &Value) -> Result<Vec<String>> {
    let config = optional(&folder.join("config.json"))?;
    let tokenizer = optional(&folder.join("tokenizer.json"))?;
    let given = [&settings["eos_token_id"], &config["eos_token_id"]];
    let ids: Vec<u64> = match given.into_iter().find(|ids| !ids.is_null()) {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(id) => id.as_u64().into_iter().collect(),
        None => Vec::new(),
    };
    let added = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |id: &u64| {
        let token = added.iter().find(|token| token["id"].as_u64() == Some(*id))?;
        // Ollama has no escapes.
        let text = token["content"].as_str()?;
        (!text.contains(['"', '\n', '\r'])).then(|| text.to_owned())
    };
    Ok(ids.iter().filter_map(text).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}\
        {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = \
        '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}\
        {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}";
    const LLAMA3_REPLY: &str = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}";

    /// The file for a chat template, and whatever else a folder says.
    fn of(template: Option<&str>, files: &[(&str, Value)]) -> String {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        if let Some(template) = template {
            fs_err::write(at("chat_template.jinja"), template).unwrap();
        }
        for (name, value) in files {
            fs_err::write(at(name), value.to_string()).unwrap();
        }
        modelfile(folder.path(), "x.gguf").unwrap()
    }

    #[test]
    fn chats_that_are_known_are_translated() {
        let chatml = "TEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n\
            {{ end }}<|im_start|>assistant{{ \"\\n\" }}\"\"\"\n";
        let smollm2 = "SYSTEM \"\"\"You are a helpful AI assistant named SmolLM, trained by Hugging Face\"\"\"\n";
        assert_eq!(of(Some(SMOLLM2), &[]), format!("FROM ./x.gguf\n{chatml}{smollm2}"));
        let spelt = SMOLLM2.replace('\n', "\\n");
        assert_eq!(of(Some(&spelt), &[]), of(Some(SMOLLM2), &[]));
        let own = SMOLLM2.replace("named SmolLM, trained by Hugging Face", "of ours");
        assert!(
            of(Some(&own), &[])
                .ends_with("SYSTEM \"\"\"You are a helpful AI assistant of ours\"\"\"\n")
        );
        let plain = SMOLLM2.split("{% if loop.first").next().unwrap().to_owned()
            + SMOLLM2.split_once("{% endif %}").unwrap().1;
        assert_eq!(of(Some(&plain), &[]), format!("FROM ./x.gguf\n{chatml}"));

        let qwen = testkit::fixture("chats/templates/qwen25.jinja");
        let found = of(Some(&fs_err::read_to_string(qwen).unwrap()), &[]);
        let tools =
            "# Tools, which the model's own template also writes, are left out of this one.\n";
        let qwen = "SYSTEM \"\"\"You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\"\"\"\n";
        assert_eq!(found, format!("FROM ./x.gguf\n{tools}{chatml}{qwen}"));

        let conditional =
            format!("{LLAMA3}{{% if add_generation_prompt %}}{LLAMA3_REPLY}{{% endif %}}");
        for template in [format!("{LLAMA3}{LLAMA3_REPLY}"), conditional] {
            assert_eq!(
                of(Some(&template), &[]),
                "FROM ./x.gguf\nTEMPLATE \"\"\"{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n\
                 {{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>{{ \"\\n\\n\" }}\"\"\"\n"
            );
        }
    }

    #[test]
    fn other_chats_are_not() {
        let note = "FROM ./x.gguf\n# No TEMPLATE: gradpruner does not translate this model's chat template";
        let quoted = SMOLLM2.replace("Hugging Face", "{{ x }}\"\"\"");
        let nearly = SMOLLM2.replace("add_generation_prompt", "add_prompt");
        let empty = SMOLLM2
            .replace("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "");
        let marked = testkit::fixture("chats/templates/chatml_marked.jinja");
        let marked = fs_err::read_to_string(marked).unwrap();
        for template in [quoted.as_str(), &nearly, &empty, &marked, "{{ messages }}"] {
            assert!(of(Some(template), &[]).starts_with(note), "{template}");
        }
        assert_eq!(of(None, &[]), "FROM ./x.gguf\n# The model has no chat template.\n");
    }

    #[test]
    fn stops_and_settings() {
        let tokenizer = json!({"added_tokens": [
            {"id": 1, "content": "<|end|>"},
            {"id": 2, "content": "<|eot|>"},
            {"id": 3, "content": "\"\n"},
        ]});
        let settings =
            json!({"eos_token_id": [2, 1, 3, 9], "temperature": 0.7, "top_p": 0.8, "top_k": 20});
        let files = [("tokenizer.json", tokenizer.clone()), ("generation_config.json", settings)];
        assert_eq!(
            of(None, &files),
            "FROM ./x.gguf\n# The model has no chat template.\nPARAMETER stop \"<|eot|>\"\nPARAMETER stop \"<|end|>\"\n\
             PARAMETER temperature 0.7\nPARAMETER top_p 0.8\nPARAMETER top_k 20\n"
        );
        let files = [("tokenizer.json", tokenizer), ("config.json", json!({"eos_token_id": 1}))];
        assert!(of(None, &files).ends_with(".\nPARAMETER stop \"<|end|>\"\n"));
    }
}
