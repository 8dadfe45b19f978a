//! The one place that maps files.

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::Result;

/// A file's bytes, mapped for reading; pages are loaded when they are first touched.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    ///
    /// If it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        // SAFETY: the mapping is read-only and private to this process. What remains is that
        // somebody else cuts the file short while it is mapped; checkpoints are replaced by
        // renaming (here and in every tool of the field), which leaves a mapped file whole.
        let map = unsafe { Mmap::map(file.file())? };
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
