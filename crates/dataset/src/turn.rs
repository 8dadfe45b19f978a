//! Which part of a rendered chat is learned, where the template does not say so itself.

use std::ops::Range;

use serde_json::Value;

use crate::jinja::Rendered;
use crate::shown::{require_tools, require_whole};
use crate::{Chat, ChatTemplate, DatasetError, Message, Result};

/// A text and what of it is learned, in characters, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) learned: Vec<Range<usize>>,
}

/// A reply in what the template renders when the reply is the last turn.
struct Turn {
    text: String,
    /// In bytes, the end-of-turn token included.
    reply: Range<usize>,
    /// Where the reply ends without the end-of-text token, if another token ends it before: where turns follow, the
    /// template may show it so.
    ends_before: Option<usize>,
}

/// What no assistant says: a character that is nobody's.
const SOMETHING_ELSE: &str = "\u{e000}";

impl ChatTemplate {
    /// The texts that teach a chat's replies.
    ///
    /// One, if the template shows every turn later as it did when it was the last. Else a reply that
    /// is shown differently later (without its reasoning, say) is learned from the text in which it
    /// is the last turn; replies that agree share a text, and each is learned once.
    pub(crate) fn pieces(&self, chat: &Chat) -> Result<Vec<Piece>> {
        let pieces = match self.has_marks(chat)? {
            true => vec![self.marked_piece(chat)?],
            false => self.found_pieces(chat)?,
        };
        require_tools(chat, pieces.iter().map(|piece| piece.text.as_str()))?;
        Ok(pieces)
    }

    /// The texts, where the template does not mark replies.
    fn found_pieces(&self, chat: &Chat) -> Result<Vec<Piece>> {
        let mut text = self.render(chat, false)?;
        let mut left = Vec::new();
        for (number, message) in chat.messages.iter().enumerate() {
            if message.role != "assistant" || !message.learned {
                continue;
            }
            let turn = match self.turn(chat, number) {
                Ok(turn) => turn,
                // A template may refuse what it would show as part of a longer chat.
                Err(error) => self.turn_by_content(chat, number, &text).ok_or(error)?,
            };
            require_whole(message, &turn.text[turn.reply.clone()])?;
            left.push(turn);
        }
        let mut pieces = Vec::new();
        loop {
            let (inside, outside): (Vec<Turn>, _) =
                left.into_iter().partition(|turn| turn.within(&text).is_some());
            let replies = inside.iter().filter_map(|turn| turn.within(&text));
            let learned = in_characters(&text, replies);
            pieces.push(Piece { text: text.clone(), learned });
            match outside.last() {
                None => break,
                Some(last) => text.clone_from(&last.text),
            }
            left = outside;
        }
        if pieces.iter().any(|piece| !piece.learned.is_empty()) {
            pieces.retain(|piece| !piece.learned.is_empty());
        }
        pieces.reverse();
        Ok(pieces)
    }

    /// What `{% generation %}` encloses, but for the turns that are not to be learned.
    fn marked_piece(&self, chat: &Chat) -> Result<Piece> {
        let Chat { messages, tools } = chat;
        let whole = self.render_turns(messages, tools, false)?;
        let mut learned = whole.marked.clone();
        if let Some(last) = messages.last().filter(|last| last.learned) {
            require_whole(last, &whole.text)?; // What is shown of earlier turns is the template's affair.
        }
        let first = |turns: usize| match turns {
            // Most templates refuse a chat without a turn.
            0 => Ok(Rendered { text: String::new(), marked: Vec::new() }),
            _ => self.render_turns(&messages[..turns], tools, false),
        };
        for (number, message) in messages.iter().enumerate() {
            // A blank turn has nothing to leave out.
            if message.role != "assistant" || message.learned || message.says_nothing() {
                continue;
            }
            let (before, after) = (first(number)?, first(number + 1)?);
            if !begins_with(&whole, &after) || !begins_with(&after, &before) {
                let what = "the chat template marks earlier turns differently later on, so \
                            `weight` and `train` cannot be followed; pass `--ignore-fields \
                            weight,train`, or give each reply a row of its own";
                return Err(DatasetError::Encode { what: what.into() });
            }
            let of_turn = &after.marked[before.marked.len()..];
            learned.retain(|range| !of_turn.contains(range));
        }
        Ok(Piece { text: whole.text, learned })
    }

