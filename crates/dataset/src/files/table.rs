//! CSV and TSV: a header, and a record a row, every field a text.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io::{self, Read};
use std::rc::Rc;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use super::Each;
use super::stream::{Stream, unreadable};
use crate::dialects::is_a_row;
use crate::{DatasetError, Place, Result};

/// A last record of ours. A quote that is never closed swallows it, and so is noticed.
const END: &[u8] = b"\n\x04";

/// Reads every record under the header.
pub(super) fn read(stream: Stream, separator: u8, each: &mut Each<'_>) -> Result<()> {
    let lines = Lines {
        stream,
        offset: 0,
        line: 1,
        fresh: true,
        begun: VecDeque::new(),
        quotes: Quotes::new(separator),
    };
    let lines = Shared(Rc::new(RefCell::new(lines)));
    let mut reader = ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        .flexible(true) // Checked below, with a message of ours.
        .from_reader(lines.clone().chain(END));
    let mut record = ByteRecord::new();
    let mut header: Option<Vec<String>> = None;
    loop {
        lines.0.borrow_mut().begin_record(reader.position().byte());
        if !reader.read_byte_record(&mut record).map_err(|error| lines.error(error))? {
            return Ok(());
        }
        let place = lines.0.borrow().place();
        // A file may hold our mark too, or end with it.
        let ended = reader.position().byte() == lines.0.borrow().offset + END.len() as u64;
        if ended && &record[0] == END.trim_ascii_start() && record.len() == 1 {
            return Ok(());
        }
        if ended && record[record.len() - 1].ends_with(END) {
            return Err(DatasetError::row(&place, "a quote opens in it that is never closed"));
        }
        if lines.0.borrow().quotes.broken.is_some_and(|at| at < reader.position().byte()) {
            let what =
                "text follows a closing quote; quotes within a quoted field must be doubled (\"\")";
            return Err(DatasetError::row(&place, what));
        }
        match &header {
            None => header = Some(names(&record, &place)?),
            Some(header) => {
                let row = row(header, &record, &place)?;
                each(place, row)?;
            }
        }
    }
}

/// The bytes, and where lines begin that are not blank: the parser counts lines otherwise where they
/// end in CR LF.
struct Lines {
    stream: Stream,
    /// How many bytes have been read.
    offset: u64,
    line: usize,
    /// Whether nothing of the line has been read.
    fresh: bool,
    /// Offsets and numbers of lines, from the record's first on.
    begun: VecDeque<(u64, usize)>,
    quotes: Quotes,
}

/// Follows quotes as the parser does, which takes text after a closing one without a word: then fields, or rows, have
/// run together.
struct Quotes {
    separator: u8,
    state: Quoting,
    /// The offset of the first such text.
    broken: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    /// At the beginning of a field.
    Start,
    /// In a field without quotes, or behind what should have been its end.
    Bare,
    /// Within quotes.
    Quoted,
    /// Behind a quote within quotes.
    Closed,
    /// Behind that and a blank.
    Behind,
}

impl Quotes {
    fn new(separator: u8) -> Self {
        Self { separator, state: Quoting::Start, broken: None }
    }

    /// Takes the byte at an offset.
    fn see(&mut self, byte: u8, offset: u64) {
        let ends = byte == self.separator || byte == b'\r' || byte == b'\n';
        self.state = match (self.state, byte) {
            (Quoting::Quoted, b'"') => Quoting::Closed,
            (Quoting::Quoted, _) | (Quoting::Start | Quoting::Closed, b'"') => Quoting::Quoted,
            _ if ends => Quoting::Start,
            // Blanks there are the parser's to keep, and nothing has run together.
            (Quoting::Closed | Quoting::Behind, b' ' | b'\t') => Quoting::Behind,
            (Quoting::Closed | Quoting::Behind, _) => {
                self.broken = self.broken.or(Some(offset));
                Quoting::Bare
            }
            (Quoting::Start | Quoting::Bare, _) => Quoting::Bare,
        };
    }
}

impl Lines {
    /// Grants another record, from an offset on, its bytes.
    fn begin_record(&mut self, offset: u64) {
        self.stream.begin_row();
        while self.begun.front().is_some_and(|(begun, _)| *begun < offset) {
            self.begun.pop_front();
        }
    }

    /// Where the record begins: on the first line from its offset on that is not blank.
    fn place(&self) -> Place {
        self.stream.at(self.begun.front().map_or(self.line, |(_, line)| *line))
    }
}

impl Read for Lines {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Whoever wants more has not found the record's end: lines after its first are within it.
        self.begun.truncate(1);
        let count = self.stream.read(into)?;
        for &byte in &into[..count] {
            self.quotes.see(byte, self.offset);
            if byte == b'\n' {
                self.line += 1;
                self.fresh = true;
            } else if self.fresh && byte != b'\r' {
                self.begun.push_back((self.offset, self.line));
                self.fresh = false;
            }
            self.offset += 1;
        }
        Ok(count)
    }
}

/// The lines, for the parser that takes them and for us who ask where a record began.
#[derive(Clone)]
struct Shared(Rc<RefCell<Lines>>);

impl Read for Shared {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(into)
    }
}

impl Shared {
    fn error(&self, error: csv::Error) -> DatasetError {
        let lines = self.0.borrow();
        match error.into_kind() {
            ErrorKind::Io(error) => unreadable(&lines.place(), &error),
            other => DatasetError::row(&lines.place(), format!("not a table: {other:?}")),
        }
    }
}

/// More columns than any table of rows has.
const MOST_COLUMNS: usize = 10_000;

/// The columns' names.
fn names(record: &ByteRecord, place: &Place) -> Result<Vec<String>> {
    if MOST_COLUMNS < record.len() {
        let what = format!("{} columns are too many; {MOST_COLUMNS} are the most", record.len());
        return Err(DatasetError::row(place, what));
    }
    let names: Vec<String> = record
        .iter()
        .enumerate()
        .map(|(column, field)| {
            Ok(match text(field, column, place)?.trim() {
                "" => format!("Unnamed: {column}"), // As pandas calls it, whose index has no name.
                name => name.to_owned(),
            })
        })
        .collect::<Result<_>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(DatasetError::row(place, format!("two columns are called `{twice}`")));
    }
    if !is_a_row(|name| names.iter().any(|found| found == name)) {
        let what = "the header names no columns to learn from, such as `prompt` and `completion`; \
                    the first line must hold the columns' names";
        return Err(DatasetError::row(place, what));
    }
    Ok(names)
}

fn row(header: &[String], record: &ByteRecord, place: &Place) -> Result<Map<String, Value>> {
    let (found, expected) = (record.len(), header.len());
    if found != expected {
        let what = format!(
            "the header names {expected} columns and this row has {found}; does a field that holds \
             separators or quotes lack quotes around it?"
        );
        return Err(DatasetError::row(place, what));
    }
    let mut row = Map::new();
    for (column, (name, field)) in header.iter().zip(record).enumerate() {
        row.insert(name.clone(), text(field, column, place)?.into());
    }
    Ok(row)
}

fn text<'a>(field: &'a [u8], column: usize, place: &Place) -> Result<&'a str> {
    str::from_utf8(field)
        .map_err(|_| DatasetError::row(place, format!("field {} is not UTF-8", column + 1)))
}
