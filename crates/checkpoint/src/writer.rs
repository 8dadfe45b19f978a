//! A checkpoint written tensor by tensor, in any order, in shards of bounded size.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fs_err::os::unix::fs::FileExt;
use serde_json::{Map, Value, json};

use crate::copying::{BLOCK, copy_range};
use crate::json::write_json;
use crate::{CheckpointError, Result, TensorView, free_disk_bytes};

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: safetensors::Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The file its bytes are copied from, and where they lie there.
    source: Option<(PathBuf, u64)>,
}

impl TensorSpec {
    /// A tensor of floats.
    pub fn new(name: impl Into<String>, dtype: crate::Dtype, shape: &[usize]) -> Self {
        let (name, dtype) = (name.into(), dtype.to_safetensors());
        Self { name, dtype, shape: shape.to_vec(), source: None }
    }

    /// A tensor like `view`, under another name.
    pub fn like(view: &TensorView<'_>, name: impl Into<String>) -> Self {
        let (name, shape) = (name.into(), view.shape().to_vec());
        let source = Some((view.path().to_owned(), view.offset()));
        Self { name, dtype: view.stored_dtype(), shape, source }
    }

    /// How many bytes its data takes.
    pub fn size_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes `model.safetensors`, or shards and their index.
///
/// All tensors are announced first; then their bytes may come in any order, in parts, and from
/// several threads. Nothing is held in memory.
#[derive(Debug)]
pub struct CheckpointWriter {
    folder: PathBuf,
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    file: fs_err::File,
    /// Bytes of tensors that were not written yet.
    missing: AtomicU64,
}

/// Where a tensor belongs.
#[derive(Debug)]
struct Place {
    shard: usize,
    offset: u64,
    size: u64,
}

impl CheckpointWriter {
    /// Announces the tensors of a checkpoint in `folder`, at most `shard_bytes` of data a file, and
    /// writes the files' headers.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoRoom`] if the disk has no room for all of them; or if it refuses.
    pub fn create(folder: &Path, tensors: Vec<TensorSpec>, shard_bytes: u64) -> Result<Self> {
        let needed: u64 = tensors.iter().map(|tensor| tensor.size_bytes() as u64).sum();
        if let Some(free) = free_disk_bytes(folder).filter(|&free| free < needed) {
            return Err(CheckpointError::NoRoom { folder: folder.to_owned(), needed, free });
        }
        let groups = grouped(tensors, shard_bytes);
        let count = groups.len();
        let (mut shards, mut places) = (Vec::new(), HashMap::new());
        for (shard, tensors) in groups.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".into(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
            };
            let file = fs_err::File::create(folder.join(&name))?;
            let header = header(&tensors);
            file.write_all_at(&header, 0)?;
            let mut offset = header.len() as u64;
            let first = offset;
            for tensor in tensors {
                let size = tensor.size_bytes() as u64;
                places.insert(tensor.name, Place { shard, offset, size });
                offset += size;
            }
            shards.push(Shard { name, file, missing: AtomicU64::new(offset - first) });
        }
        Ok(Self { folder: folder.to_owned(), shards, places })
    }

    /// Writes one tensor's little-endian bytes.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    ///
    /// # Panics
    ///
    /// If the tensor was not announced or the bytes are not as many.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        assert_eq!(self.place(name).size, bytes.len() as u64, "`{name}` was announced otherwise");
        self.write_part(name, 0, bytes)
    }

    /// Writes a part of a tensor's bytes, those from `offset` on; each must be written once.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    ///
    /// # Panics
    ///
    /// If the tensor was not announced or the part reaches beyond it.
    pub fn write_part(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = self.place(name);
        let (shard, size) = (&self.shards[place.shard], bytes.len() as u64);
        assert!(offset + size <= place.size, "beyond the end of `{name}`");
        shard.file.write_all_at(bytes, place.offset + offset)?;
        shard.missing.fetch_sub(size, Ordering::Relaxed);
        Ok(())
    }

    /// Copies one tensor's bytes from its file, without decoding them and, where the system can,
    /// without reading them.
    ///
    /// # Errors
    ///
    /// If the disk refuses, or the source has changed since it was mapped.
    ///
    /// # Panics
    ///
    /// As [`CheckpointWriter::write`].
    pub fn copy(&self, name: &str, source: &TensorView<'_>) -> Result<()> {
        let place = self.place(name);
        let (shard, size) = (&self.shards[place.shard], source.bytes().len() as u64);
        assert_eq!(place.size, size, "`{name}` was announced otherwise");
        let from = (&source.file().reopen()?, source.offset());
        copy_range(from, (&shard.file, place.offset), size)?;
        shard.missing.fetch_sub(size, Ordering::Relaxed);
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
        for shard in &self.shards {
            let missing = shard.missing.load(Ordering::Relaxed);
            assert_eq!(missing, 0, "{}: announced bytes were not written", shard.name);
        }
        if self.shards.len() == 1 {
            return Ok(());
        }
        let total: u64 = self.places.values().map(|place| place.size).sum();
        let map: BTreeMap<&str, &str> = self
            .places
            .iter()
            .map(|(name, place)| (name.as_str(), self.shards[place.shard].name.as_str()))
            .collect();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_json(&self.folder.join("model.safetensors.index.json"), &index)
    }

    /// Which of the files, counted from 0, a tensor belongs in: writes to one file wait for each
    /// other, writes to several do not.
    ///
    /// # Panics
    ///
    /// If the tensor was not announced.
    pub fn shard_of(&self, name: &str) -> usize {
        self.place(name).shard
    }

    fn place(&self, name: &str) -> &Place {
        let Some(place) = self.places.get(name) else { panic!("`{name}` was not announced") };
        place
    }
}

