//! Valid files made broken: as trees, as text, as bytes.

mod bytes;
mod text;
mod tree;

use serde_json::Value;

use crate::dice::Dice;
use crate::form::Form;

pub(crate) use tree::{RAW, words_of};

/// Numbers that programs stumble over.
pub(crate) const NUMBERS: [&str; 32] = [
    "0",
    "1",
    "-1",
    "-0",
    "2",
    "3",
    "7",
    "255",
    "256",
    "65535",
    "65536",
    "1000000",
    "0.0",
    "0.5",
    "-1.5",
    "1e-400",
    "4.9e-324",
    "1e308",
    "1e400",
    "-1e400",
    "NaN",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
];

/// The most bytes an input has.
const MOST_BYTES: usize = 1 << 20;

/// A seed's bytes with a few things wrong. `words` are texts that the target's readers know.
pub(crate) fn mutate(seed: &Form, words: &[String], dice: &mut Dice) -> Vec<u8> {
    let mut form = seed.clone();
    if dice.percent(80) {
        for _ in 0..=dice.below(3) {
            mutate_tree(&mut form, words, dice);
        }
    }
    let mut bytes = form.render();
    if form.is_text() && dice.percent(if form.is_tree() { 20 } else { 90 }) {
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        for _ in 0..=dice.below(3) {
            text = text::mutate(&text, words, dice);
        }
        bytes = text.into_bytes();
    }
    if dice.percent(if form.is_text() { 10 } else { 30 }) {
        for _ in 0..=dice.below(4) {
            bytes::mutate(&mut bytes, dice);
        }
    }
    bytes.truncate(MOST_BYTES);
    form.pack(&bytes)
}

fn mutate_tree(form: &mut Form, words: &[String], dice: &mut Dice) {
    match form {
        Form::Json(tree) | Form::Gguf(tree) | Form::Safetensors { header: tree, .. } => {
            tree::mutate(tree, words, dice);
        }
        Form::Lines(rows) => {
            let at = dice.below(rows.len());
            if let Some(row) = rows.get_mut(at) {
                tree::mutate(row, words, dice);
            }
        }
        Form::Packed { inner, .. } => mutate_tree(inner, words, dice),
        Form::Text(_) | Form::Bytes(_) => {}
    }
}

/// Text that is to stand in JSON as it is.
fn raw(text: &str) -> Value {
    Value::String(format!("{RAW}{text}"))
}
