//! Written aside, then renamed: a reader sees a complete result or none.

use std::io;
use std::path::{Path, PathBuf};

use crate::{CheckpointError, Result};

/// A file or folder being written beside its final place.
///
/// [`Staging::commit`] flushes it to the disk and renames it; dropped before that, it is removed.
#[derive(Debug)]
pub struct Staging {
    aside: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Staging {
    /// A new, empty folder to fill, which becomes `target`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`] if `target` is there already; or if the folder cannot be made.
    pub fn folder(target: &Path) -> Result<Self> {
        let staging = Self::beside(target)?;
        fs_err::create_dir_all(&staging.aside)?;
        Ok(staging)
    }

    /// A file to write at [`Staging::path`], which becomes `target`.
    ///
    /// An older `target` stays until it is replaced.
    ///
    /// # Errors
    ///
    /// If its folder cannot be made.
    pub fn file(target: &Path) -> Result<Self> {
        let staging = Self::aside_of(target)?;
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs_err::create_dir_all(parent)?;
        }
        Ok(staging)
    }

    /// Writes `bytes` as the file `target`, whole or not at all.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, flushed or renamed.
    pub fn write(target: &Path, bytes: &[u8]) -> Result<()> {
        let staging = Self::file(target)?;
        fs_err::write(&staging.aside, bytes)?;
        staging.commit()
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.aside
    }

    /// Flushes what was written and gives it its final name.
    ///
    /// # Errors
    ///
    /// If flushing or renaming fails; then nothing stands under the final name. Or if the folder it
    /// stands in cannot be flushed afterwards.
    pub fn commit(mut self) -> Result<()> {
        sync(&self.aside)?;
        fs_err::rename(&self.aside, &self.target)?;
        self.committed = true;
        if let Some(parent) = self.target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs_err::File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    fn beside(target: &Path) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            return Err(CheckpointError::Exists { path: target.to_owned() });
        }
        Self::aside_of(target)
    }

    fn aside_of(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(CheckpointError::config(target, "cannot be written: it has no name"));
        };
        let aside = target.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        remove_if_there(&aside)?; // What an interrupted run left.
        Ok(Self { aside, target: target.to_owned(), committed: false })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            // The error that brought us here matters more than this one.
            let _ = remove_if_there(&self.aside);
        }
    }
}

/// Removes a file or a folder with all in it; what is not there needs no removing.
///
/// # Errors
///
/// If it is there and cannot be removed.
pub fn remove_if_there(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(_) => return Ok(()),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs_err::read_dir(path)? {
            sync(&entry?.path())?;
        }
    }
    fs_err::File::open(path)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_until_committed() {
        let folder = testkit::temporary_folder();
        let target = folder.path().join("out");
        let staging = Staging::folder(&target).unwrap();
        fs_err::write(staging.path().join("a"), "a").unwrap();
        drop(staging);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);

        let staging = Staging::folder(&target).unwrap();
        fs_err::write(staging.path().join("a"), "a").unwrap();
        staging.commit().unwrap();
        assert_eq!(fs_err::read_to_string(target.join("a")).unwrap(), "a");
        assert!(matches!(Staging::folder(&target), Err(CheckpointError::Exists { .. })));
    }
}