/// Tensors by shard, in order, at most `shard_bytes` a shard unless one alone is larger.
///
/// A shard takes from one file only: its bytes then lie at the same places within blocks as there,
/// so that file systems can share them.
fn grouped(tensors: Vec<TensorSpec>, shard_bytes: u64) -> Vec<Vec<TensorSpec>> {
    let mut groups: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let size = tensor.size_bytes() as u64;
        let file = |tensor: &TensorSpec| tensor.source.as_ref().map(|(file, _)| file.clone());
        let last = groups.last().and_then(|group| group.last());
        let other_file = last.is_some_and(|last| file(last) != file(&tensor));
        if filled > 0 && (filled + size > shard_bytes || other_file) {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(group) = groups.last_mut() {
            group.push(tensor);
        }
    }
    groups
}

/// Opens a safetensors file and writes its header.
pub(crate) fn start(path: &Path, tensors: &[TensorSpec]) -> Result<BufWriter<fs_err::File>> {
    let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(path)?);
    file.write_all(&header(tensors))?;
    Ok(file)
}

/// A safetensors file's beginning: a little-endian u64 with the header's length, then JSON, padded
/// with spaces so that the data begins at a multiple of eight, and at the same place within a block
/// as the data it is copied from.
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
    let least = 8 + header.len() as u64;
    let data = match tensors.first().and_then(|tensor| tensor.source.as_ref()) {
        Some((_, copied)) if copied % 8 == 0 => {
            least + (copied % BLOCK + BLOCK - least % BLOCK) % BLOCK
        }
        _ => least.next_multiple_of(8),
    };
    header.resize(data as usize - 8, b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat()
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
            let writer =
                CheckpointWriter::create(folder.path(), tensors.clone(), shard_bytes).unwrap();
            for tensor in tensors.iter().rev() {
                let values = vec![1.5; tensor.size_bytes() / 2];
                let bytes = narrow(&values, Dtype::BF16);
                let (head, tail) = bytes.split_at(2);
                writer.write_part(&tensor.name, 2, tail).unwrap();
                writer.write_part(&tensor.name, 0, head).unwrap();
            }
            writer.finish().unwrap();
            let weights = Weights::open(folder.path()).unwrap();
            assert_eq!(weights.files().len(), files);
            assert_eq!(weights.get("t2").unwrap().to_f32().unwrap(), [1.5; 6]);
            assert_eq!(weights.get("t2").unwrap().shape(), [3, 2]);
        }
    }

    /// Copies are the source's bytes, and begin where file systems can share blocks.
    #[test]
    fn copies_keep_their_place_within_a_block() {
        let folder = testkit::temporary_folder();
        let file = testkit::fixture("tiny_llama/model/model.safetensors");
        let source = Weights::open_file(&file).unwrap();
        let views: Vec<_> = source.iter().skip(1).take(5).collect();
        let specs = views.iter().map(|view| TensorSpec::like(view, view.name())).collect();
        let writer = CheckpointWriter::create(folder.path(), specs, u64::MAX).unwrap();
        for view in &views {
            writer.copy(view.name(), view).unwrap();
        }
        writer.finish().unwrap();
        let copied = Weights::open(folder.path()).unwrap();
        for view in &views {
            assert_eq!(copied.get(view.name()).unwrap().bytes(), view.bytes());
        }
        let first = copied.get(views[0].name()).unwrap();
        assert_eq!(first.offset() % BLOCK, views[0].offset() % BLOCK);
    }

    #[test]
    fn what_the_disk_has_no_room_for_is_not_begun() {
        let folder = testkit::temporary_folder();
        let tensors = vec![TensorSpec::new("t", Dtype::F32, &[1 << 30, 1 << 28])];
        let refused = CheckpointWriter::create(folder.path(), tensors, u64::MAX);
        assert!(matches!(refused, Err(CheckpointError::NoRoom { .. })));
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let folder = testkit::temporary_folder();
        let tensors = vec![TensorSpec::new("t", Dtype::F32, &[8])];
        let writer = CheckpointWriter::create(folder.path(), tensors, u64::MAX).unwrap();
        writer.write("t", &[0; 32]).unwrap();
        writer.finish().unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(Weights::open(folder.path()), Err(CheckpointError::Safetensors { .. })));
    }
}