    /// The reply of a turn: what comes after the prompt that asks for it.
    fn turn(&self, chat: &Chat, number: usize) -> Result<Turn> {
        let Chat { messages, tools } = chat;
        let message = &messages[number];
        let before = |generate| match self.render_turns(&messages[..number], tools, generate) {
            // Most templates refuse a chat without a turn.
            Err(_) if number == 0 => Ok(String::new()),
            found => found.map(|found| found.text),
        };
        let asked = before(true)?;
        let text = self.render_turns(&messages[..=number], tools, false)?.text;
        let said = || self.said_from(&messages[..=number], number, tools, &text);
        if text.starts_with(&asked) {
            let mut start = asked.len();
            if message.more.is_empty() && before(false)? == asked {
                // The template never asks, so its reply may begin with a header.
                let said = said()?.max(start);
                if !text[start..said].trim().is_empty() {
                    start = said;
                }
            }
            return Ok(self.ended(text, start, message));
        }
        let (bare, said) = (before(false)?, said()?);
        if text.starts_with(&bare) {
            // Up to where it goes on otherwise than it was asked to; that words begin alike says nothing.
            let start = common_prefix(&asked, &text).max(bare.len()).min(said.max(bare.len()));
            return Ok(self.ended(text, start, message));
        }
        // Earlier turns are shown differently once there is a reply: they stay as the model sees them when it is asked.
        let header = asked.strip_prefix(&bare).unwrap_or_default().to_owned();
        let after_header = match header.trim() {
            "" => None,
            _ => text[..said].rfind(&header).map(|at| at + header.len()),
        };
        if let Some(at) = after_header {
            let start = asked.len();
            return Ok(self.ended(asked + &text[at..], start, message));
        }
        let blanks = &text[text[..said].trim_end().len()..said];
        let asked_blanks = &asked[asked.trim_end().len()..];
        let own_blanks = blanks.strip_prefix(asked_blanks).unwrap_or_default();
        let start = asked.len();
        Ok(self.ended(asked + own_blanks + &text[said..], start, message))
    }

    /// Where in a chat's text a turn's own words begin, in bytes: where the text would differ if the assistant said
    /// something else there.
    fn said_from(
        &self,
        messages: &[Message],
        number: usize,
        tools: &[Value],
        text: &str,
    ) -> Result<usize> {
        let mut others = messages.to_vec();
        others[number] = Message::new("assistant", SOMETHING_ELSE);
        let other = self.render_turns(&others, tools, false)?.text;
        let start = common_prefix(text, &other);
        if other[start..].starts_with(SOMETHING_ELSE) || start < text.trim_end().len() {
            return Ok(start);
        }
        let what = "the chat template does not show what the assistant says";
        Err(DatasetError::Encode { what: what.into() })
    }

    /// A reply from `start` on. What a template puts at the end of every text alone is no part of it in longer ones.
    fn ended(&self, text: String, start: usize, message: &Message) -> Turn {
        let turn = Turn::new(text, start);
        let eos = self.eos_token();
        let within = turn.text[..turn.reply.end].strip_suffix(eos).filter(|_| !eos.is_empty());
        // Where nothing else ends a reply, this does.
        let ends_before = within.map(|text| text.trim_end().len()).filter(|&end| {
            let said = message.text().trim();
            start < end && (said.is_empty() || !turn.text[..end].ends_with(said))
        });
        Turn { ends_before, ..turn }
    }

    /// A reply where its words stand in the whole chat.
    fn turn_by_content(&self, chat: &Chat, number: usize, text: &str) -> Option<Turn> {
        let said = chat.messages[number].text().trim();
        let start = self.said_from(&chat.messages, number, &chat.tools, text).ok()?;
        let start = start + (text[start..].len() - text[start..].trim_start().len());
        let end = start + text[start..].starts_with(said).then_some(said.len())?;
        let eos = self.eos_token();
        let ended = !eos.is_empty() && text[end..].starts_with(eos);
        let end = if ended { end + eos.len() } else { end };
        Some(Turn { text: text.to_owned(), reply: start..end, ends_before: None })
    }
}

impl Turn {
    /// A reply from `start` to the text's last character that is no blank.
    fn new(text: String, start: usize) -> Self {
        let end = start + text[start..].trim_end().len();
        Self { text, reply: start..end, ends_before: None }
    }

    /// The reply's place in a text that shows it as it was shown when it was the last turn, if that one does.
    fn within(&self, text: &str) -> Option<Range<usize>> {
        let ends = [Some(self.reply.end), self.ends_before];
        let end = ends.into_iter().flatten().find(|&end| text.starts_with(&self.text[..end]))?;
        Some(self.reply.start..end)
    }
}

/// Whether a chat begins with the marks of its first turns, and what they enclose is the same.
fn begins_with(whole: &Rendered, first: &Rendered) -> bool {
    let end = first.marked.iter().map(|range| range.end).max().unwrap_or(0);
    whole.marked.starts_with(&first.marked)
        && whole.text.chars().take(end).eq(first.text.chars().take(end))
}

