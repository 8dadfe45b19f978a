//! Chats to token ids, with the tokens marked that count for the loss.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::tokenizer::Tokenizer;
use crate::turn::Piece;
use crate::{Chat, ChatTemplate, Content, DatasetError, Result, Row};

/// A chat as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// For each token whether predicting it counts: it is the assistant's. Never the first.
    pub labelled: Vec<bool>,
    /// How many tokens at its end were cut off.
    pub cut: usize,
}

impl Example {
    /// A chat of which nothing is cut.
    pub fn whole(tokens: Vec<u32>, labelled: Vec<bool>) -> Self {
        Self { tokens, labelled, cut: 0 }
    }

    /// How many of its tokens are learned.
    pub fn learned(&self) -> usize {
        self.labelled.iter().filter(|&&labelled| labelled).count()
    }
}

/// A prompt with candidate replies, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The rendered prompt, up to where the reply begins.
    pub prompt: Vec<u32>,
    /// Each reply's tokens, without an end-of-turn token.
    pub choices: Vec<Vec<u32>>,
    /// Each reply's length in UTF-8 bytes.
    pub size_bytes: Vec<usize>,
    /// The right reply with its end-of-turn token: what fine-tuning learns to say.
    pub reply: Vec<u32>,
    /// The position of the right reply.
    pub answer: usize,
    /// How many tokens at the prompt's beginning were cut off.
    pub cut: usize,
}

/// A model's tokenizer and chat template.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// What the tokenizer begins a text with: the beginning-of-text token, if it adds one.
    begin: Vec<u32>,
    /// The end-of-text token.
    end: Option<u32>,
}

/// A stretch of an example's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// The text.
    pub text: String,
    /// Whether it is learned.
    pub learned: bool,
}

impl Encoder {
    /// Reads `tokenizer.json` and the chat template of a model folder.
    ///
    /// # Errors
    ///
    /// If either is missing or broken.
    pub fn read(folder: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::read(&folder.join("tokenizer.json"))?;
        let template = ChatTemplate::read(folder)?;
        let end = tokenizer.id(template.eos_token());
        let mut encoder = Self { tokenizer, template, begin: Vec::new(), end };
        encoder.begin = encoder.added_before()?;
        Ok(encoder)
    }

