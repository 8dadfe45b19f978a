//! One run at a time in a folder.

use std::fs::TryLockError;
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::{PipelineError, Result};

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
        let path = folder.join(".lock");
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
}
