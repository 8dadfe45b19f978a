//! Which files of a folder are pushed: what a model, an adapter or a GGUF file needs, and nothing
//! that merely lies beside it.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::companions::{CODE, TEMPLATE_FOLDERS, homes};
use crate::hub::repository::is_inside;
use crate::json::{read_json, require_file};
use crate::{CheckpointError, Result, other_formats};

const NAMES: [&str; 17] = [
    "README.md",
    "Modelfile",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    // What gradpruner did.
    "plan.json",
    "scores.json",
];
const ENDINGS: [&str; 4] = [".gguf", ".jinja", ".model", ".safetensors.index.json"];
const LICENCES: [&str; 3] = ["LICENSE", "LICENCE", "NOTICE"];
/// The most of a file that the hub looks at to say how it is sent.
const SAMPLE_BYTES: u64 = 512;

/// What is pushed of a folder, and what is not.
pub(super) struct Parcel {
    pub(super) items: Vec<Item>,
    pub(super) left_out: Vec<String>,
}

/// A file as it was when it was looked at first.
pub(super) struct Item {
    /// Its path in the repository.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    modified: Option<SystemTime>,
}

impl Parcel {
    /// A folder in Hugging Face layout, or one GGUF file.
    pub(super) fn of(what: &Path) -> Result<Self> {
        if what.is_dir() {
            return Self::of_folder(what);
        }
        require_file(what)?;
        let name = what.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !has_ending(name, ".gguf") || !is_inside(name) {
            fs_err::metadata(what)?; // What is not there is another matter.
            return Err(nothing(what, "neither a folder nor a .gguf file; push one of these"));
        }
        Ok(Self { items: vec![Item::of(name, what)?], left_out: Vec::new() })
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let names = names(folder)?;
        let shards = shards(folder, &names)?;
        let (mut items, mut left_out) = (Vec::new(), Vec::new());
        for name in names {
            let path = folder.join(&name);
            if path.is_dir() {
                let inner = if TEMPLATE_FOLDERS.contains(&name.as_str()) {
                    self::names(&path)?
                } else {
                    Vec::new()
                };
                let inner = inner.into_iter().filter(|file| has_ending(file, ".jinja"));
                let before = items.len();
                for file in inner {
                    items.push(Item::of(&format!("{name}/{file}"), &path.join(file))?);
                }
                if items.len() == before {
                    left_out.push(format!("{name}/"));
                }
            } else if is_part(&name) || shards.contains(&name) {
                items.push(Item::of(&name, &path)?);
            } else {
                left_out.push(name);
            }
        }
        require_model(folder, &items)?;
        let homes = homes(folder)?;
        for item in &items {
            let target = fs_err::canonicalize(&item.path)?;
            if !homes.iter().any(|home| target.starts_with(home)) {
                return Err(CheckpointError::LeavesFolder { path: item.path.clone(), target });
            }
        }
        Ok(Self { items, left_out })
    }
}

/// Whether a file belongs to a model by its name alone.
fn is_part(name: &str) -> bool {
    let is_weight = ["model", "adapter_model"].iter().any(|start| name.starts_with(start))
        && has_ending(name, ".safetensors");
    let is_code = CODE.iter().any(|start| name.starts_with(start)) && has_ending(name, ".py");
    let is_known = NAMES.contains(&name)
        || ENDINGS.iter().any(|ending| has_ending(name, ending))
        || LICENCES.iter().any(|start| name.starts_with(start));
    !name.starts_with('.') && is_inside(name) && (is_known || is_weight || is_code)
}

/// Whether loaders look for weights in a file of a repository by its name, or are led to them by it, before they look for pickled
/// ones.
pub(super) fn is_weights(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("model") else {
        return matches!(name, "adapter_config.json" | "adapter_model.safetensors");
    };
    let rest = rest.strip_suffix(".index.json").unwrap_or(rest);
    let shard = rest.strip_suffix(".safetensors").and_then(|rest| rest.strip_prefix('-'));
    rest == ".safetensors"
        || shard.and_then(|shard| shard.split_once("-of-")).is_some_and(is_number_pair)
}

