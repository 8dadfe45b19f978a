//! One run at a time in a folder.

use std::fs::TryLockError;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::{PipelineError, Result};

/// The lock's file.
const LOCK: &str = ".lock";

/// Holds a run's folder as long as it lives; the system lets go of it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: fs_err::File,
}

impl RunLock {
    /// Takes the folder, which must exist.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Busy`] if another process has it; or if the lock's file cannot be written.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        // It stays there: a lock on a file that somebody else removes meanwhile would hold nothing.
        let path = folder.join(LOCK);
        let mut file = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                let holder = holder.trim().to_owned();
                return Err(PipelineError::Busy { path: folder.to_owned(), holder });
            }
            // Some network file systems have no locks; a run must be possible there.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(%error, "the run's folder cannot be locked; start no second run in it");
            }
        }
        file.file().set_len(0)?;
        file.rewind()?;
        writeln!(file, "process {}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

/// Holds the folder of a training's saved states, which goes if there is none in the end.
#[derive(Debug)]
pub(crate) struct SavesLock {
    folder: PathBuf,
    _lock: RunLock,
}

impl SavesLock {
    /// Takes the folder, made if it is not there.
    ///
    /// # Errors
    ///
    /// As [`RunLock::take`].
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), _lock: RunLock::take(folder)? })
    }
}

impl Drop for SavesLock {
    fn drop(&mut self) {
        let Ok(entries) = fs_err::read_dir(&self.folder) else { return };
        let mut names = entries.filter_map(std::result::Result::ok).map(|entry| entry.file_name());
        if names.all(|name| name == LOCK) {
            // What is left is empty, and the next training takes it again.
            let _ = fs_err::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_once() {
        let folder = testkit::temporary_folder();
        let held = RunLock::take(folder.path()).unwrap();
        let error = RunLock::take(folder.path()).unwrap_err();
        let expected = format!("process {}", std::process::id());
        assert!(matches!(error, PipelineError::Busy { holder, .. } if holder == expected));
        drop(held);
        assert!(RunLock::take(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_of_states_goes_if_there_is_none() {
        let folder = testkit::temporary_folder();
        let saves = folder.path().join("adapter.state");
        drop(SavesLock::take(&saves).unwrap());
        assert!(!saves.exists());
        let held = SavesLock::take(&saves).unwrap();
        assert!(SavesLock::take(&saves).is_err() && saves.exists());
        fs_err::write(saves.join("step-000001"), "").unwrap();
        drop(held);
        assert!(saves.join("step-000001").exists());
    }
}
