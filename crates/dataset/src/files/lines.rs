//! JSONL: an object a line.

use super::stream::Stream;
use super::{Each, not_json, object};
use crate::json::parse;
use crate::{DatasetError, Result};

/// Reads every line; blank ones are skipped.
pub(super) fn read(mut stream: Stream, each: &mut Each<'_>) -> Result<()> {
    let mut line = Vec::new();
    loop {
        let place = stream.here();
        stream.take_line(&mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let text = str::from_utf8(&line).map_err(|error| {
            let column = error.valid_up_to() + 1;
            DatasetError::row(&place, format!("it is not UTF-8 at column {column}"))
        })?;
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let value = parse(text).map_err(|error| {
            let advice = match error.is_eof() {
                true => "; is the row spread over several lines, or the file truncated?",
                false => "",
            };
            DatasetError::row(&place, format!("{}{advice}", not_json(&error)))
        })?;
        let object = object(value, &place)?;
        each(place, object)?;
    }
}