fn is_number_pair((number, all): (&str, &str)) -> bool {
    [number, all]
        .iter()
        .all(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Case counts on the hub.
fn has_ending(name: &str, ending: &str) -> bool {
    name.ends_with(ending)
}

/// The files that indices of weights name, which must all be there.
fn shards(folder: &Path, names: &[String]) -> Result<BTreeSet<String>> {
    let mut shards = BTreeSet::new();
    for name in names.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
        let index: Value = read_json(&folder.join(name))?;
        let map = index["weight_map"].as_object().into_iter().flatten();
        for shard in map.filter_map(|(_, shard)| shard.as_str()) {
            if !names.iter().any(|name| name == shard) {
                let (folder, shard) = (folder.to_owned(), shard.to_owned());
                return Err(CheckpointError::MissingShard { folder, shard });
            }
            if !shard.starts_with('.') && shard.ends_with(".safetensors") {
                shards.insert(shard.to_owned());
            }
        }
    }
    Ok(shards)
}

/// Refuses a folder that holds neither weights with what they need nor a GGUF file.
fn require_model(folder: &Path, items: &[Item]) -> Result<()> {
    let has = |ending: &str| items.iter().any(|item| has_ending(&item.name, ending));
    let has_config = items
        .iter()
        .any(|item| matches!(item.name.as_str(), "config.json" | "adapter_config.json"));
    if has(".gguf") || has_config && has(".safetensors") {
        return Ok(());
    }
    if has_config {
        return Err(other_formats::without_weights(folder));
    }
    let is_model = |name: &String| {
        let inner = folder.join(name);
        inner.join("config.json").is_file() || inner.join("adapter_config.json").is_file()
    };
    let inner: Vec<_> = names(folder)?
        .into_iter()
        .filter(is_model)
        .map(|name| format!("`{}`", folder.join(name).display()))
        .collect();
    Err(match inner.as_slice() {
        [] => nothing(
            folder,
            "nothing to push; give a folder with config.json or adapter_config.json and \
             safetensors, or with a .gguf file",
        ),
        inner => nothing(folder, format!("holds models, and is none; push {}", inner.join(" or "))),
    })
}

fn nothing(path: &Path, what: impl Into<String>) -> CheckpointError {
    CheckpointError::config(path, what)
}

/// What lies in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

impl Item {
    fn of(name: &str, path: &Path) -> Result<Self> {
        require_file(path)?;
        let found = fs_err::metadata(path)?;
        let (size, modified) = (found.len(), found.modified().ok());
        Ok(Self { name: name.to_owned(), path: path.to_owned(), size, modified })
    }

    /// Refuses a file that is another than it was.
    pub(super) fn require_unchanged(&self) -> Result<()> {
        let found = fs_err::metadata(&self.path)?;
        if found.len() == self.size && found.modified().ok() == self.modified {
            return Ok(());
        }
        Err(self.changed())
    }

    pub(super) fn changed(&self) -> CheckpointError {
        CheckpointError::Changed { path: self.path.clone() }
    }

    /// Its first bytes.
    pub(super) fn sample(&self) -> Result<Vec<u8>> {
        let mut sample = Vec::new();
        fs_err::File::open(&self.path)?.take(SAMPLE_BYTES).read_to_end(&mut sample)?;
        Ok(sample)
    }

    /// All of it, which must be small.
    pub(super) fn contents(&self) -> Result<Vec<u8>> {
        let mut contents = Vec::new();
        fs_err::File::open(&self.path)?.take(self.size + 1).read_to_end(&mut contents)?;
        if contents.len() as u64 == self.size { Ok(contents) } else { Err(self.changed()) }
    }
}
