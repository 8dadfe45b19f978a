//! Models in formats that are not read here, told by their files' names, with what to do.

use std::path::Path;

use crate::CheckpointError;

/// Why there is no configuration where one is expected, if other files there say so.
pub(crate) fn without_config(path: &Path) -> Option<CheckpointError> {
    let names = names(path);
    if names.iter().any(|name| name == "adapter_config.json") {
        return Some(CheckpointError::OnlyAdapter { folder: path.to_owned() });
    }
    let file = ending(&names, &[".gguf"])?;
    Some(CheckpointError::OnlyGguf { folder: path.to_owned(), file })
}

/// Why a folder has no weights that can be mapped.
pub(crate) fn without_weights(folder: &Path) -> CheckpointError {
    let names = names(folder);
    let folder = folder.to_owned();
    if let Some(other) = without_config(&folder) {
        return other;
    }
    match pickled(&names) {
        Some(file) => CheckpointError::OnlyPickled { folder, file },
        None => CheckpointError::NoWeights { folder },
    }
}

/// The first name of a file of pickled weights.
pub(crate) fn pickled(names: &[String]) -> Option<String> {
    ending(names, &[".bin", ".bin.index.json", ".pt", ".pth"])
}

/// The first name with one of these endings.
fn ending(names: &[String], endings: &[&str]) -> Option<String> {
    names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending))).cloned()
}

/// The names in a folder in order, or a file's own.
fn names(path: &Path) -> Vec<String> {
    if path.is_file() {
        return path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .into_iter()
            .collect();
    }
    let entries = fs_err::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
