//! Safetensors files of a folder, sharded or not, as mapped tensors by name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::os::unix::fs::FileExt;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::json::{parse_json, read_json};
use crate::other_formats::without_weights;
use crate::{CheckpointError, Dtype, MappedFile, Result, widen};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Mapped tensors by name. Cloning shares the mapping.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<MappedFile>,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// One mapped tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    place: &'a Place,
    name: &'a str,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Maps `model.safetensors`, or every shard its index names.
    ///
    /// # Errors
    ///
    /// If neither is there, a shard is missing or truncated, or a tensor is not in its shard.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        if !index.exists() {
            let single = folder.join(SINGLE);
            if folder.is_dir() && !single.exists() {
                return Err(without_weights(folder));
            }
            return Self::open_file(&single);
        }
        let Index { weight_map } = read_json(&index)?;
        let mut shards: BTreeMap<&str, Self> = BTreeMap::new();
        for shard in weight_map.values() {
            // An index must not lead outside the folder.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                let what = format!("names the shard `{shard}`, which is not a plain file name");
                return Err(CheckpointError::config(&index, what));
            }
            if !folder.join(shard).exists() {
                let (folder, shard) = (folder.to_owned(), shard.clone());
                return Err(CheckpointError::MissingShard { folder, shard });
            }
            if !shards.contains_key(shard.as_str()) {
                shards.insert(shard, Self::open_file(&folder.join(shard))?);
            }
        }
        for (shard, weights) in &shards {
            // What no reader of the index sees, and readers of the files do.
            let stray = weights
                .tensors
                .keys()
                .find(|name| weight_map.get(*name).is_none_or(|at| at != shard));
            if let Some(name) = stray {
                let (path, name) = (folder.join(shard), name.clone());
                return Err(CheckpointError::NotInIndex { path, name });
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, shard) in &weight_map {
            let Some(place) = shards[shard.as_str()].tensors.get(name) else {
                let (path, name) = (folder.join(shard), name.clone());
                return Err(CheckpointError::MissingTensor { path, name });
            };
            tensors.insert(name.clone(), place.clone());
        }
        Ok(Self { tensors })
    }

    /// Maps one safetensors file.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, its header does not fit its length, or it holds two tensors of a name.
    pub fn open_file(path: &Path) -> Result<Self> {
        let file = Arc::new(MappedFile::open(path)?);
        let bytes = file.bytes();
        let parsed = SafeTensors::deserialize(bytes).map_err(CheckpointError::safetensors(path))?;
        require_unique_names(bytes, path)?;
        let tensors = parsed
            .iter()
            .map(|(name, view)| {
                let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                let range = start..start + view.data().len();
                let (dtype, shape) = (view.dtype(), view.shape().to_vec());
                (name.to_owned(), Place { file: Arc::clone(&file), dtype, shape, range })
            })
            .collect();
        Ok(Self { tensors })
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, place) = self.tensors.get_key_value(name)?;
        Some(TensorView { place, name })
    }

    /// All tensors, in the order they lie on disk.
    pub fn iter(&self) -> impl Iterator<Item = TensorView<'_>> {
        let mut all: Vec<_> =
            self.tensors.iter().map(|(name, place)| TensorView { place, name }).collect();
        all.sort_by_key(|view| (view.place.file.path(), view.place.range.start));
        all.into_iter()
    }

    /// How many bytes all tensors take.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.values().map(|place| place.range.len() as u64).sum()
    }

    /// Whether every file is still the one that was mapped.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Changed`] for one that is not.
    pub fn require_unchanged(&self) -> Result<()> {
        let files: BTreeMap<&Path, &MappedFile> =
            self.tensors.values().map(|place| (place.file.path(), &*place.file)).collect();
        files.values().try_for_each(|file| file.reopen().map(|_| ()))
    }

    /// The files that hold them.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            self.tensors.values().map(|place| place.file.path().to_owned()).collect();
        files.sort();
        files.dedup();
        files
    }
}

