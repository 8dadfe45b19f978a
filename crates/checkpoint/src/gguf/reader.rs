//! The container: metadata and tensor places of a GGUF file, version 2 or 3, little-endian.

use std::collections::BTreeMap;
use std::path::Path;

use super::BlockFormat;
use crate::{CheckpointError, MappedFile, Result};

/// Values of all metadata lists together; the largest vocabularies with their merges come to a third.
const MOST_VALUES: usize = 1 << 22;
/// The most dimensions of a tensor that ggml has.
const MOST_DIMENSIONS: u32 = 4;
/// The largest alignment of tensors that makes sense.
const MOST_ALIGNMENT: u64 = 1 << 16;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the format's types, widened")]
pub enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Vec<GgufValue>),
}

impl GgufValue {
    /// A whole number that is not negative.
    pub fn as_count(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A number of either kind.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// A tensor's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its shape, slowest dimension first (the file has it the other way round).
    pub shape: Vec<usize>,
    /// How its values are packed.
    pub format: BlockFormat,
    range: std::ops::Range<usize>,
}

/// A mapped GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    file: MappedFile,
    /// Metadata by key.
    pub metadata: BTreeMap<String, GgufValue>,
    /// Tensors by GGUF name.
    pub tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    ///
    /// If it is no GGUF file of version 2 or 3, is truncated, or holds a tensor of a packing that
    /// is not understood.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let mut cursor = Cursor { bytes: file.bytes(), at: 0, values_left: MOST_VALUES, path };
        if cursor.take(4)? != b"GGUF" {
            return Err(cursor.fail("it does not begin with `GGUF`"));
        }
        let version = cursor.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(cursor.fail(&format!("version {version}; 2 and 3 are understood")));
        }
        let (num_tensors, num_values) = (cursor.u64()?, cursor.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..num_values {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind, 0)?;
            if metadata.contains_key(&key) {
                return Err(cursor.fail(&format!("`{key}` is given twice")));
            }
            metadata.insert(key, value);
        }
        let mut places = Vec::new();
        for _ in 0..num_tensors {
            places.push(cursor.tensor()?);
        }
        let alignment =
            metadata.get("general.alignment").and_then(GgufValue::as_count).unwrap_or(32);
        if !(1..=MOST_ALIGNMENT).contains(&alignment) {
            return Err(cursor.fail(&format!("its alignment is {alignment}")));
        }
        let data = cursor.at.next_multiple_of(alignment as usize);
        let mut tensors = BTreeMap::new();
        for (name, shape, format, offset) in places {
            let range = (|| {
                let elements =
                    shape.iter().try_fold(1_usize, |all, &size| all.checked_mul(size))?;
                // Blocks do not reach across rows.
                format.size_bytes(*shape.last()?)?;
                let size = format.size_bytes(elements)?;
                let start = data.checked_add(offset)?;
                let range = start..start.checked_add(size)?;
                (range.end <= file.bytes().len()).then_some(range)
            })();
            let Some(range) = range else {
                let what = format!("tensor `{name}` does not fit the file; fetch it again");
                return Err(CheckpointError::gguf(path, what));
            };
            if tensors.contains_key(&name) {
                let what = format!("tensor `{name}` is there twice");
                return Err(CheckpointError::gguf(path, what));
            }
            tensors.insert(name, GgufTensor { shape, format, range });
        }
        Ok(Self { file, metadata, tensors })
    }

    /// A tensor's packed bytes.
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.file.bytes()[tensor.range.clone()]
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Reads a header front to back; every read is checked against the end of the file.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements of lists that may still come: one takes more memory than its byte in the file.
    values_left: usize,
    path: &'a Path,
}

type Place = (String, Vec<usize>, BlockFormat, usize);

