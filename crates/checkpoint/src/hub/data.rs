//! Data sets of the hub: which of a repository's files are the rows of a configuration and split.

use std::collections::BTreeSet;
use std::path::PathBuf;

use globset::GlobBuilder;
use serde_json::Value;

use super::repository::{Kind, Repository};
use super::settings::Settings;
use super::{Hub, Listing, MAIN};
use crate::{CheckpointError, Result};

/// Where the hub keeps what it converted to Parquet, as `{config}/{split}/0000.parquet`.
const CONVERTED: &str = "refs/convert/parquet";
const DEFAULT: &str = "default";
const NOTHING: &str = "has no .parquet, .jsonl, .json, .csv or .tsv files, nor has the hub \
                       converted it; fetch it by hand and write its rows as JSONL";
const FORMATS: [&str; 5] = ["parquet", "jsonl", "json", "csv", "tsv"];
/// JSON files that describe a data set.
const DESCRIPTIONS: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];
/// How splits are spelt in names, and what each spelling means.
const SPLITS: [(&str, &str); 9] = [
    ("train", "train"),
    ("training", "train"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "test"),
];

/// The data files of a data set of the hub, fetched into its cache: `hub:owner/name`,
/// `hub:owner/name:config`, `hub:owner/name:split` or `hub:owner/name:config:split`.
///
/// The files are `.parquet`, `.jsonl`, `.json`, `.csv` or `.tsv`, as they are or with `.gz` or
/// `.zst`, in the order of their names, all of one format; their paths end as in the repository.
/// Which are of a configuration and split is what the head of the repository's README says, else
/// their names: `data/train-00000-of-00002.parquet`, `test.jsonl`, `config/validation/0000.csv`.
/// A file whose name has no split is of `train`. Where nothing is readable, the hub's conversion to
/// Parquet is taken. Checks, cache and environment are those of [`locate`](crate::locate); the list
/// of files is kept in the cache, so that a name means the same without a network.
///
/// # Errors
///
/// [`CheckpointError::HubData`] if the name is none, nothing fits it, or more than one
/// configuration, split or format does: the message lists them.
/// [`CheckpointError::HubRequest`], [`CheckpointError::HubAnswer`] and
/// [`CheckpointError::HubMissing`] if the hub does not give it.
pub fn locate_data(name: &str) -> Result<Vec<PathBuf>> {
    Hub::new(&Settings::from_environment()?)?.data(name)
}

impl Hub {
    pub(super) fn data(&self, name: &str) -> Result<Vec<PathBuf>> {
        let fail = |what: String| CheckpointError::HubData { name: name.to_owned(), what };
        let Some((repository, wanted)) = parse(name) else {
            return Err(fail("is not hub:owner/name, with :config and :split where needed".into()));
        };
        let snapshot = self.snapshot(&repository, MAIN)?;
        let pieces = pieces(&snapshot.listing);
        if !pieces.is_empty() {
            return snapshot.fetch(&select(&pieces, &wanted).map_err(fail)?);
        }
        let converted = match self.snapshot(&repository, CONVERTED) {
            // The hub has not converted it: the message is about the repository itself.
            Err(CheckpointError::HubMissing { .. }) => return Err(fail(NOTHING.into())),
            other => other?,
        };
        let pieces = converted_pieces(&converted.listing);
        let found = converted.fetch(&select(&pieces, &wanted).map_err(fail)?)?;
        snapshot.fetch(&[])?; // Without a network too, nothing in it is readable.
        Ok(found)
    }
}

/// What stands after the repository's name: up to two parts.
#[derive(Debug, PartialEq)]
struct Wanted {
    parts: Vec<String>,
}

fn parse(text: &str) -> Option<(Repository, Wanted)> {
    let mut parts = text.strip_prefix("hub:").unwrap_or(text).split(':').map(str::to_owned);
    let repository = Repository::parse(Kind::Dataset, &parts.next()?)?;
    let parts: Vec<_> = parts.collect();
    (parts.len() <= 2 && parts.iter().all(|part| !part.is_empty()))
        .then_some((repository, Wanted { parts }))
}

/// A data file and what it is of.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    config: String,
    split: String,
    file: String,
}

/// The pieces of a repository, by its README if that says it, else by names.
fn pieces(listing: &Listing) -> Vec<Piece> {
    let readable: Vec<&str> =
        listing.files.iter().map(String::as_str).filter(|file| format_of(file).is_some()).collect();
    let said = said_pieces(&listing.card, &readable);
    if said.is_empty() { readable.into_iter().map(named_piece).collect() } else { said }
}

/// The data format of a file by its ending; `None` if it is not one or describes others.
fn format_of(file: &str) -> Option<&'static str> {
    let hidden = file.split('/').any(|part| part.starts_with(['.', '_']));
    let name = file.rsplit('/').next().unwrap_or(file);
    if hidden || DESCRIPTIONS.contains(&name) {
        return None;
    }
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    let (_, ending) = name.rsplit_once('.')?;
    FORMATS.into_iter().find(|format| *format == ending)
}

