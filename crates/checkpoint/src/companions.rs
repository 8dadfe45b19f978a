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

/// Folders of further chat templates; transformers has used both.
pub(crate) const TEMPLATE_FOLDERS: [&str; 2] = ["additional_chat_templates", "chat_templates"];

/// Beginnings of the files in which a model has code of its own. It is never run here, but a pruned model needs it, too.
pub(crate) const CODE: [&str; 4] = ["configuration_", "modeling_", "tokenization_", "processing_"];

/// Copies what belongs to a checkpoint besides config and weights: tokenizer, chat template,
/// generation settings, licence.
///
/// # Errors
///
/// As [`require_companions`]; or if a file cannot be read or written.
pub fn copy_companions(source: &Path, target: &Path) -> Result<()> {
    for path in companions(source)? {
        // It was found there.
        let copied = target.join(path.strip_prefix(source).unwrap_or(&path));
        if let Some(folder) = copied.parent() {
            fs_err::create_dir_all(folder)?;
        }
        // Read and written, not copied: a read-only source must not make a read-only copy.
        let mut copy = fs_err::File::create(copied)?;
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
    let is_template = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "jinja");
    let templates = TEMPLATE_FOLDERS.map(|name| folder.join(name));
    let templates = templates.iter().filter(|folder| folder.is_dir());
    let mut paths = files(folder)?;
    for folder in templates {
        paths.extend(files(folder)?.into_iter().filter(is_template));
    }
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_weight = WEIGHTS.iter().any(|ending| name.ends_with(ending));
        if is_weight || name == "config.json" || name.starts_with('.') {
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

/// The files in a folder, not those in folders within.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths: io::Result<Vec<PathBuf>> =
        fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect();
    Ok(paths?.into_iter().filter(|path| path.is_file()).collect())
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
        for name in ["additional_chat_templates/tool_use.jinja", "onnx/tokenizer.json"] {
            let path = at("model").join(name);
            fs_err::create_dir(path.parent().unwrap()).unwrap();
            fs_err::write(path, "x").unwrap();
        }
        copy_companions(&at("model"), &at("copy")).unwrap();
        assert_eq!(fs_err::read_to_string(at("copy/b.json")).unwrap(), "{}");
        assert!(at("copy/additional_chat_templates/tool_use.jinja").is_file());
        assert!(!at("copy/onnx").exists());

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
