//! JSON as values, read more strictly than `serde_json` does: no key twice, and not too many values.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Values that a row may hold, each of which takes far more memory than its text may.
const MAX_VALUES: usize = 1 << 20;

/// Values that a file of a model may hold: a vocabulary of 256,000 tokens and its merges take a
/// quarter.
const MAX_FILE_VALUES: usize = 1 << 23;

/// Parses a text that holds one value, of a row's size at most.
pub(crate) fn parse(text: &str) -> serde_json::Result<Value> {
    parse_up_to(text, MAX_VALUES)
}

/// Parses a text that holds one value, of a model's file.
pub(crate) fn parse_file(text: &str) -> serde_json::Result<Value> {
    parse_up_to(text, MAX_FILE_VALUES)
}

fn parse_up_to(text: &str, most: usize) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { count: &Cell::new(0), most }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Reads a value; a second one under the same key would replace the first in silence.
#[derive(Clone, Copy)]
pub(crate) struct Strict<'a> {
    /// How many values there are.
    count: &'a Cell<usize>,
    most: usize,
}

impl<'a> Strict<'a> {
    /// Reads values; `count` says how many the row has so far.
    pub(crate) fn new(count: &'a Cell<usize>) -> Self {
        Self { count, most: MAX_VALUES }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.count.set(self.count.get() + 1);
        if self.count.get() > self.most {
            let most = self.most;
            return Err(D::Error::custom(format!("there are more than {most} values in it")));
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format!(
                    "the key `{key}` stands twice in one object"
                )));
            }
            let value = object.next_value_seed(self)?;
            values.insert(key, value);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        let text =
            r#"{"a": [null, true, 1, -1, 1.5, 18446744073709551615, "\u00e9", {}], "b": ""}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn refuses_what_would_be_lost_or_too_much() {
        for (text, message) in [
            (r#"{"a": 1, "b": {"c": 1, "c": 2}}"#.to_owned(), "the key `c` stands twice"),
            ("1 2".to_owned(), "trailing characters"),
            (format!("[{}1]", "1,".repeat(MAX_VALUES)), "more than 1048576 values"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
