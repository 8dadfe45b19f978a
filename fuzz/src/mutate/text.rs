//! Words of a text replaced, doubled, nested, cut.

use super::NUMBERS;
use crate::dice::Dice;

const BRACKETS: [(&str, &str); 9] = [
    ("[", "]"),
    ("{\"a\":", "}"),
    ("(", ")"),
    ("{{ ", " }}"),
    ("{% if true %}", "{% endif %}"),
    ("{% for x in messages %}", "{% endfor %}"),
    ("not ", ""),
    ("-", ""),
    ("\"", "\""),
];

pub(super) fn mutate(text: &str, words: &[String], dice: &mut Dice) -> String {
    let mut parts = split(text);
    let at = dice.below(parts.len() + 1);
    let end = (at + dice.size(100)).min(parts.len());
    match dice.below(8) {
        // A number in a number's place.
        0 | 1 => {
            let numbers: Vec<usize> = (0..parts.len())
                .filter(|&part| parts[part].starts_with(|c: char| c.is_ascii_digit()))
                .collect();
            if let (Some(&place), Some(&number)) = (dice.pick(&numbers), dice.pick(&NUMBERS)) {
                parts[place] = number;
            }
        }
        2 => {
            if let (Some(place), Some(word)) = (parts.get_mut(at), dice.pick(words)) {
                *place = word;
            }
        }
        3 => {
            if let Some(word) = dice.pick(words) {
                parts.insert(at.min(parts.len()), word);
            }
        }
        4 => {
            parts.drain(at.min(end)..end);
        }
        5 => {
            let part: Vec<&str> = parts[at.min(end)..end].to_vec();
            for _ in 0..dice.size(1000).min(1_000_000 / (part.concat().len() + 1)) {
                parts.splice(at..at, part.iter().copied());
            }
        }
        6 => {
            let (open, close) = BRACKETS[dice.below(BRACKETS.len())];
            let depth = dice.size(100_000).min(1_000_000 / (open.len() + close.len()));
            let middle = parts[at.min(end)..end].concat();
            return parts[..at.min(end)].concat()
                + &open.repeat(depth)
                + &middle
                + &close.repeat(depth)
                + &parts[end..].concat();
        }
        _ => parts.truncate(at),
    }
    parts.concat()
}

/// Words, numbers, and every other character by itself.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut before = None;
    for (at, c) in text.char_indices() {
        let kind = if c.is_ascii_digit() {
            1
        } else if c.is_alphabetic() || c == '_' {
            2
        } else {
            3
        };
        if before.is_some_and(|before| before != kind || kind == 3) {
            parts.push(&text[start..at]);
            start = at;
        }
        before = Some(kind);
    }
    if start < text.len() {
        parts.push(&text[start..]);
    }
    parts
}