/// `configs` of a README's head: names, and patterns of files.
fn said_pieces(card: &Value, readable: &[&str]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for entry in card["configs"].as_array().into_iter().flatten() {
        let config = entry["config_name"].as_str().unwrap_or(DEFAULT);
        let folder = entry["data_dir"].as_str().map_or("", |folder| folder.trim_matches('/'));
        let mut add = |split: &str, pattern: &str| {
            let pattern = pattern.trim_start_matches("./");
            let pattern =
                if folder.is_empty() { pattern.to_owned() } else { format!("{folder}/{pattern}") };
            let Ok(glob) = GlobBuilder::new(&pattern).literal_separator(true).build() else {
                return;
            };
            let matcher = glob.compile_matcher();
            pieces.extend(readable.iter().filter(|file| matcher.is_match(file)).map(|file| {
                Piece {
                    config: config.to_owned(),
                    split: split.to_owned(),
                    file: (*file).to_owned(),
                }
            }));
        };
        let texts = |value: &Value| -> Vec<String> {
            let one = value.as_str().map(str::to_owned);
            let many = value.as_array().into_iter().flatten().filter_map(Value::as_str);
            one.into_iter().chain(many.map(str::to_owned)).collect()
        };
        let files = &entry["data_files"];
        for pattern in texts(files) {
            add("train", &pattern);
        }
        for part in files.as_array().into_iter().flatten().filter(|part| part.is_object()) {
            let split = part["split"].as_str().unwrap_or("train");
            for pattern in texts(&part["path"]) {
                add(split, &pattern);
            }
        }
    }
    pieces
}

/// A file by its name alone.
fn named_piece(file: &str) -> Piece {
    let (folders, name) = file.rsplit_once('/').unwrap_or(("", file));
    let mut folders: Vec<&str> =
        folders.split('/').filter(|folder| !folder.is_empty() && *folder != "data").collect();
    let split = match (split_of_name(name), folders.last().and_then(|&last| split_of_word(last))) {
        (split, Some(of_folder)) => {
            folders.pop();
            split.unwrap_or_else(|| of_folder.to_owned())
        }
        (split, None) => split.unwrap_or_else(|| "train".to_owned()),
    };
    let config = if folders.is_empty() { DEFAULT.to_owned() } else { folders.join("/") };
    Piece { config, split, file: file.to_owned() }
}

/// `train_sft-00000-of-00002.parquet` is of `train_sft`, `reviews.dev.jsonl` of `validation`.
fn split_of_name(name: &str) -> Option<String> {
    let stem = name.split('.').next().unwrap_or(name);
    let whole = stem.split_once("-of-").and_then(|(before, count)| {
        let (split, number) = before.rsplit_once('-')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let is_word = split.chars().all(|c| c.is_alphanumeric() || c == '_');
        (is_number(number) && is_number(count.split('-').next()?) && is_word).then_some(split)
    });
    if let Some(split) = whole {
        return Some(split_of_word(split).unwrap_or(split).to_owned());
    }
    name.split(|c: char| !c.is_alphabetic()).find_map(split_of_word).map(str::to_owned)
}

fn split_of_word(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    SPLITS.into_iter().find(|(spelling, _)| *spelling == word).map(|(_, split)| split)
}

/// The pieces of the hub's conversion, whose folders say what they are.
fn converted_pieces(listing: &Listing) -> Vec<Piece> {
    let piece = |file: &String| {
        let (config, rest) = file.split_once('/')?;
        let (split, name) = rest.split_once('/')?;
        let (config, split) = (config.to_owned(), split.to_owned());
        name.ends_with(".parquet").then(|| Piece { config, split, file: file.clone() })
    };
    listing.files.iter().filter_map(piece).collect()
}

/// The files that a name means, or why it means none.
fn select<'a>(pieces: &'a [Piece], wanted: &Wanted) -> Result<Vec<&'a str>, String> {
    if pieces.is_empty() {
        return Err(NOTHING.into());
    }
    let configs: BTreeSet<&str> = pieces.iter().map(|piece| piece.config.as_str()).collect();
    let (config, split) = match wanted.parts.as_slice() {
        [config, split] => (Some(config.as_str()), Some(split.as_str())),
        // One part is a configuration if there is one of that name.
        [part] if configs.contains(part.as_str()) => (Some(part.as_str()), None),
        [part] => (None, Some(part.as_str())),
        _ => (None, None),
    };
    let config = match config {
        Some(config) => config,
        None if configs.contains(DEFAULT) => DEFAULT,
        None => one("configurations", &configs)?,
    };
    let of_config: Vec<&Piece> = pieces.iter().filter(|piece| piece.config == config).collect();
    if of_config.is_empty() {
        return Err(format!("has no configuration `{config}`; it has {}", listed(&configs)));
    }
    let splits: BTreeSet<&str> = of_config.iter().map(|piece| piece.split.as_str()).collect();
    let split = match split {
        Some(split) if splits.contains(split) => split,
        Some(split) => match split_of_word(split) {
            Some(usual) if splits.contains(usual) => usual,
            _ => return Err(format!("has no split `{split}`; it has {}", listed(&splits))),
        },
        None => one("splits", &splits)?,
    };
    let of_split = of_config.iter().filter(|piece| piece.split == split);
    let files: BTreeSet<&str> = of_split.map(|piece| piece.file.as_str()).collect();
    let formats: BTreeSet<&str> = files.iter().filter_map(|file| format_of(file)).collect();
    if 1 < formats.len() {
        return Err(format!(
            "has `{split}` in several formats, {}; fetch it by hand and name the files to read",
            listed(&files)
        ));
    }
    Ok(files.into_iter().collect())
}

