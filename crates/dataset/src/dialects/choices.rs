//! Multiple choice: the candidates, and which of them is right.

use serde_json::Value;

use super::Turn;
use crate::fields::{Fields, kind};

/// The candidates, and the position of the right one.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) choices: Vec<String>,
    pub(super) answer: usize,
}

/// Takes `choices` with `answer` or `answerKey`, if there are any.
pub(super) fn take(row: &mut Fields<'_>) -> Result<Option<Asked>, String> {
    let Some(found) = row.take_more_than_nothing("choices") else {
        return Ok(None);
    };
    let (choices, labels) = texts_and_labels(row, found)?;
    let Some(key) = row.first(&["answer", "answerKey"]) else {
        return Err(
            "`choices` need an `answer`: one of them, its position from 0 or its letter".into()
        );
    };
    let answer = row.take(key).unwrap_or_default();
    let position = position(&answer, &choices, &labels)
        .map_err(|what| format!("`{key}` is {}, {what}", shown(&answer)))?;
    Ok(Some(Asked { choices, answer: position }))
}

/// Texts alone, or texts with labels as ARC has them.
fn texts_and_labels(row: &Fields<'_>, found: Value) -> Result<(Vec<String>, Vec<String>), String> {
    let wrong = || "`choices` must be a list of strings, or an object with `text` and `label`";
    let texts = |value: Value| serde_json::from_value::<Vec<String>>(value).map_err(|_| wrong());
    if found.is_array() {
        return Ok((texts(found)?, Vec::new()));
    }
    if !found.is_object() {
        return Err(wrong().into());
    }
    let mut both = row.inner("choices".into(), found)?;
    let (choices, labels) = (both.take("text"), both.take("label"));
    let (choices, labels) =
        (texts(choices.unwrap_or_default())?, texts(labels.unwrap_or_default())?);
    both.finish()?;
    if choices.len() != labels.len() {
        return Err(format!(
            "`choices` has {} for `text` and {} for `label`",
            choices.len(),
            labels.len()
        ));
    }
    Ok((choices, labels))
}

/// Which choice an answer means: by its text, its label, its position or its letter, in this order; a
/// number by its label or its position.
fn position(answer: &Value, choices: &[String], labels: &[String]) -> Result<usize, String> {
    let in_range = |position: usize, kind: &str| match position < choices.len() {
        true => Ok(position),
        false => Err(format!("but there are {} `choices`{kind}", choices.len())),
    };
    if let Some(number) = answer.as_f64() {
        // JSON may write 2 as 2.0, which is `2` all the same.
        if let Some(position) = labels.iter().position(|label| *label == number.to_string()) {
            return Ok(position);
        }
        if !labels.is_empty() && labels.iter().all(|label| label.parse::<f64>().is_ok()) {
            return Err("which is not a label".into());
        }
        let whole = number >= 0.0 && number.fract() == 0.0 && number <= u32::MAX.into();
        return match whole {
            true => in_range(number as usize, ", counted from 0"),
            false => Err("which is no position counted from 0".into()),
        };
    }
    let Some(text) = answer.as_str() else {
        return Err("and must be a string or a number".into());
    };
    let same = |list: &[String]| list.iter().position(|entry| entry == text);
    if let Some(position) = same(choices).or_else(|| same(labels)) {
        return Ok(position);
    }
    if !labels.is_empty() {
        return Err("which is neither one of `choices` nor a label".into());
    }
    if let Ok(number) = text.parse::<u32>() {
        return in_range(number as usize, ", counted from 0");
    }
    match text.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => {
            in_range(usize::from(letter.to_ascii_uppercase() - b'A'), ", lettered from A")
        }
        _ => Err("which is not one of `choices`".into()),
    }
}

fn shown(answer: &Value) -> String {
    match answer {
        Value::String(_) | Value::Number(_) => answer.to_string(),
        other => kind(other).to_owned(),
    }
}

impl Asked {
    /// Makes the right choice the last turn, if it is not there.
    pub(super) fn settle(&self, turns: &mut Vec<Turn>) -> Result<(), String> {
        let right = &self.choices[self.answer];
        match turns.last() {
            Some(last) if last.message.role == "assistant" => {
                if last.message.text().trim() == right.trim() {
                    return Ok(());
                }
                Err(format!(
                    "the right one of `choices` is {right:?}, but `{}` says {:?}",
                    last.name,
                    shortened(last.message.text())
                ))
            }
            _ => {
                turns.push(Turn::new("answer", "assistant", right.clone()));
                Ok(())
            }
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