    /// The files of a model folder that [`Encoder::read`] reads, those that are there.
    ///
    /// # Errors
    ///
    /// If a folder of templates cannot be listed.
    pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let mut files = vec![folder.join("tokenizer.json")];
        files.append(&mut ChatTemplate::files(folder)?);
        files.retain(|file| file.exists());
        Ok(files)
    }

    /// The tokens that the tokenizer's post-processor puts before a text.
    fn added_before(&self) -> Result<Vec<u32>> {
        let encode = |special| self.tokenizer.encode("a", special);
        let (bare, whole) = (encode(false)?, encode(true)?);
        let (bare, whole) = (bare.get_ids(), whole.get_ids());
        let count = whole.windows(bare.len().max(1)).position(|window| window == bare);
        Ok(whole[..count.unwrap_or(0)].to_vec())
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The largest id the tokenizer can give a token.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.largest_id()
    }

    /// A text's tokens, special tokens recognised but none added.
    ///
    /// # Errors
    ///
    /// If the tokenizer refuses the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// A text's tokens after those that the tokenizer begins every text with.
    ///
    /// # Errors
    ///
    /// If the tokenizer refuses the text.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.begun(self.tokens(text)?))
    }

    /// Tokens after those that a text begins with, unless they begin so already.
    fn begun(&self, tokens: Vec<u32>) -> Vec<u32> {
        match tokens.starts_with(&self.begin) {
            true => tokens,
            false => [self.begin.as_slice(), &tokens].concat(),
        }
    }

    /// The tokens of a rendered chat. A template writes the beginning-of-text token itself; without
    /// one the tokenizer's rule holds.
    fn rendered_tokens(&self, text: &str) -> Result<Vec<u32>> {
        if self.template.is_plain() { self.text_tokens(text) } else { self.tokens(text) }
    }

    /// The text tokens stand for.
    ///
    /// # Errors
    ///
    /// If a token is unknown.
    pub fn text(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(tokens, skip_special)
    }

    /// The text of an example, what is learned apart from what is not.
    ///
    /// # Errors
    ///
    /// If a token is unknown.
    pub fn stretches(&self, example: &Example) -> Result<Vec<Stretch>> {
        let (mut found, mut from) = (Vec::new(), 0);
        for run in example.labelled.chunk_by(PartialEq::eq) {
            let tokens = &example.tokens[from..from + run.len()];
            let text = self.text(tokens, false)?;
            found.push(Stretch { text, learned: run[0] });
            from += run.len();
        }
        Ok(found)
    }

    /// A prompt as tokens, rendered up to where the assistant's reply begins.
    ///
    /// # Errors
    ///
    /// If the template or the tokenizer refuses it.
    pub fn prompt(&self, chat: &Chat) -> Result<Vec<u32>> {
        let chat = self.template.with_arguments(chat);
        self.rendered_tokens(&self.template.render(&chat, true)?)
    }

    /// A row as tokens, cut at `max_tokens`, those to learn marked.
    ///
    /// Marked is what the template's `{% generation %}` encloses, as transformers marks it; else each
    /// reply's own tokens and the end-of-turn token after it, which the model must learn to say; of
    /// plain text, which ends with the end-of-text token, all but the first. A chat whose template
    /// shows earlier replies differently later gives several examples, each reply learned in one.
    ///
    /// # Errors
    ///
    /// [`DatasetError::At`] the row if the template or the tokenizer refuses it.
    pub fn examples_of(&self, row: &Row, max_tokens: usize) -> Result<Vec<Example>> {
        let examples = match &row.content {
            Content::Chat(chat) | Content::Choice { chat, .. } => self.chat(chat),
            Content::Text(text) => self.text_example(text).map(|example| vec![example]),
        };
        let mut examples = examples.map_err(|error| error.at(row))?;
        for Example { tokens, labelled, cut } in &mut examples {
            *cut = tokens.len().saturating_sub(max_tokens);
            tokens.truncate(max_tokens);
            labelled.truncate(max_tokens);
            if let Some(first) = labelled.first_mut() {
                *first = false; // Nothing comes before it to predict it from.
            }
        }
        Ok(examples)
    }

    fn text_example(&self, text: &str) -> Result<Example> {
        let mut tokens = self.text_tokens(text)?;
        if tokens.last() != self.end.as_ref() {
            tokens.extend(self.end);
        }
        let labelled = vec![true; tokens.len()];
        Ok(Example::whole(tokens, labelled))
    }

    fn chat(&self, chat: &Chat) -> Result<Vec<Example>> {
        let chat = self.template.with_arguments(chat);
        self.template.pieces(&chat)?.iter().map(|piece| self.piece(piece)).collect()
    }

    fn piece(&self, piece: &Piece) -> Result<Example> {
        let encoding = self.encoding(&piece.text)?;
        let mut labelled = overlapping(encoding.get_offsets(), &piece.learned);
        let mut tokens = encoding.get_ids().to_vec();
        if self.template.is_plain() {
            tokens = self.begun(tokens);
            labelled.splice(..0, vec![false; tokens.len() - labelled.len()]);
        }
        Ok(Example::whole(tokens, labelled))
    }

    /// A multiple-choice row as tokens.
    ///
    /// Prompt and reply are encoded together and cut where the prompt alone ends, as
    /// lm-evaluation-harness does. Prompts beyond `max_tokens` lose their beginning.
    ///
    /// # Errors
    ///
    /// If the row has no choices, a choice is empty, or template or tokenizer refuse it.
    pub fn question(&self, row: &Row, max_tokens: usize) -> Result<Question> {
        let Content::Choice { chat, choices, answer } = &row.content else {
            let what = "it has no choices".into();
            return Err(DatasetError::Row { place: row.place.clone(), what });
        };
        let asked = Asked { chat, choices, answer: *answer };
        self.ask(&asked, max_tokens).map_err(|error| error.at(row))
    }

    fn ask(&self, asked: &Asked<'_>, max_tokens: usize) -> Result<Question> {
        let &Asked { chat, choices: texts, answer } = asked;
        let chat = &*self.template.with_arguments(chat);
        let asked = &chat.messages[..chat.messages.len().saturating_sub(1)];
        let text = self.template.render_turns(asked, &chat.tools, true)?.text;
        let mut prompt = self.rendered_tokens(&text)?;
        if prompt.is_empty() {
            return Err(DatasetError::Encode { what: "a question has no tokens".into() });
        }
        let mut choices = Vec::with_capacity(texts.len());
        for choice in texts {
            let mut tokens = self.rendered_tokens(&format!("{text}{choice}"))?;
            let reply = tokens.split_off(prompt.len().min(tokens.len()));
            if reply.is_empty() {
                return Err(DatasetError::Encode { what: "a choice has no tokens".into() });
            }
            choices.push(reply);
        }
        let examples = self.chat(chat)?;
        let Some(whole) = examples.last() else {
            return Err(DatasetError::Encode { what: "a question has no reply".into() });
        };
        let last = whole.labelled.iter().rposition(|&labelled| labelled).map_or(0, |last| last + 1);
        let reply = match whole.tokens[..last].strip_prefix(prompt.as_slice()) {
            Some(reply) if !reply.is_empty() => reply.to_vec(),
            _ => choices[answer].clone(), // The template shows prompts differently once answered.
        };
        let longest = choices.iter().chain([&reply]).map(Vec::len).max().unwrap_or(0);
        let room = max_tokens.saturating_sub(longest).max(1);
        let cut = prompt.len().saturating_sub(room);
        prompt.drain(..cut);
        let size_bytes = texts.iter().map(String::len).collect();
        Ok(Question { prompt, choices, size_bytes, reply, answer, cut })
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.tokenizer.encode_char_offsets(text)
    }
}