impl<'a> Cursor<'a> {
    fn fail(&self, what: &str) -> CheckpointError {
        CheckpointError::gguf(self.path, what)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.fail("it ends within its header; fetch it again"));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn size(&mut self) -> Result<usize> {
        let size = self.u64()?;
        usize::try_from(size).map_err(|_| self.fail("a size does not fit this machine"))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.size()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.fail("a text is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<GgufValue> {
        Ok(match kind {
            0 => GgufValue::Unsigned(self.array::<1>()?[0].into()),
            1 => GgufValue::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => GgufValue::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => GgufValue::Float(f32::from_le_bytes(self.array()?).into()),
            7 => GgufValue::Bool(self.array::<1>()?[0] != 0),
            8 => GgufValue::Text(self.text()?),
            9 if depth < 4 => {
                let kind = self.u32()?;
                let length = self.size()?;
                let Some(left) = self.values_left.checked_sub(length) else {
                    return Err(
                        self.fail(&format!("its lists hold more than {MOST_VALUES} values"))
                    );
                };
                self.values_left = left;
                let mut values = Vec::new(); // Not sized ahead: the length is not yet believed.
                for _ in 0..length {
                    values.push(self.value(kind, depth + 1)?);
                }
                GgufValue::Array(values)
            }
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(self.fail(&format!("metadata of the unknown type {other}"))),
        })
    }

    fn tensor(&mut self) -> Result<Place> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(self.fail(&format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.size()?);
        }
        shape.reverse();
        let kind = self.u32()?;
        let Some(format) = BlockFormat::from_code(kind) else {
            return Err(self.fail(&format!("tensor `{name}` is packed in the unknown type {kind}")));
        };
        let offset = self.size()?;
        Ok((name, shape, format, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text as the format has it.
    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A metadata value of a type.
    fn value(key: &str, kind: u32, bytes: &[u8]) -> Vec<u8> {
        [text(key), kind.to_le_bytes().to_vec(), bytes.to_vec()].concat()
    }

    /// An F32 tensor without data, of as many dimensions as sizes.
    fn tensor(name: &str, sizes: &[u64]) -> Vec<u8> {
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let dimensions = (sizes.len() as u32 / 8).to_le_bytes();
        [text(name), dimensions.to_vec(), sizes, vec![0; 12]].concat()
    }

    fn open(counts: [u64; 2], parts: &[Vec<u8>]) -> String {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("a.gguf");
        let counts: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        let bytes = [b"GGUF\x03\0\0\0".to_vec(), counts, parts.concat()].concat();
        fs_err::write(&path, bytes).unwrap();
        GgufFile::open(&path).unwrap_err().to_string()
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let many = 1_u64 << 60;
        // A list of lists of lists …
        let nested = [9_u32.to_le_bytes().to_vec(), 1_u64.to_le_bytes().to_vec()].concat();
        let list = |kind: u32, length: u64| {
            [kind.to_le_bytes().to_vec(), length.to_le_bytes().to_vec()].concat()
        };
        for (counts, parts, reason) in [
            ([many, 0], vec![], "it ends within its header"),
            ([0, many], vec![], "it ends within its header"),
            ([0, 1], vec![value("a", 9, &list(0, many))], "more than 4194304 values"),
            ([0, 1], vec![value("a", 9, &nested.repeat(9))], "unknown type 9"),
            ([0, 2], vec![value("a", 7, &[1]), value("a", 7, &[0])], "`a` is given twice"),
            ([0, 1], vec![value("general.alignment", 10, &[255; 8])], "its alignment is"),
            ([0, 1], vec![value("general.alignment", 10, &[0; 8])], "its alignment is 0"),
            ([1, 0], vec![tensor("t", &[])], "has 0 dimensions"),
            ([1, 0], vec![tensor("t", &[1; 5])], "has 5 dimensions"),
            ([1, 0], vec![tensor("t", &[many; 2])], "does not fit the file"),
            ([2, 0], vec![tensor("t", &[0]), tensor("t", &[0]), vec![0; 64]], "`t` is there twice"),
        ] {
            let error = open(counts, &parts);
            assert!(error.contains(reason), "{error}");
        }
    }
}
