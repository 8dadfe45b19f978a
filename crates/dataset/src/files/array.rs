//! A JSON list of objects, however it is laid out.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::stream::Stream;
use super::{Each, not_json, object};
use crate::json::Strict;
use crate::{DatasetError, Result};

/// Reads the list's elements one after another.
pub(super) fn read(stream: Stream, each: &mut Each<'_>) -> Result<()> {
    let first_line = stream.here().number;
    let stream = Shared(Rc::new(RefCell::new(stream)));
    let mut failure = None;
    let mut reader = serde_json::Deserializer::from_reader(stream.clone());
    let elements = Elements { stream: &stream, each, failure: &mut failure };
    let read = reader.deserialize_seq(elements).and_then(|()| reader.end());
    match (failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(stream.error(error, first_line)),
    }
}

/// The bytes, for the parser that takes them and for us who ask where it is.
#[derive(Clone)]
struct Shared(Rc<RefCell<Stream>>);

impl Read for Shared {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(into)
    }
}

impl Shared {
    fn error(&self, error: serde_json::Error, first_line: usize) -> DatasetError {
        let stream = self.0.borrow();
        if error.is_io() {
            return stream.failure(&error.into());
        }
        let advice = match error.is_eof() {
            true => "; the file may be truncated",
            false => "",
        };
        let place = stream.at(first_line + error.line().saturating_sub(1));
        DatasetError::row(&place, format!("{}{advice}", not_json(&error)))
    }
}

struct Elements<'a, 'b> {
    stream: &'a Shared,
    each: &'a mut Each<'b>,
    /// Why `each` refused an element.
    failure: &'a mut Option<DatasetError>,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        loop {
            // The parser takes a byte at a time, so that this is where the last element ended.
            self.stream.0.borrow_mut().begin_row();
            let Some(value) = list.next_element_seed(Strict::new(&Cell::new(0)))? else {
                return Ok(());
            };
            let place = self.stream.0.borrow().here();
            let read = object(value, &place).and_then(|object| (self.each)(place, object));
            if let Err(error) = read {
                *self.failure = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
    }
}