/// A multiple-choice row.
struct Asked<'a> {
    chat: &'a Chat,
    choices: &'a [String],
    answer: usize,
}

/// Which tokens lie in the given ranges, by the rule of transformers' `return_assistant_tokens_mask`.
fn overlapping(offsets: &[(usize, usize)], ranges: &[Range<usize>]) -> Vec<bool> {
    let mut ranges = ranges.iter().peekable();
    let within = |&(start, end): &(usize, usize)| {
        while ranges.next_if(|range| start >= range.end).is_some() {}
        ranges.peek().is_some_and(|range| end > range.start)
    };
    offsets.iter().map(within).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::Place;

    /// An encoder with the fixture's tokenizer and one of its templates, if one is named.
    fn encoder(template: Option<&str>) -> Encoder {
        let (fixture, folder) = (testkit::fixture("chats"), testkit::temporary_folder());
        let copy = |from: &str, to: &str| {
            fs_err::copy(fixture.join(from), folder.path().join(to)).unwrap();
        };
        copy("tokenizer.json", "tokenizer.json");
        if let Some(template) = template {
            copy(&format!("templates/{template}.jinja"), "chat_template.jinja");
        }
        let config = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;
        fs_err::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        Encoder::read(folder.path()).unwrap()
    }

    fn row(content: Content) -> Row {
        let place = Place { file: Arc::from(Path::new("rows")), number: 1, is_line: true };
        Row { place, content }
    }

    fn ids(value: &Value) -> Vec<u32> {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// Text, prompt, tokens and `assistant_masks` of chats through templates like the known ones.
    #[test]
    fn chats_are_as_in_transformers() {
        let expected = testkit::json(&testkit::fixture("chats/expected.json"));
        let (mut seen, mut left_out) = (0, Vec::new());
        for case in expected["cases"].as_array().unwrap() {
            let (template, name) =
                (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
            let chat: Chat = serde_json::from_value(expected["chats"][name].clone()).unwrap();
            let encoder = encoder(Some(template));
            let found = encoder.template().render(&chat, false);
            let Some(text) = case["text"].as_str() else {
                assert!(found.is_err(), "{template} {name}");
                continue;
            };
            assert_eq!(found.unwrap(), text, "{template} {name}");
            let asked = &chat.messages[..chat.messages.len() - 1];
            let asked = Chat { messages: asked.to_vec(), tools: chat.tools.clone() };
            let prompt = encoder.template().render(&asked, true).unwrap();
            assert_eq!(prompt, case["prompt"].as_str().unwrap(), "{template} {name}");
            assert_eq!(encoder.tokens(text).unwrap(), ids(&case["ids"]), "{template} {name}");
            if let Some(mask) = case.get("mask") {
                if let Err(error) = encoder.chat(&chat) {
                    // It gives a mask, and leaves out what is to be learned.
                    let error = error.to_string();
                    assert!(error.contains("the chat template does not show"), "{error}");
                    left_out.push(name.to_owned());
                    continue;
                }
                let examples = encoder.chat(&chat).unwrap();
                let labelled: Vec<u32> = examples[0].labelled.iter().map(|&x| x.into()).collect();
                assert_eq!(labelled, ids(mask), "{template} {name}");
                assert_eq!((examples.len(), &examples[0].tokens), (1, &ids(&case["ids"])));
            }
            seen += 1;
        }
        assert!(seen > 40, "{seen}");
        assert_eq!(left_out, ["reasoning", "reasoning", "tools", "parallel"]);
    }

    /// The rows' learned stretches, example by example.
    fn check(template: Option<&str>, content: Content, expected: &[&str]) {
        let encoder = encoder(template);
        let mut found = Vec::new();
        for example in encoder.examples_of(&row(content), 10_000).unwrap() {
            let mut text = String::new();
            for stretch in encoder.stretches(&example).unwrap() {
                let (open, close) = if stretch.learned { ("[[", "]]") } else { ("", "") };
                text += &format!("{open}{}{close}", stretch.text);
            }
            found.push(text);
        }
        assert_eq!(found, expected);
    }

    fn fixture_chat(name: &str) -> Content {
        let expected = testkit::json(&testkit::fixture("chats/expected.json"));
        Content::Chat(serde_json::from_value(expected["chats"][name].clone()).unwrap())
    }

    #[test]
    fn reasoning_is_learned_where_it_is_shown() {
        let first = "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n";
        let last = "<|im_start|>user\nAnd 2+2?<|im_end|>\n<|im_start|>assistant\n\
            [[<think>\ntwo and two\n</think>\n\n4<|im_end|>]]\n";
        check(
            Some("qwen3"),
            fixture_chat("reasoning"),
            &[
                &format!("{first}[[<think>\none and one\nis two\n</think>\n\n2<|im_end|>]]\n"),
                &format!("{first}2<|im_end|>\n{last}"),
            ],
        );
    }

    /// Mistral's template shows the system's words in the last user turn alone, so no prompt begins its answered form.
    #[test]
    fn replies_whose_prompt_is_shown_differently_once_answered() {
        let learned = |template: &str, system: &str, reply: crate::Message| {
            let mut messages = vec![crate::Message::new("user", "q"), reply];
            if !system.is_empty() {
                messages.insert(0, crate::Message::new("system", system));
            }
            let content = Content::Chat(Chat { messages, tools: Vec::new() });
            let encoder = encoder(Some(template));
            let examples = encoder.examples_of(&row(content), 10_000).unwrap();
            let stretches = encoder.stretches(&examples[0]).unwrap();
            stretches
                .iter()
                .filter(|part| part.learned)
                .map(|part| part.text.clone())
                .collect::<String>()
        };
        // Also one that its end-of-text token, or what comes before it, holds too.
        for said in ["Paris.", "s", "/", "q", "INST"] {
            for system in ["", "Be brief."] {
                let reply = crate::Message::new("assistant", said);
                assert_eq!(learned("mistral3", system, reply), format!(" {said}</s>"), "{system}");
            }
        }
        let mut call = crate::Message::new("assistant", "");
        call.content = None;
        let look = serde_json::json!([{"type": "function", "id": "abcdefghi",
            "function": {"name": "look", "arguments": {"at": "x"}}}]);
        call.more.insert("tool_calls".into(), look);
        let alike = learned("mistral3", "", call.clone());
        assert!(alike.starts_with("[TOOL_CALLS] [{\"name\": \"look\""), "{alike}");
        assert_eq!(learned("mistral3", "Be brief.", call), alike);
    }

    #[test]
    fn calls_of_tools_are_learned() {
        let encoder = encoder(Some("qwen25"));
        let examples = encoder.examples_of(&row(fixture_chat("tools")), 10_000).unwrap();
        let learned: Vec<String> = examples
            .iter()
            .flat_map(|example| encoder.stretches(example).unwrap())
            .filter_map(|stretch| stretch.learned.then_some(stretch.text))
            .collect();
        assert_eq!(learned.len(), 4);
        assert!(learned[0].ends_with("\"days\": [1, 2]}}\n</tool_call><|im_end|>"), "{learned:?}");
        assert_eq!(learned[1], "Sunny.<|im_end|>");
    }

    #[test]
    fn base_models_begin_and_end_as_their_tokenizer_says() {
        let said = |role: &str, text: &str| crate::Message::new(role, text);
        let messages = vec![said("user", "p"), said("assistant", "q")];
        let chat = Chat { messages, tools: Vec::new() };
        check(None, Content::Chat(chat.clone()), &["<s>p\n[[q</s>]]"]);
        check(None, Content::Text("word".into()), &["<s>[[word</s>]]"]);
        check(None, Content::Text("<s>word</s>".into()), &["<s>[[word</s>]]"]);
        // A template writes what it wants to begin with.
        let content = Content::Chat(chat);
        let text = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n[[q<|im_end|>]]\n";
        let system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n";
        check(Some("chatml"), content, &[&format!("{system}{text}")]);
        check(Some("chatml"), Content::Text("word".into()), &["<s>[[word</s>]]"]);
        let expected = testkit::json(&testkit::fixture("chats/expected.json"));
        assert_eq!(encoder(None).text_tokens("Is it good?").unwrap(), ids(&expected["text"]));
    }

    #[test]
    fn a_tokenizer_that_cannot_be_read_is_named() {
        let fixture = testkit::fixture("chats/tokenizer.json");
        let sound = fs_err::read_to_string(fixture).unwrap();
        let strip = r#""decoder":{"type":"Strip","content":"x","start":1e400,"stop":1e400}"#;
        let at = sound.find("\"decoder\":").unwrap();
        let end = at + sound[at..].find('}').unwrap() + 1;
        let endless = format!("{}{strip}{}", &sound[..at], &sound[end..]);
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        for text in
            ["{", "[1e400]", r#"{"version": "1.0", "model": {"type": "BPE"}}"#, &deep, &endless]
        {
            let folder = testkit::temporary_folder();
            fs_err::write(folder.path().join("tokenizer.json"), text).unwrap();
            let error = Encoder::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json: not a usable tokenizer"), "{error}");
        }
    }
}
