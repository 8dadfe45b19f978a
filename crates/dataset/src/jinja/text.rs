//! What Python does to texts.

use super::budget::{Budget, Builder};
use super::fault::Fault;
use super::value::Value;

/// What Python takes for a blank.
pub(super) fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Which ends of a text are trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Both,
    Start,
    End,
}

/// The text without blanks, or without the given characters, at its ends.
pub(super) fn trimmed<'a>(text: &'a str, chars: Option<&str>, ends: Ends) -> &'a str {
    let goes = |c: char| chars.map_or_else(|| is_blank(c), |chars| chars.contains(c));
    let text = if ends == Ends::End { text } else { text.trim_start_matches(goes) };
    if ends == Ends::Start { text } else { text.trim_end_matches(goes) }
}

/// The first character large, the others small.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

/// Each word begun large, a word being what `within` holds together.
pub(super) fn titled(text: &str, within: fn(char) -> bool) -> String {
    let (mut found, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if inside {
            found.extend(c.to_lowercase());
        } else {
            found.extend(c.to_uppercase());
        }
        inside = within(c);
    }
    found
}

/// Large letters small and small ones large.
pub(super) fn swapped(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            found.extend(c.to_lowercase());
        } else {
            found.extend(c.to_uppercase());
        }
    }
    found
}

/// Where Python's `splitlines` ends a line.
fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
        || ('\u{1c}'..='\u{1e}').contains(&c)
}

/// The lines of a text, without or with their ends.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((at, c)) = rest.char_indices().find(|&(_, c)| ends_line(c)) {
        let pair = rest[at..].starts_with("\r\n");
        let after = at + if pair { 2 } else { c.len_utf8() };
        found.push(&rest[..if keep_ends { after } else { at }]);
        rest = &rest[after..];
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

/// Python's `split` at a sign.
pub(super) fn split<'a>(
    text: &'a str,
    sign: &str,
    most: Option<usize>,
    from_end: bool,
) -> Vec<&'a str> {
    let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
    if !from_end {
        return text.splitn(most, sign).collect();
    }
    let mut found: Vec<&str> = text.rsplitn(most, sign).collect();
    found.reverse();
    found
}

/// Python's `split` at blanks.
pub(super) fn split_blank(text: &str, most: Option<usize>, from_end: bool) -> Vec<&str> {
    let most = most.unwrap_or(usize::MAX);
    let (mut found, mut rest) = (Vec::new(), text);
    loop {
        rest = trimmed(rest, None, if from_end { Ends::End } else { Ends::Start });
        if rest.is_empty() {
            break;
        }
        let at = if from_end {
            rest.char_indices().rfind(|&(_, c)| is_blank(c)).map(|(at, c)| at + c.len_utf8())
        } else {
            rest.find(is_blank)
        };
        let Some(at) = at.filter(|_| found.len() < most) else {
            found.push(rest);
            break;
        };
        let (before, after) = rest.split_at(at);
        (rest, _) = if from_end {
            found.push(after);
            (before, after)
        } else {
            found.push(before);
            (after, before)
        };
    }
    if from_end {
        found.reverse();
    }
    found
}

/// What is put in place of what, and how often at most.
pub(super) struct Replacement<'a> {
    pub(super) old: &'a str,
    pub(super) new: &'a str,
    pub(super) most: Option<usize>,
}

impl Replacement<'_> {
    /// Python's `replace`.
    pub(super) fn apply(&self, text: &str, budget: &mut Budget) -> Result<Value, Fault> {
        let mut out = Builder::new(budget);
        let mut from = 0;
        for (at, _) in text.match_indices(self.old).take(self.most.unwrap_or(usize::MAX)) {
            out.push(&text[from..at])?;
            out.push(self.new)?;
            from = at + self.old.len();
        }
        out.push(&text[from..])?;
        Ok(Value::Text(out.finish()))
    }
}
