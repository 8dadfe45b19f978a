//! The cache on disk, laid out as `huggingface_hub` does: contents by checksum in `blobs`, a link to
//! each by name in `snapshots/{commit}`, and the commit of each branch in `refs`.

use std::path::{Path, PathBuf};

use super::Listing;
use super::repository::{Repository, is_plain};
use crate::{Result, Staging};

/// The folder that holds every repository's.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the files of a commit stand by name.
    pub(super) fn snapshot(&self, repository: &Repository, commit: &str) -> PathBuf {
        self.root.join(repository.folder()).join("snapshots").join(commit)
    }

    /// Where contents stand.
    pub(super) fn blob(&self, repository: &Repository, etag: &str) -> PathBuf {
        self.root.join(repository.folder()).join("blobs").join(etag)
    }

    /// Locked while the blob is fetched; the file Python's tools lock.
    pub(super) fn lock(&self, repository: &Repository, etag: &str) -> PathBuf {
        self.root.join(".locks").join(repository.folder()).join(format!("{etag}.lock"))
    }

    fn reference(&self, repository: &Repository, revision: &str) -> PathBuf {
        self.root.join(repository.folder()).join("refs").join(revision)
    }

    /// Notes which commit a branch is at.
    pub(super) fn set_commit(
        &self,
        repository: &Repository,
        revision: &str,
        commit: &str,
    ) -> Result<()> {
        let path = self.reference(repository, revision);
        if fs_err::read(&path).is_ok_and(|found| found == commit.as_bytes()) {
            return Ok(());
        }
        Staging::write(&path, commit.as_bytes())
    }

    /// What the cache has of a branch; `None` if it has nothing.
    pub(super) fn listing(
        &self,
        repository: &Repository,
        revision: &str,
    ) -> Result<Option<Listing>> {
        let Ok(commit) = fs_err::read_to_string(self.reference(repository, revision)) else {
            return Ok(None);
        };
        let commit = commit.trim().to_owned();
        let folder = self.snapshot(repository, &commit);
        if !is_plain(&commit) || !folder.is_dir() {
            return Ok(None);
        }
        let mut files = Vec::new();
        walk(&folder, "", &mut files)?;
        files.sort();
        Ok(Some(Listing { commit, files, ..Listing::default() }))
    }
}

/// Gives a blob its name at a commit.
pub(super) fn link(blob: &Path, pointer: &Path) -> Result<()> {
    let Some((folder, root)) = pointer.parent().zip(blob.parent().and_then(Path::parent)) else {
        return Ok(());
    };
    fs_err::create_dir_all(folder)?;
    // Relative, so that the cache may be moved.
    let depth = folder.strip_prefix(root).map_or(0, |below| below.components().count());
    let mut target: PathBuf = std::iter::repeat_n("..", depth).collect();
    target.push("blobs");
    target.extend(blob.file_name());
    crate::remove_if_there(pointer)?; // A link whose blob was removed.
    if fs_err::os::unix::fs::symlink(&target, pointer).is_err() {
        // Some file systems have no links.
        let copy = Staging::file(pointer)?;
        fs_err::copy(blob, copy.path())?;
        copy.commit()?;
    }
    Ok(())
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = format!("{prefix}{name}");
        // Snapshots link to files, never to folders.
        if path.symlink_metadata()?.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.is_file() {
            files.push(name);
        }
    }
    Ok(())
}
