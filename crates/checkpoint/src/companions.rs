//! The files that belong to a checkpoint besides its configuration and weights.

use std::io;
use std::path::{Path, PathBuf};

use crate::{CheckpointError, Result};

/// Endings of weights in any format, which a pruned or trained checkpoint has its own of.
const WEIGHTS: [&str; 10] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
];

/// Copies what belongs to a checkpoint besides config and weights: tokenizer, chat template,
/// generation settings, licence.
///
/// # Errors
///
/// As [`require_companions`]; or if a file cannot be read or written.
pub fn copy_companions(source: &Path, target: &Path) -> Result<()> {
    for path in companions(source)? {
        let name = path.file_name().unwrap_or_default();
        // Read and written, not copied: a read-only source must not make a read-only copy.
        let mut copy = fs_err::File::create(target.join(name))?;
        io::copy(&mut fs_err::File::open(&path)?, &mut copy)?;
    }
    Ok(())
}

/// Looks whether [`copy_companions`] may copy from a folder, before hours of work depend on it.
///
/// # Errors
///
/// [`CheckpointError::LeavesFolder`] if a file is a link to one elsewhere, which would put into the
/// copy what is none of the model's; or if the folder cannot be read.
pub fn require_companions(folder: &Path) -> Result<()> {
    companions(folder).map(|_| ())
}

fn companions(folder: &Path) -> Result<Vec<PathBuf>> {
    let homes = homes(folder)?;
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_weight = WEIGHTS.iter().any(|ending| name.ends_with(ending));
        if !path.is_file() || is_weight || name == "config.json" || name.starts_with('.') {
            continue;
        }
        let target = fs_err::canonicalize(&path)?;
        if !homes.iter().any(|home| target.starts_with(home)) {
            return Err(CheckpointError::LeavesFolder { path, target });
        }
        found.push(path);
    }
    found.sort();
    Ok(found)
}

/// Where a folder's files may lie: in it, or, if it is a snapshot of the hub's cache, among the
/// files of its model there, to which the snapshot links.
pub(crate) fn homes(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = fs_err::canonicalize(folder)?;
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|model| model.join("blobs"));
    Ok(blobs.into_iter().chain([folder]).collect())
}

#[cfg(test)]
mod tests {
    use fs_err::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_out_of_the_folder_are_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        for name in ["model", "other", "copy"] {
            fs_err::create_dir(at(name)).unwrap();
        }
        fs_err::write(at("other/secret"), "secret").unwrap();
        fs_err::write(at("model/a.json"), "{}").unwrap();
        symlink("a.json", at("model/b.json")).unwrap();
        copy_companions(&at("model"), &at("copy")).unwrap();
        assert_eq!(fs_err::read_to_string(at("copy/b.json")).unwrap(), "{}");

        for target in [at("other/secret"), "../other/secret".into(), "/etc/hosts".into()] {
            symlink(target, at("model/generation_config.json")).unwrap();
            let error = copy_companions(&at("model"), &at("copy")).unwrap_err();
            assert!(matches!(error, CheckpointError::LeavesFolder { .. }), "{error}");
            assert!(!at("copy/generation_config.json").exists());
            fs_err::remove_file(at("model/generation_config.json")).unwrap();
        }
    }

    #[test]
    fn the_hubs_cache_links_to_its_blobs() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join("models--o--m").join(name);
        for name in ["blobs", "snapshots/0a", "copy"] {
            fs_err::create_dir_all(at(name)).unwrap();
        }
        fs_err::write(at("blobs/77"), "{}").unwrap();
        symlink("../../blobs/77", at("snapshots/0a/tokenizer.json")).unwrap();
        copy_companions(&at("snapshots/0a"), &at("copy")).unwrap();
        assert_eq!(fs_err::read_to_string(at("copy/tokenizer.json")).unwrap(), "{}");
        fs_err::write(at("other"), "secret").unwrap();
        symlink("../../other", at("snapshots/0a/a.json")).unwrap();
        assert!(require_companions(&at("snapshots/0a")).is_err());
    }
}
