//! A template's text to pieces: texts, and the tokens within tags; blanks trimmed as transformers has it.

use super::fault::{Fault, fail};

/// Most bytes of a template; the longest known ones have some ten thousand.
const MOST_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text between tags.
    Text(String),
    /// `{{`
    OpenOutput,
    /// `{%`
    OpenBlock,
    /// `}}` or `%}`
    Close,
    Name(String),
    String(String),
    Int(i64),
    Float(f64),
    /// An operator or a bracket.
    Sign(&'static str),
}

/// Longer ones first.
const SIGNS: [&str; 27] = [
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", ".", ",", ":",
    ";", "|", "(", ")", "[", "]", "{", "}", "!",
];

/// The pieces of a template, each with its line.
pub(super) fn tokens(source: &str) -> Result<Vec<(usize, Token)>, Fault> {
    if source.len() > MOST_BYTES {
        let what = format!("the template has {} bytes; the limit is {MOST_BYTES}", source.len());
        return Err(Fault::new(what).on(1));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, fresh_line: true, found: Vec::new() };
    lexer.run().map_err(|fault| fault.on(lexer.line))?;
    Ok(lexer.found)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether what was read last ended a line.
    fresh_line: bool,
    found: Vec<(usize, Token)>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.bytes().filter(|&byte| byte == b'\n').count();
        self.fresh_line = passed.ends_with('\n');
        self.at += bytes;
    }

    fn push(&mut self, token: Token) {
        self.found.push((self.line, token));
    }

    fn run(&mut self) -> Result<(), Fault> {
        while !self.rest().is_empty() {
            let Some((before, kind)) = next_tag(self.rest()) else {
                // The end trims as an output does: not at all.
                self.text(self.rest().len(), "", '{');
                break;
            };
            let sign = self.rest()[before + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let sign_text = match sign {
                Some('-') => "-",
                Some(_) => "+",
                None => "",
            };
            self.text(before, sign_text, kind);
            self.advance(2 + sign_text.len());
            match kind {
                '#' => self.comment()?,
                '{' => self.tag("}}", Token::OpenOutput)?,
                _ => match word_tag(self.rest(), "raw") {
                    Some(length) => self.raw(length)?,
                    None => self.tag("%}", Token::OpenBlock)?,
                },
            }
        }
        Ok(())
    }

    /// The text before a tag, its end trimmed as the tag asks.
    fn text(&mut self, bytes: usize, sign: &str, kind: char) {
        let text = &self.rest()[..bytes];
        let kept = match sign {
            "-" => text.trim_end(),
            "" if kind != '{' => self.without_indent(text),
            _ => text,
        };
        if !kept.is_empty() {
            self.push(Token::Text(kept.to_owned()));
        }
        if bytes > 0 {
            self.advance(bytes);
        }
    }

    /// The text without the blanks of a line that nothing but a block follows.
    fn without_indent(&self, text: &'a str) -> &'a str {
        let start = text.rfind('\n').map_or(0, |at| at + 1);
        let alone = start > 0 || self.fresh_line;
        let blank = text[start..].chars().all(char::is_whitespace);
        if alone && blank { &text[..start] } else { text }
    }

    fn comment(&mut self) -> Result<(), Fault> {
        let Some(end) = self.rest().find("#}") else {
            return fail("a comment has no end");
        };
        let trimmed = self.rest()[..end].ends_with('-');
        let kept = self.rest()[..end].ends_with('+');
        self.advance(end + 2);
        self.after_tag(trimmed, !kept);
        Ok(())
    }

    /// Passes the blanks that a tag's end takes along.
    fn after_tag(&mut self, all: bool, newline: bool) {
        let rest = self.rest();
        let bytes = match (all, newline) {
            (true, _) => rest.len() - rest.trim_start().len(),
            (false, true) => usize::from(rest.starts_with('\n')),
            _ => 0,
        };
        if bytes > 0 {
            self.advance(bytes);
        }
    }

    /// `{% raw %}`, which is `length` bytes further, to `{% endraw %}`.
    fn raw(&mut self, length: usize) -> Result<(), Fault> {
        let trimmed = self.rest()[..length].ends_with("-%}");
        self.advance(length);
        self.after_tag(trimmed, true);
        let mut from = 0;
        while let Some(open) = self.rest()[from..].find("{%").map(|at| at + from) {
            let inner = &self.rest()[open + 2..];
            let sign = if inner.starts_with('-') {
                "-"
            } else if inner.starts_with('+') {
                "+"
            } else {
                ""
            };
            if let Some(end) = word_tag(&inner[sign.len()..], "endraw") {
                let trimmed = inner[sign.len()..][..end].ends_with("-%}");
                self.text(open, sign, '%');
                self.advance(2 + sign.len() + end);
                self.after_tag(trimmed, true);
                return Ok(());
            }
            from = open + 2;
        }
        fail("`raw` has no `endraw`")
    }

    fn tag(&mut self, close: &'static str, open: Token) -> Result<(), Fault> {
        let (block, mut brackets) = (close == "%}", Vec::new());
        self.push(open);
        loop {
            let blanks = self.rest().len() - self.rest().trim_start().len();
            if blanks > 0 {
                self.advance(blanks);
            }
            let rest = self.rest();
            if rest.is_empty() {
                return fail(format!("a tag has no `{close}`"));
            }
            if brackets.is_empty() {
                let sign = rest.starts_with(['-', '+']) && rest[1..].starts_with(close);
                let all = sign && rest.starts_with('-');
                if sign && (all || block) || rest.starts_with(close) {
                    self.push(Token::Close);
                    self.advance(usize::from(sign) + close.len());
                    self.after_tag(all, block && !sign);
                    return Ok(());
                }
            }
            let token = self.token()?;
            match token {
                Token::Sign("(") => brackets.push(")"),
                Token::Sign("[") => brackets.push("]"),
                Token::Sign("{") => brackets.push("}"),
                Token::Sign(sign @ (")" | "]" | "}")) if brackets.pop() != Some(sign) => {
                    return fail(format!("`{sign}` closes nothing"));
                }
                _ => {}
            }
            self.push(token);
        }
    }

    fn token(&mut self) -> Result<Token, Fault> {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or(' ');
        if first.is_alphabetic() || first == '_' {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
            self.advance(length);
            return Ok(Token::Name(rest[..length].to_owned()));
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if matches!(first, '"' | '\'') {
            return self.string(first);
        }
        match SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            Some(sign) => {
                self.advance(sign.len());
                Ok(Token::Sign(sign))
            }
            None => fail(format!("`{first}` does not belong into a tag")),
        }
    }

    fn number(&mut self) -> Result<Token, Fault> {
        let rest = self.rest();
        for (prefix, radix) in [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)]
        {
            if let Some(digits) = rest.strip_prefix(prefix) {
                let length = digits.find(|c: char| !c.is_digit(radix) && c != '_');
                let length = length.unwrap_or(digits.len());
                let found = i64::from_str_radix(&digits[..length].replace('_', ""), radix);
                self.advance(2 + length);
                return found.map(Token::Int).map_err(|_| Fault::new("a number is out of range"));
            }
        }
        let digits =
            |text: &str| text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let mut length = digits(rest);
        let mut whole = true;
        if rest[length..].starts_with('.') && digits(&rest[length + 1..]) > 0 {
            length += 1 + digits(&rest[length + 1..]);
            whole = false;
        }
        if rest[length..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[length + 1 + sign..]);
            if exponent > 0 {
                length += 1 + sign + exponent;
                whole = false;
            }
        }
        let text = rest[..length].replace('_', "");
        self.advance(length);
        let out_of_range = || Fault::new(format!("the number {text:.20} is out of range"));
        match whole {
            true => text.parse().map(Token::Int).map_err(|_| out_of_range()),
            false => text.parse().map(Token::Float).map_err(|_| out_of_range()),
        }
    }

    fn string(&mut self, quote: char) -> Result<Token, Fault> {
        let rest = self.rest();
        let (mut text, mut chars) = (String::new(), rest.char_indices().skip(1));
        while let Some((at, found)) = chars.next() {
            if found == quote {
                self.advance(at + 1);
                return Ok(Token::String(text));
            }
            if found != '\\' {
                text.push(found);
                continue;
            }
            let Some((at, escaped)) = chars.next() else { break };
            let read = escape(escaped, &rest[at + escaped.len_utf8()..]);
            match read {
                Escape::Char(read, _) => text.push(read),
                Escape::Nothing => {}
                Escape::Unknown => text.extend(['\\', escaped]),
            }
            if let Escape::Char(_, digits) = read {
                for _ in 0..digits {
                    chars.next();
                }
            }
        }
        fail("a string has no end")
    }
}

