//! A file's bytes, decompressed, line by line: without a byte-order mark, and within a limit a row.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use crate::{DatasetError, Place, Result};

/// The longest row that is read.
const MAX_ROW_BYTES: usize = 256 << 20;

/// Bytes of a file, with a count of the lines that have been taken.
pub(super) struct Stream {
    file: Arc<Path>,
    bytes: Box<dyn BufRead>,
    /// The line that the next byte stands on.
    line: usize,
    /// The line of the row's first byte that is more than space or a comma.
    begun: Option<usize>,
    /// How many bytes the row may still have.
    left: usize,
}

/// Opens a file, decompressing it if its name says so.
pub(super) fn open(file: &Arc<Path>) -> Result<Stream> {
    let bytes = BufReader::new(fs_err::File::open(&**file)?);
    let ending = file.extension().unwrap_or_default().to_ascii_lowercase();
    let bytes: Box<dyn BufRead> = match ending.to_str() {
        Some("gz") => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(bytes))),
        Some("zst") => Box::new(BufReader::new(zstd::Decoder::with_buffer(bytes)?)),
        _ => Box::new(bytes),
    };
    let mut stream =
        Stream { file: Arc::clone(file), bytes, line: 1, begun: None, left: MAX_ROW_BYTES };
    stream.skip_mark()?;
    Ok(stream)
}

impl Stream {
    /// Skips UTF-8's byte-order mark, which Windows' editors write.
    fn skip_mark(&mut self) -> Result<()> {
        let mut mark = Vec::new();
        // A buffer may hold the first bytes only.
        while mark.len() < 3 && self.peek()?.is_some_and(|byte| byte == b"\xef\xbb\xbf"[mark.len()])
        {
            self.bytes.consume(1);
            mark.push(b"\xef\xbb\xbf"[mark.len()]);
        }
        if !mark.is_empty() && mark.len() < 3 {
            return Err(DatasetError::row(&self.here(), "it is not UTF-8"));
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        match self.bytes.fill_buf() {
            Ok(bytes) => Ok(bytes.first().copied()),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Whether the next byte that is not space is this one; space before it is skipped.
    pub(super) fn next_is(&mut self, byte: u8) -> Result<bool> {
        while let Some(next) = self.peek()? {
            if !next.is_ascii_whitespace() {
                return Ok(next == byte);
            }
            self.bytes.consume(1);
            self.line += usize::from(next == b'\n');
        }
        Ok(false)
    }

    /// Takes a line with its end; nothing is left in `line` after the last one.
    pub(super) fn take_line(&mut self, line: &mut Vec<u8>) -> Result<()> {
        line.clear();
        self.begin_row();
        let most = MAX_ROW_BYTES as u64 + 1;
        match (&mut self.bytes).take(most).read_until(b'\n', line) {
            Ok(_) if line.len() > MAX_ROW_BYTES => Err(self.failure(&too_long())),
            Ok(_) => {
                self.line += usize::from(line.ends_with(b"\n"));
                Ok(())
            }
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Grants another row its bytes.
    pub(super) fn begin_row(&mut self) {
        (self.left, self.begun) = (MAX_ROW_BYTES, None);
    }

    /// Where the row begins, or where the next byte stands if nothing of it was read.
    pub(super) fn here(&self) -> Place {
        self.at(self.begun.unwrap_or(self.line))
    }

    /// A line of the file.
    pub(super) fn at(&self, line: usize) -> Place {
        Place { file: Arc::clone(&self.file), number: line, is_line: true }
    }

    /// The error of a read that failed in the row that begins here.
    pub(super) fn failure(&self, error: &io::Error) -> DatasetError {
        unreadable(&self.here(), error)
    }
}

/// The error of a read that failed within a row.
pub(super) fn unreadable(place: &Place, error: &io::Error) -> DatasetError {
    let advice = match error.kind() {
        io::ErrorKind::UnexpectedEof => "; the file may be truncated, fetch it again",
        _ => "",
    };
    DatasetError::row(place, format!("cannot be read: {error}{advice}"))
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(into)?;
        self.left = self.left.checked_sub(count).ok_or_else(too_long)?;
        for &byte in &into[..count] {
            if self.begun.is_none() && !byte.is_ascii_whitespace() && byte != b',' {
                self.begun = Some(self.line);
            }
            self.line += usize::from(byte == b'\n');
        }
        Ok(count)
    }
}

fn too_long() -> io::Error {
    io::Error::other(format!("the row is longer than {} MB", MAX_ROW_BYTES >> 20))
}
