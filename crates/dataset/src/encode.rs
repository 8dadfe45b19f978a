//! Chats to token ids, with the tokens marked that count for the loss.

use std::ops::Range;
use std::path::Path;

use crate::tokenizer::Tokenizer;
use crate::{Chat, ChatTemplate, Content, DatasetError, Message, Result, Row};

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
}

impl Encoder {
    /// Reads `tokenizer.json` and the chat template of a model folder.
    ///
    /// # Errors
    ///
    /// If either is missing or broken.
    pub fn read(folder: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::read(&folder.join("tokenizer.json"))?;
        Ok(Self { tokenizer, template: ChatTemplate::read(folder)? })
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The largest id the tokenizer can give a token.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// A text's tokens, special tokens recognised but none added.
    ///
    /// # Errors
    ///
    /// If the tokenizer refuses the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// The text tokens stand for.
    ///
    /// # Errors
    ///
    /// If a token is unknown.
    pub fn text(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer
            .decode(tokens, skip_special)
            .map_err(|error| DatasetError::Encode { what: error.to_string() })
    }

    /// A prompt as tokens, rendered up to where the assistant's reply begins.
    ///
    /// # Errors
    ///
    /// If the template or the tokenizer refuses it.
    pub fn prompt(&self, chat: &Chat) -> Result<Vec<u32>> {
        self.tokens(&self.template.render(chat, true)?)
    }

    /// A row as tokens, cut at `max_tokens`, those to learn marked.
    ///
    /// Marked are each reply's own tokens and the end-of-turn token after it, which the model must
    /// learn to say; of plain text, all but the first.
    ///
    /// # Errors
    ///
    /// [`DatasetError::At`] the row if the template or the tokenizer refuses it.
    pub fn example(&self, row: &Row, max_tokens: usize) -> Result<Example> {
        let example = match &row.content {
            Content::Chat(chat) | Content::Choice { chat, .. } => self.chat(chat),
            Content::Text(text) => self.text_example(text),
        };
        let Example { mut tokens, mut labelled, .. } = example.map_err(|error| error.at(row))?;
        let cut = tokens.len().saturating_sub(max_tokens);
        tokens.truncate(max_tokens);
        labelled.truncate(max_tokens);
        if let Some(first) = labelled.first_mut() {
            *first = false; // Nothing comes before it to predict it from.
        }
        Ok(Example { tokens, labelled, cut })
    }

    fn text_example(&self, text: &str) -> Result<Example> {
        let tokens = self.tokens(text)?;
        let labelled = vec![true; tokens.len()];
        Ok(Example::whole(tokens, labelled))
    }

    fn chat(&self, chat: &Chat) -> Result<Example> {
        let text = self.template.render(chat, false)?;
        let replies = self.replies(chat, &text)?;
        let encoding = self.encoding(&text)?;
        let within = |&(start, end): &(usize, usize)| {
            replies.iter().any(|reply| start < reply.end && reply.start < end)
        };
        let labelled = encoding.get_offsets().iter().map(within).collect();
        Ok(Example::whole(encoding.get_ids().to_vec(), labelled))
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
        self.ask(chat, (choices, *answer), max_tokens).map_err(|error| error.at(row))
    }

    fn ask(
        &self,
        chat: &Chat,
        (texts, answer): (&[String], usize),
        max_tokens: usize,
    ) -> Result<Question> {
        let asked = &chat.messages[..chat.messages.len().saturating_sub(1)];
        let text = self.template.render_turns(asked, &chat.tools, true)?;
        let mut prompt = self.tokens(&text)?;
        let mut choices = Vec::with_capacity(texts.len());
        for choice in texts {
            let mut tokens = self.tokens(&format!("{text}{choice}"))?;
            let reply = tokens.split_off(prompt.len().min(tokens.len()));
            if reply.is_empty() {
                return Err(DatasetError::Encode { what: "a choice has no tokens".into() });
            }
            choices.push(reply);
        }
        let whole = self.chat(chat)?;
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
        self.tokenizer
            .encode(text, false)
            .map_err(|error| DatasetError::Encode { what: error.to_string() })
    }

    /// Where the assistant's replies stand in the rendered chat, in bytes.
    fn replies(&self, chat: &Chat, text: &str) -> Result<Vec<Range<usize>>> {
        let Chat { messages, tools } = chat;
        let mut found = Vec::new();
        let mut from = 0;
        for (turn, message) in messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let before = self.template.render_turns(&messages[..turn], tools, true)?;
            let after = self.template.render_turns(&messages[..=turn], tools, false)?;
            let range = if after.starts_with(&before) && text.starts_with(&after) {
                before.len()..before.len() + after[before.len()..].trim_end().len()
            } else {
                // The template shows earlier turns differently once later ones follow.
                self.reply_by_content(message, text, from).ok_or_else(|| DatasetError::Encode {
                    what: "the chat template changes the assistant's text beyond recognition"
                        .into(),
                })?
            };
            from = range.end;
            found.push(range);
        }
        Ok(found)
    }

    fn reply_by_content(&self, message: &Message, text: &str, from: usize) -> Option<Range<usize>> {
        let content = message.text().trim();
        let start = from + text[from..].find(content)?;
        let end = start + content.len();
        let eos = self.template.eos_token();
        let ended = !eos.is_empty() && text[end..].starts_with(eos);
        Some(start..if ended { end + eos.len() } else { end })
    }
}
