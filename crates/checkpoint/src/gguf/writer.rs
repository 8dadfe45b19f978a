//! The container: a GGUF file of version 3, written tensor by tensor.

use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use super::BlockFormat;
use crate::{CheckpointError, Result, Staging};

/// Tensors begin at multiples of this.
const ALIGNMENT: u64 = 32;

/// A metadata value, of the type that llama.cpp expects of its key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Metadata {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
}

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GgufSpec {
    pub(super) name: String,
    /// Slowest dimension first; the file has it the other way round.
    pub(super) shape: Vec<usize>,
    pub(super) format: BlockFormat,
}

impl GgufSpec {
    fn size_bytes(&self) -> Result<u64> {
        let size = self.format.size_bytes(self.shape.iter().product());
        size.map(|size| size as u64).ok_or_else(|| {
            let what = format!("`{}` is no whole number of blocks", self.name);
            CheckpointError::gguf(Path::new("the new file"), what)
        })
    }
}

/// Writes a file's header, and then each tensor's bytes in the order of `specs` as `tensor` gives them. The file stands
/// under its name only when it is complete.
///
/// # Errors
///
/// If `target` exists, `tensor` fails or gives another size, or the disk refuses.
pub(super) fn write(
    target: &Path,
    metadata: &[(String, Metadata)],
    specs: &[GgufSpec],
    tensor: &mut dyn FnMut(&GgufSpec) -> Result<Vec<u8>>,
) -> Result<()> {
    if target.exists() {
        return Err(CheckpointError::Exists { path: target.to_owned() });
    }
    let staging = Staging::file(target)?;
    let mut out = BufWriter::new(fs_err::File::create(staging.path())?);
    out.write_all(&header(metadata, specs)?)?;
    for spec in specs {
        pad(&mut out)?;
        let bytes = tensor(spec)?;
        if bytes.len() as u64 != spec.size_bytes()? {
            let what = format!("`{}` has {} bytes", spec.name, bytes.len());
            return Err(CheckpointError::gguf(target, what));
        }
        out.write_all(&bytes)?;
    }
    pad(&mut out)?;
    out.flush()?;
    drop(out);
    staging.commit()
}

fn pad(out: &mut (impl Write + Seek)) -> Result<()> {
    let at = out.stream_position()?;
    let zeros = at.next_multiple_of(ALIGNMENT) - at;
    Ok(out.write_all(&vec![0; zeros as usize])?)
}

fn header(metadata: &[(String, Metadata)], specs: &[GgufSpec]) -> Result<Vec<u8>> {
    let mut out = Vec::from(*b"GGUF");
    out.extend(3_u32.to_le_bytes());
    out.extend((specs.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0_u64;
    for spec in specs {
        text(&mut out, &spec.name);
        out.extend((spec.shape.len() as u32).to_le_bytes());
        for &size in spec.shape.iter().rev() {
            out.extend((size as u64).to_le_bytes());
        }
        out.extend(spec.format.code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + spec.size_bytes()?).next_multiple_of(ALIGNMENT);
    }
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Metadata {
    /// The format's number for its type.
    fn kind(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Texts(_) | Self::I32s(_) | Self::F32s(_) | Self::Bools(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.kind().to_le_bytes());
        match self {
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(value) => text(out, value),
            Self::Texts(values) => list(out, 8, values, |out, value| text(out, value)),
            Self::I32s(values) => {
                list(out, 5, values, |out, value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                list(out, 6, values, |out, value| out.extend(value.to_le_bytes()));
            }
            Self::Bools(values) => list(out, 7, values, |out, value| out.push(u8::from(*value))),
        }
    }
}

/// A list whose values have the type `kind`.
fn list<T>(out: &mut Vec<u8>, kind: u32, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for value in values {
        write(out, value);
    }
}
