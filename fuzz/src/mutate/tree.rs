//! Values of a JSON tree replaced, moved, doubled, taken away.

use serde_json::{Map, Value};

use super::{NUMBERS, raw};
use crate::dice::Dice;

/// Begins a string that is written without quotes.
pub(crate) const RAW: char = '\u{e000}';

/// One thing in the tree is changed.
pub(super) fn mutate(tree: &mut Value, words: &[String], dice: &mut Dice) {
    let count = count(tree);
    let other = nth(tree, dice.below(count)).map(|value| value.clone());
    let Some(node) = nth(tree, dice.below(count)) else { return };
    match dice.below(10) {
        0 | 1 => *node = odd(words, dice),
        2 => *node = other.unwrap_or(Value::Null),
        3 => {
            let inner = node.take();
            *node = if dice.percent(50) {
                Value::Array(vec![inner])
            } else {
                let key = dice.pick(words).cloned().unwrap_or_default();
                Value::Object(Map::from_iter([(key, inner)]))
            };
        }
        _ => match node {
            Value::Object(object) => mutate_object(object, words, dice),
            Value::Array(array) => mutate_array(array, words, dice),
            Value::String(text) if !text.starts_with(RAW) && dice.percent(60) => {
                *text = odd_text(text, words, dice);
            }
            _ => *node = odd(words, dice),
        },
    }
}

fn mutate_object(object: &mut Map<String, Value>, words: &[String], dice: &mut Dice) {
    let keys: Vec<String> = object.keys().cloned().collect();
    let key = dice.pick(&keys).cloned().unwrap_or_default();
    match dice.below(4) {
        0 => {
            object.shift_remove(&key);
        }
        1 => {
            let value = object.shift_remove(&key).unwrap_or(Value::Null);
            let name = odd_text(&key, words, dice);
            object.insert(name, value);
        }
        2 => {
            let name = dice.pick(words).cloned().unwrap_or_default();
            object.insert(name, odd(words, dice));
        }
        _ => {
            object.insert(key, odd(words, dice));
        }
    }
}

fn mutate_array(array: &mut Vec<Value>, words: &[String], dice: &mut Dice) {
    let at = dice.below(array.len());
    match dice.below(5) {
        0 if !array.is_empty() => {
            array.remove(at);
        }
        1 if !array.is_empty() => {
            let value = array[at].clone();
            let most = 200_000 / value.to_string().len();
            array.splice(at..at, std::iter::repeat_n(value, dice.size(most)));
        }
        2 => array.reverse(),
        3 => array.truncate(at),
        _ => array.insert(at, odd(words, dice)),
    }
}

/// A value that does not belong there.
fn odd(words: &[String], dice: &mut Dice) -> Value {
    match dice.below(9) {
        0 => Value::Null,
        1 => Value::Bool(dice.percent(50)),
        2 => Value::Array(Vec::new()),
        3 => Value::Object(Map::new()),
        4 => {
            let depth = dice.size(100_000);
            raw(&("[".repeat(depth) + &"]".repeat(depth)))
        }
        5 => Value::String(odd_text("", words, dice)),
        _ => raw(dice.pick(&NUMBERS).copied().unwrap_or("0")),
    }
}

fn odd_text(text: &str, words: &[String], dice: &mut Dice) -> String {
    let word = dice.pick(words).cloned().unwrap_or_default();
    match dice.below(9) {
        0 => String::new(),
        1 => "x".repeat(dice.size(400_000)),
        2 => text.repeat(dice.size(400_000 / (text.len() + 1))),
        3 => format!("../../{text}"),
        4 => format!("/{text}"),
        5 => dice.pick(&NUMBERS).copied().unwrap_or("0").to_owned(),
        6 => text.chars().rev().collect(),
        7 => format!("{text}\0\u{feff}\u{1f600}é▁"),
        _ => word,
    }
}

fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(object) => object.values().map(count).sum(),
        _ => 0,
    }
}

fn nth(tree: &mut Value, number: usize) -> Option<&mut Value> {
    fn visit<'a>(tree: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
        if *left == 0 {
            return Some(tree);
        }
        *left -= 1;
        match tree {
            Value::Array(values) => values.iter_mut().find_map(|value| visit(value, left)),
            Value::Object(object) => object.values_mut().find_map(|value| visit(value, left)),
            _ => None,
        }
    }
    visit(tree, &mut { number })
}

/// Every key and short text of a tree.
pub(crate) fn words_of(tree: &Value, words: &mut Vec<String>) {
    match tree {
        Value::String(text) if text.len() < 60 => words.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| words_of(value, words)),
        Value::Object(object) => {
            for (key, value) in object {
                words.push(key.clone());
                words_of(value, words);
            }
        }
        _ => {}
    }
}
