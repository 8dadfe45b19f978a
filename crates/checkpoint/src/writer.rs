//! A checkpoint written tensor by tensor, in shards of bounded size.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{CheckpointError, Result, TensorView};

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: safetensors::Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of floats.
    pub fn new(name: impl Into<String>, dtype: crate::Dtype, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype: dtype.to_safetensors(), shape: shape.to_vec() }
    }

    /// A tensor like `view`, under another name.
    pub fn like(view: &TensorView<'_>, name: impl Into<String>) -> Self {
        Self { name: name.into(), dtype: view.stored_dtype(), shape: view.shape().to_vec() }
    }

    /// How many bytes its data takes.
    pub fn size_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes `model.safetensors`, or shards and their index, one tensor after the other.
///
/// All tensors are announced first, so that each file's header can be written before its data;
/// then [`CheckpointWriter::append`] takes their bytes in the same order. Never more than the
/// tensor at hand is held.
#[derive(Debug)]
pub struct CheckpointWriter {
    folder: PathBuf,
    shards: Vec<Shard>,
    shard: usize,
    within: usize,
    file: Option<BufWriter<fs_err::File>>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    tensors: Vec<TensorSpec>,
}

impl CheckpointWriter {
    /// Announces the tensors of a checkpoint in `folder`, at most `shard_bytes` of data a file.
    pub fn new(folder: &Path, tensors: Vec<TensorSpec>, shard_bytes: u64) -> Self {
        let mut groups: Vec<Vec<TensorSpec>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            let size = tensor.size_bytes() as u64;
            if filled > 0 && filled + size > shard_bytes {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += size;
            if let Some(group) = groups.last_mut() {
                group.push(tensor);
            }
        }
        let count = groups.len();
        let shards = groups
            .into_iter()
            .enumerate()
            .map(|(shard, tensors)| Shard {
                name: match count {
                    1 => "model.safetensors".into(),
                    _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
                },
                tensors,
            })
            .collect();
        Self { folder: folder.to_owned(), shards, shard: 0, within: 0, file: None }
    }

    /// Writes one tensor's little-endian bytes.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    ///
    /// # Panics
    ///
    /// If it is not this tensor's turn or the bytes are not as many as announced.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let shard = &self.shards[self.shard];
        let expected = &shard.tensors[self.within];
        assert_eq!((name, bytes.len()), (expected.name.as_str(), expected.size_bytes()));
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(start(&self.folder.join(&shard.name), &shard.tensors)?),
        };
        file.write_all(bytes)?;
        self.within += 1;
        if self.within == shard.tensors.len() {
            if let Some(mut done) = self.file.take() {
                done.flush()?;
            }
            self.shard += 1;
            self.within = 0;
        }
        Ok(())
    }

    /// Writes the index, if there is more than one shard.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    ///
    /// # Panics
    ///
    /// If an announced tensor was not written.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.shard, self.shards.len(), "a tensor was announced but not written");
        if self.shards.len() == 1 {
            return Ok(());
        }
        let total: usize = self.tensors().map(|(tensor, _)| tensor.size_bytes()).sum();
        let map: BTreeMap<&str, &str> = self
            .tensors()
            .map(|(tensor, shard)| (tensor.name.as_str(), shard.name.as_str()))
            .collect();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let path = self.folder.join("model.safetensors.index.json");
        write_json(&path, &index)
    }

    fn tensors(&self) -> impl Iterator<Item = (&TensorSpec, &Shard)> {
        self.shards.iter().flat_map(|shard| shard.tensors.iter().map(move |tensor| (tensor, shard)))
    }
}

/// Opens a safetensors file and writes its header.
pub(crate) fn start(path: &Path, tensors: &[TensorSpec]) -> Result<BufWriter<fs_err::File>> {
    let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(path)?);
    file.write_all(&header(tensors))?;
    Ok(file)
}

/// A safetensors file's beginning: a little-endian u64 with the header's length, then JSON, padded
/// with spaces so that the data begins at a multiple of eight.
pub(crate) fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.size_bytes();
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat()
}

/// Copies what belongs to a checkpoint besides config and weights: tokenizer, chat template,
/// generation settings, licence.
///
/// # Errors
///
/// If a file cannot be read or written.
pub fn copy_companions(source: &Path, target: &Path) -> Result<()> {
    for entry in fs_err::read_dir(source)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_weight = [
            ".safetensors",
            ".safetensors.index.json",
            ".bin",
            ".bin.index.json",
            ".pt",
            ".pth",
            ".gguf",
        ]
        .iter()
        .any(|ending| name.ends_with(ending));
        if path.is_file() && !is_weight && name != "config.json" && !name.starts_with('.') {
            // Read and written, not copied: a read-only source must not make a read-only copy.
            fs_err::write(target.join(&name), fs_err::read(&path)?)?;
        }
    }
    Ok(())
}

/// Writes JSON as people like to read it, with a line end.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(CheckpointError::json(path))?;
    text.push('\n');
    fs_err::write(path, text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Weights, narrow};

    #[test]
    fn what_was_written_is_read_back_sharded_or_not() {
        for (shard_bytes, files) in [(u64::MAX, 1), (20, 2), (1, 3)] {
            let folder = testkit::temporary_folder();
            let tensors: Vec<_> = (0..3)
                .map(|i| TensorSpec::new(format!("t{i}"), Dtype::BF16, &[i + 1, 2]))
                .collect();
            let mut writer = CheckpointWriter::new(folder.path(), tensors.clone(), shard_bytes);
            for tensor in &tensors {
                let values = vec![1.5; tensor.size_bytes() / 2];
                writer.append(&tensor.name, &narrow(&values, Dtype::BF16)).unwrap();
            }
            writer.finish().unwrap();
            let weights = Weights::open(folder.path()).unwrap();
            assert_eq!(weights.files().len(), files);
            assert_eq!(weights.get("t2").unwrap().to_f32().unwrap(), [1.5; 6]);
            assert_eq!(weights.get("t2").unwrap().shape(), [3, 2]);
        }
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let folder = testkit::temporary_folder();
        let tensors = vec![TensorSpec::new("t", Dtype::F32, &[8])];
        let mut writer = CheckpointWriter::new(folder.path(), tensors, u64::MAX);
        writer.append("t", &[0; 32]).unwrap();
        writer.finish().unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(Weights::open(folder.path()), Err(CheckpointError::Safetensors { .. })));
    }
}