impl<'a> TensorView<'a> {
    /// The name in its file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Its shape; a linear weight is `[out, in]`.
    pub fn shape(&self) -> &'a [usize] {
        &self.place.shape
    }

    /// Its little-endian, row-major bytes.
    pub fn bytes(&self) -> &'a [u8] {
        &self.place.file.bytes()[self.place.range.clone()]
    }

    /// Where its bytes begin in its file.
    pub fn offset(&self) -> u64 {
        self.place.range.start as u64
    }

    /// The mapped file it lies in, to keep the mapping alive beyond the checkpoint.
    pub fn file(&self) -> &'a Arc<MappedFile> {
        &self.place.file
    }

    /// The type of its elements.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Dtype`] or [`CheckpointError::Quantised`] unless F32, F16 or BF16.
    pub fn dtype(&self) -> Result<Dtype> {
        Dtype::from_safetensors(self.place.dtype).ok_or_else(|| {
            let (path, name) = (self.path().to_owned(), self.name.to_owned());
            let found = format!("{:?}", self.place.dtype);
            match self.place.dtype {
                safetensors::Dtype::F64 => CheckpointError::Dtype { path, name, found },
                // Whole numbers and floats of a byte are what quantisers leave.
                _ => CheckpointError::Quantised { path, name, found },
            }
        })
    }

    /// The type of its elements as the file spells it, floats or not.
    pub fn stored_dtype(&self) -> safetensors::Dtype {
        self.place.dtype
    }

    /// Its values as f32.
    ///
    /// # Errors
    ///
    /// As [`TensorView::dtype`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(widen(self.bytes(), self.dtype()?))
    }

    /// Its values as f32: the mapped file's own if they are stored so and aligned.
    ///
    /// # Errors
    ///
    /// As [`TensorView::dtype`].
    pub fn f32s(&self) -> Result<Cow<'a, [f32]>> {
        if self.dtype()? == Dtype::F32
            && let Ok(values) = bytemuck::try_cast_slice(self.bytes())
        {
            return Ok(Cow::Borrowed(values));
        }
        Ok(Cow::Owned(self.to_f32()?))
    }

    /// Another way to its bytes: read from the file, not through the mapping.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Changed`] if the file is no longer the one that was mapped.
    pub fn reader(&self) -> Result<TensorReader> {
        Ok(TensorReader { file: self.place.file.reopen()?, first: self.offset() })
    }

    /// The file it lies in.
    pub fn path(&self) -> &'a Path {
        self.place.file.path()
    }
}

/// Reads parts of one tensor's bytes from its file.
#[derive(Debug)]
pub struct TensorReader {
    file: fs_err::File,
    first: u64,
}

impl TensorReader {
    /// Fills `part` with the tensor's bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// If the file ends early or cannot be read.
    pub fn read(&self, offset: u64, part: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(part, self.first + offset)?)
    }
}

/// Of two tensors of one name the parser takes one and says nothing.
fn require_unique_names(bytes: &[u8], path: &Path) -> Result<()> {
    // The parser has read it, so the header is there and is UTF-8.
    let header = bytes
        .split_first_chunk()
        .and_then(|(length, rest)| rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?));
    let header = String::from_utf8_lossy(header.unwrap_or_default());
    parse_json::<IgnoredAny>(&header, path).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens a safetensors file of this header and eight bytes.
    fn check(length: u64, header: &str) -> CheckpointError {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("a.safetensors");
        let bytes = [&length.to_le_bytes(), header.as_bytes(), &[0; 8]].concat();
        fs_err::write(&path, bytes).unwrap();
        Weights::open_file(&path).unwrap_err()
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let tensor = |rest: &str| format!("\"t\": {{\"dtype\": {rest}, \"data_offsets\": [0, 8]}}");
        let (floats, halves) =
            (tensor("\"F32\", \"shape\": [2]"), tensor("\"F16\", \"shape\": [4]"));
        let twice = format!("{{{floats}, {halves}}}");
        let found = check(twice.len() as u64, &twice);
        assert!(matches!(found, CheckpointError::KeyTwice { .. }), "{found}");
        let overflow = format!("{{{}}}", tensor("\"F32\", \"shape\": [4294967296, 4294967296]"));
        let deep = format!("{{\"t\": {}", "[".repeat(100_000));
        for (length, header) in [
            (u64::MAX, twice.as_str()),
            (1 << 40, &twice),
            (0, &twice),
            (overflow.len() as u64, &overflow),
            (deep.len() as u64, &deep),
        ] {
            let found = check(length, header);
            assert!(matches!(found, CheckpointError::Safetensors { .. }), "{found}");
        }
    }

    #[test]
    fn an_index_and_its_shards_name_the_same_tensors() {
        let folder = testkit::temporary_folder();
        let single = folder.path().join(SINGLE);
        fs_err::copy(testkit::fixture("tiny_llama/model/model.safetensors"), single).unwrap();
        let open = |shard: &str, leave_out: &str| {
            let names = testkit::tensor_names(&folder.path().join(SINGLE));
            let map: BTreeMap<_, _> = names
                .into_iter()
                .filter(|name| name != leave_out)
                .map(|name| (name, shard))
                .collect();
            let index = serde_json::json!({"weight_map": map}).to_string();
            fs_err::write(folder.path().join(INDEX), index).unwrap();
            Weights::open(folder.path()).map_err(|error| error.to_string())
        };
        assert!(open(SINGLE, "").is_ok());
        let error = open(SINGLE, "lm_head.weight").unwrap_err();
        assert!(
            error.contains("`lm_head.weight`, which the index does not place there"),
            "{error}"
        );
        for shard in ["../model.safetensors", "/etc/hosts", "..", "a/b", ""] {
            let error = open(shard, "").unwrap_err();
            assert!(error.contains("which is not a plain file name"), "{error}");
        }
    }
}
