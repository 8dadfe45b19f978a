//! The one place that maps files.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

use crate::json::require_file;
use crate::{CheckpointError, Result};

// Tensors are little-endian in every format here, and are read as they lie.
const _: () = assert!(cfg!(target_endian = "little"), "a little-endian machine is needed");

/// A file's bytes, mapped for reading; pages are loaded when they are first touched.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    stamp: Stamp,
}

/// What changes when a file is written to or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &fs_err::File) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let found = file.metadata()?;
        let (inode, size) = ((found.dev(), found.ino()), found.len());
        Ok(Self { inode, size, modified: found.modified().ok() })
    }
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    ///
    /// If it is no file, or cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        require_file(path)?;
        let file = fs_err::File::open(path)?;
        let stamp = Stamp::of(&file)?;
        // SAFETY: the mapping is read-only and private to this process. What remains is that
        // somebody else cuts the file short while it is mapped; checkpoints are replaced by
        // renaming (here and in every tool of the field), which leaves a mapped file whole.
        let map = unsafe { Mmap::map(file.file())? };
        Ok(Self { path: path.to_owned(), map, stamp })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Another handle on the file, to read without the mapping.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Changed`] if it is no longer the file that was mapped.
    pub fn reopen(&self) -> Result<fs_err::File> {
        let file = fs_err::File::open(&self.path)?;
        match Stamp::of(&file)? == self.stamp {
            true => Ok(file),
            false => Err(CheckpointError::Changed { path: self.path.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_to_or_replaced_is_another() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("a");
        let open = |text: &str| {
            fs_err::write(&path, text).unwrap();
            MappedFile::open(&path).unwrap()
        };
        assert!(open("abc").reopen().is_ok());
        let longer = open("abc");
        fs_err::write(&path, "abcd").unwrap();
        assert!(matches!(longer.reopen(), Err(CheckpointError::Changed { .. })));
        let replaced = open("abc");
        fs_err::write(folder.path().join("b"), "abc").unwrap();
        fs_err::rename(folder.path().join("b"), &path).unwrap();
        assert!(matches!(replaced.reopen(), Err(CheckpointError::Changed { .. })));
    }
}