/// What `\` and a character stand for in Python.
enum Escape {
    /// A character, and how many digits after the first one belong to it.
    Char(char, usize),
    Nothing,
    Unknown,
}

fn escape(escaped: char, after: &str) -> Escape {
    let simple = match escaped {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'v' => '\u{b}',
        '\\' | '\'' | '"' => escaped,
        '\n' => return Escape::Nothing,
        'x' => return coded(after, 2, 16),
        'u' => return coded(after, 4, 16),
        'U' => return coded(after, 8, 16),
        '0'..='7' => {
            let more = after.chars().take(2).take_while(|c| c.is_digit(8)).count();
            return match coded(&format!("{escaped}{}", &after[..more]), more + 1, 8) {
                Escape::Char(read, _) => Escape::Char(read, more),
                other => other,
            };
        }
        _ => return Escape::Unknown,
    };
    Escape::Char(simple, 0)
}

/// The character of a code of so many digits.
fn coded(digits: &str, length: usize, radix: u32) -> Escape {
    let code = digits.get(..length).and_then(|code| u32::from_str_radix(code, radix).ok());
    match code.and_then(char::from_u32) {
        Some(read) => Escape::Char(read, length),
        None => Escape::Unknown,
    }
}

/// Where the next tag begins, and its second character.
fn next_tag(text: &str) -> Option<(usize, char)> {
    text.match_indices('{').find_map(|(at, _)| {
        let second = text[at + 1..].chars().next()?;
        matches!(second, '{' | '%' | '#').then_some((at, second))
    })
}

/// The length of a word and the end of its tag, blanks included, if these come next.
fn word_tag(text: &str, word: &str) -> Option<usize> {
    let rest = text.trim_start().strip_prefix(word)?.trim_start();
    let rest = rest.strip_prefix("-%}").or_else(|| rest.strip_prefix("%}"))?;
    Some(text.len() - rest.len())
}