/// The length of what two texts begin with alike.
fn common_prefix(a: &str, b: &str) -> usize {
    let differs = a.char_indices().zip(b.chars()).find(|&((_, x), y)| x != y);
    differs.map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// Ranges of bytes as ranges of characters.
fn in_characters(text: &str, ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let (mut at, mut chars) = (0, 0);
    let mut place = |byte: usize| {
        if byte < at {
            (at, chars) = (0, 0);
        }
        chars += text[at..byte].chars().count();
        at = byte;
        chars
    };
    ranges.map(|range| place(range.start)..place(range.end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(turns: &[(&str, &str)]) -> Chat {
        let messages = turns.iter().map(|(role, text)| Message::new(role, *text)).collect();
        Chat { messages, tools: Vec::new() }
    }

    /// The texts with what is learned in double brackets.
    fn check(template: &str, chat: &Chat, expected: &[&str]) {
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        let shown = |piece: Piece| {
            let mut text = String::new();
            for (at, c) in piece.text.chars().enumerate() {
                text += if piece.learned.iter().any(|range| range.start == at) { "[[" } else { "" };
                text.push(c);
                text +=
                    if piece.learned.iter().any(|range| range.end == at + 1) { "]]" } else { "" };
            }
            text
        };
        let found: Vec<String> = template.pieces(chat).unwrap().into_iter().map(shown).collect();
        assert_eq!(found, expected);
    }

    const CHATML: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}\
        {% if add_generation_prompt %}<assistant>{% endif %}";
    const TWO: [(&str, &str); 4] =
        [("user", "p"), ("assistant", "q"), ("user", "r"), ("assistant", "t")];

    #[test]
    fn a_reply_and_its_end_are_learned() {
        check(
            CHATML,
            &chat(&TWO),
            &["<user>p<end>\n<assistant>[[q<end>]]\n<user>r<end>\n<assistant>[[t<end>]]\n"],
        );
        let mut quiet = chat(&TWO);
        quiet.messages[1].learned = false;
        check(
            CHATML,
            &quiet,
            &["<user>p<end>\n<assistant>q<end>\n<user>r<end>\n<assistant>[[t<end>]]\n"],
        );
    }

    #[test]
    fn a_reply_shown_differently_later_has_a_text_of_its_own() {
        let template = "{% for m in messages %}<{{ m.role }}>\
            {% if loop.last and m.role == 'assistant' %}*{% endif %}{{ m.content }}<end>{% endfor %}\
            {% if add_generation_prompt %}<assistant>{% endif %}";
        check(
            template,
            &chat(&TWO),
            &[
                "<user>p<end><assistant>[[*q<end>]]",
                "<user>p<end><assistant>q<end><user>r<end><assistant>[[*t<end>]]",
            ],
        );
    }

    #[test]
    fn a_prompt_shown_differently_later_stays_as_it_was_asked() {
        let template = "{% for m in messages %}{% if m.role == 'user' %}\
            ({% if loop.last %}be kind {% endif %}{{ m.content }}){% else %}{{ m.content }}</s>{% endif %}\
            {% endfor %}";
        check(template, &chat(&TWO), &["(be kind p)[[q</s>]]", "(p)q</s>(be kind r)[[t</s>]]"]);
    }

    #[test]
    fn templates_that_do_not_ask_or_ask_for_more() {
        let silent = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        check(silent, &chat(&TWO[..2]), &["user: p\nassistant: [[q]]\n"]);
        check(silent, &chat(&[("assistant", "q")]), &["assistant: [[q]]\n"]);
        let thinking = format!("{CHATML}{{% if add_generation_prompt %}}<think>{{% endif %}}");
        check(&thinking, &chat(&TWO[..2]), &["<user>p<end>\n<assistant>[[q<end>]]\n"]);
    }

    #[test]
    fn a_reply_that_is_in_its_header_or_begins_like_it() {
        let silent = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}";
        check(
            silent,
            &chat(&[("user", "p"), ("assistant", "a")]),
            &["<|user|>p</s><|assistant|>[[a</s>]]"],
        );
        let thinking = format!("{CHATML}{{% if add_generation_prompt %}}<think>{{% endif %}}");
        let turns = [("user", "p"), ("assistant", "<them>x</them>")];
        check(&thinking, &chat(&turns), &["<user>p<end>\n<assistant>[[<them>x</them><end>]]\n"]);
        let whole = "{% if messages | length < 4 %}{{ raise_exception('more') }}{% endif %}\
            {% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}";
        let turns = [("user", "p"), ("assistant", "s"), ("user", "r"), ("assistant", "t")];
        check(
            whole,
            &chat(&turns),
            &["user:p</s>assistant:[[s</s>]]user:r</s>assistant:[[t</s>]]"],
        );
    }

    /// As Phi-4-mini ends texts that ask for nothing.
    #[test]
    fn what_ends_every_text_makes_no_text_of_its_own() {
        let template = format!("{CHATML}{{% if not add_generation_prompt %}}</s>{{% endif %}}");
        let shown =
            "<user>p<end>\n<assistant>[[q<end>]]\n<user>r<end>\n<assistant>[[t<end>\n</s>]]";
        check(&template, &chat(&TWO), &[shown]);
        // Where nothing else ends a reply, it does.
        let bare = "{% for m in messages %}({{ m.content }}{% endfor %}{% if not add_generation_prompt %}</s>{% endif %}";
        check(bare, &chat(&TWO), &["(p[[(q</s>]]", "(p(q(r[[(t</s>]]"]);
    }

    /// As gpt-oss drops the reasoning before a call once the chat goes on, which changes what comes before the last reply.
    #[test]
    fn a_header_that_depends_on_the_reply_is_learned_with_it() {
        let template = "{% for m in messages %}{% if m.role == 'assistant' %}<a>\
            {% if m.reasoning_content and (loop.last or messages[-1].role != 'assistant') %}\
            T{{ m.reasoning_content }};{% endif %}\
            {% for call in m.tool_calls %}C{{ call.function.name }};{% endfor %}\
            {% if m.content %}F{{ m.content }}{% endif %}<end>\
            {% else %}<{{ m.role }}>{{ m.content }}<end>{% endif %}{% endfor %}\
            {% if add_generation_prompt %}<a>{% endif %}";
        let mut chat = chat(&[("user", "p"), ("assistant", ""), ("tool", "r"), ("assistant", "q")]);
        let call = serde_json::json!([{"function": {"name": "look", "arguments": {}}}]);
        chat.messages[1].more.insert("tool_calls".into(), call);
        chat.messages[1].more.insert("reasoning_content".into(), "so".into());
        let shown = "<user>p<end><a>[[Tso;Clook;<end>]]<tool>r<end><a>[[Fq<end>]]";
        check(template, &chat, &[shown]);
    }

    /// Which turn it is does not matter: there is nothing of it to leave out.
    #[test]
    fn a_blank_reply_takes_no_marks_away() {
        let template = "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}\
            {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        let mut chat = chat(&[("user", "p"), ("assistant", ""), ("user", "r"), ("assistant", "t")]);
        chat.messages[1].learned = false;
        check(template, &chat, &["pr[[t]]"]);
    }

    #[test]
    fn templates_that_refuse_a_part_of_a_chat() {
        let whole = "{% if messages | length < 4 %}{{ raise_exception('more') }}{% endif %}\
            {% for m in messages %}{{ m.content }}{{ '</s>' if m.role == 'assistant' }}{% endfor %}";
        check(whole, &chat(&TWO), &["p[[q</s>]]r[[t</s>]]"]);
    }

    #[test]
    fn marks_say_what_is_learned() {
        let template = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}\
            {% generation %}é{{ m.content }}{% endgeneration %}<end>{% else %}{{ m.content }}{% endif %}\
            {% endfor %}";
        let mut chat = chat(&TWO);
        check(template, &chat, &["<user>p<assistant>[[éq]]<end><user>r<assistant>[[ét]]<end>"]);
        chat.messages[1].learned = false;
        check(template, &chat, &["<user>p<assistant>éq<end><user>r<assistant>[[ét]]<end>"]);
    }

    /// Chats of which one turn is not learned, and must not take another turn's marks with it.
    fn check_refused(template: &str, roles: &[&str], unlearned: usize) {
        let mut chat = chat(&[]);
        for (number, role) in roles.iter().enumerate() {
            chat.messages.push(Message::new(role, number.to_string()));
        }
        chat.messages[unlearned].learned = false;
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        let error = template.pieces(&chat).unwrap_err().to_string();
        assert!(error.starts_with("the chat template marks earlier turns differently"), "{error}");
    }

    #[test]
    fn marks_that_change_later_cannot_leave_a_turn_out() {
        let (user, reply, tool) = ("user", "assistant", "tool");
        let after_the_last_user = "{% set ns = namespace(last=0) %}{% for m in messages %}\
            {% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
            {% for m in messages %}{% if m.role == 'assistant' and loop.index0 > ns.last %}\
            {% generation %}{{ m.content }}{% endgeneration %}\
            {% else %}{{ m.content }}{% endif %}{% endfor %}";
        check_refused(after_the_last_user, &[user, reply, user, reply], 1);
        let called = [user, reply, tool, reply, tool, reply, user, reply];
        check_refused(after_the_last_user, &called, 5);
        // Marks at the same places, around other words.
        let last_two = "{% for m in messages[-2:] %}{% if m.role == 'assistant' %}\
            {% generation %}{{ m.content }}{% endgeneration %}\
            {% else %}{{ m.content }}{% endif %}{% endfor %}";
        check_refused(last_two, &[user, reply, user, reply], 1);
    }
}
