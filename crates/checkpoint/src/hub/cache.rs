//! The cache on disk, laid out as `huggingface_hub` does: contents by checksum in `blobs`, a link to
//! each by name in `snapshots/{commit}`, and the commit of each branch in `refs`. Beside these,
//! `listings` has what the hub said of a data set's files, so that they mean the same without a
//! network.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Listing;
use super::repository::{Kind, Repository, is_inside, is_plain};
use crate::json::require_file;
use crate::{CheckpointError, Result, Staging, read_json};

/// The most that is read of a README, whose head comes first.
const README_BYTES: u64 = 1 << 20;

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
        self.write_changed(repository, &self.reference(repository, revision), commit.as_bytes())
    }

    /// Holds off other processes from a repository's names until it is dropped.
    pub(super) fn hold_names(&self, repository: &Repository) -> Result<fs_err::File> {
        let lock = self.lock(repository, "gradpruner-names");
        if let Some(folder) = lock.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let lock = fs_err::OpenOptions::new().create(true).append(true).open(lock)?;
        lock.lock()?;
        Ok(lock)
    }

    fn kept(&self, repository: &Repository, commit: &str) -> PathBuf {
        self.root.join(repository.folder()).join("listings").join(format!("{commit}.json"))
    }

    /// Keeps what [`Cache::listing`] needs to tell the same of a commit.
    pub(super) fn keep_listing(&self, repository: &Repository, listing: &Listing) -> Result<()> {
        // Other tools take a branch whose commit has no folder for damage.
        fs_err::create_dir_all(self.snapshot(repository, &listing.commit))?;
        let card = json!({"configs": listing.card["configs"]}); // The rest may be long.
        let kept = json!(Listing { card, ..listing.clone() });
        let path = self.kept(repository, &listing.commit);
        self.write_changed(repository, &path, kept.to_string().as_bytes())
    }

    /// Writes what is not there yet: a cache that is whole may be one that cannot be written to.
    fn write_changed(&self, repository: &Repository, path: &Path, bytes: &[u8]) -> Result<()> {
        if fs_err::read(path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        let _held = self.hold_names(repository)?;
        Staging::write(path, bytes)
    }

    fn kept_listing(&self, repository: &Repository, commit: &str) -> Result<Option<Listing>> {
        let path = self.kept(repository, commit);
        if !path.exists() {
            return Ok(None);
        }
        let kept: Listing = read_json(&path)?;
        if kept.commit != commit || !kept.files.iter().all(|file| is_inside(file)) {
            let what = "not the list of this commit's files; remove it";
            return Err(CheckpointError::config(&path, what));
        }
        Ok(Some(kept))
    }

    /// What the cache has of a branch; `None` if it has nothing.
    ///
    /// A data set that other tools fetched comes without its list. It is refused unless its README
    /// is there and names no configurations: else files might be taken for what they are not.
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
        if let Some(kept) = self.kept_listing(repository, &commit)? {
            return Ok(Some(kept));
        }
        if repository.kind == Kind::Dataset && may_name_configs(&folder.join("README.md"))? {
            return Err(CheckpointError::HubData {
                name: repository.to_string(),
                what: "is in the cache without the list of its files; read it once with a \
                       network, or give its files by their paths"
                    .into(),
            });
        }
        let mut files = Vec::new();
        walk(&folder, "", &mut files)?;
        files.sort();
        Ok(Some(Listing { commit, files, ..Listing::default() }))
    }
}

/// Whether a README may name configurations in its head, which is YAML between lines of dashes.
fn may_name_configs(readme: &Path) -> Result<bool> {
    if !readme.exists() {
        return Ok(true);
    }
    require_file(readme)?;
    let mut bytes = Vec::new();
    fs_err::File::open(readme)?.take(README_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_end);
    let has_head = lines.next() == Some("---");
    Ok(has_head && lines.take_while(|line| *line != "---").any(|line| line.contains("configs")))
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