/// The only one of them.
fn one<'a>(what: &str, among: &BTreeSet<&'a str>) -> Result<&'a str, String> {
    match among.iter().collect::<Vec<_>>().as_slice() {
        [only] => Ok(only),
        _ => Err(format!(
            "has several {what}, {}; name one, as in hub:owner/name:config:split",
            listed(among)
        )),
    }
}

/// The first of them, for a message.
fn listed(names: &BTreeSet<&str>) -> String {
    const SHOWN: usize = 20;
    let mut text: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if SHOWN < names.len() {
        text.push(format!("and {} more", names.len() - SHOWN));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The files that `name` means among these, or the message.
    fn check(card: Value, files: &[&str], name: &str) -> String {
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        let (_, wanted) = parse(name).unwrap();
        let listing = Listing { commit: "0".into(), files, card };
        match select(&pieces(&listing), &wanted) {
            Ok(files) => files.join(" "),
            Err(message) => message,
        }
    }

    #[test]
    fn names_say_what_files_are() {
        let files = [
            ".gitattributes",
            "README.md",
            "dataset_infos.json",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ];
        let check_these = |name| check(Value::Null, &files, name);
        let train = "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet";
        assert_eq!(check_these("hub:o/n:train"), train);
        assert_eq!(check_these("hub:o/n:default:train"), train);
        assert_eq!(check_these("o/n:eval"), "data/test-00000-of-00001.parquet");
        assert_eq!(
            check_these("o/n"),
            "has several splits, `test`, `train`; name one, as in hub:owner/name:config:split"
        );
        assert_eq!(check_these("o/n:dev"), "has no split `dev`; it has `test`, `train`");
        assert_eq!(
            check_these("o/n:large:train"),
            "has no configuration `large`; it has `default`"
        );

        assert_eq!(check(Value::Null, &["rows.jsonl.gz"], "o/n"), "rows.jsonl.gz");
        assert_eq!(check(Value::Null, &["my_dev.csv", "my_train.csv"], "o/n:dev"), "my_dev.csv");
        assert_eq!(
            check(Value::Null, &["data/train_sft-00000-of-00001-ab12.parquet"], "o/n:train_sft"),
            "data/train_sft-00000-of-00001-ab12.parquet"
        );
        let folders = ["main/train/0000.csv", "main/test/0000.csv", "socratic/train/0000.csv"];
        assert_eq!(check(Value::Null, &folders, "o/n:main:train"), "main/train/0000.csv");
        assert_eq!(check(Value::Null, &folders, "o/n:socratic"), "socratic/train/0000.csv");
        assert!(check(Value::Null, &folders, "o/n").contains("several configurations, `main`"));
        let twice = ["train.jsonl", "train.csv"];
        assert!(check(Value::Null, &twice, "o/n").contains("several formats, `train.csv`"));
        assert!(check(Value::Null, &["README.md"], "o/n").contains("has no .parquet"));
    }

    #[test]
    fn the_readme_has_the_last_word() {
        let card = json!({"configs": [
            {"config_name": "plain", "data_files": [
                {"split": "train", "path": "a/*.jsonl"},
                {"split": "held_out", "path": ["b/**/x?.jsonl", "c.jsonl"]},
            ]},
            {"config_name": "more", "data_files": "c.jsonl"},
        ]});
        let files = ["a/1.jsonl", "a/b/2.jsonl", "b/p/q/x1.jsonl", "b/x2.jsonl", "c.jsonl"];
        let check = |name| check(card.clone(), &files, name);
        assert_eq!(check("o/n:plain:train"), "a/1.jsonl");
        assert_eq!(check("o/n:plain:held_out"), "b/p/q/x1.jsonl b/x2.jsonl c.jsonl");
        assert_eq!(check("o/n:more"), "c.jsonl");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "name", "../a", "a/b:", "a/b::train", "a/b:c:d:e", "hub:", "a/b/c"] {
            assert!(parse(name).is_none(), "{name}");
        }
    }
}
