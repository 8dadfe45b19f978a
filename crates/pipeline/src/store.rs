//! Results of stages, each found again by the recipe it was made from.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::{Staging, read_json, remove_if_there, sha256_bytes, write_json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{PipelineError, Result};

/// Raised whenever the same recipe comes to another result.
const RECIPES: u32 = 7;

/// A folder of results. Each is made from a recipe, which says exactly what it depends on, and is complete or absent.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    naming: Naming,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// Results of many cells, told apart by their recipes' digests.
    Digests,
    /// Results of one cell under plain names, the notes on them in a folder of their own.
    Plain,
}

/// The folder of notes on results under plain names.
const NOTES: &str = "stages";

/// What a result is called while it is removed.
const DISCARDED: &str = ".discarded";

/// A result's place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slot {
    /// Where the result lies, or will.
    pub(crate) path: PathBuf,
    /// What stands for it in other recipes.
    pub(crate) digest: String,
    note: PathBuf,
    recipe: Value,
}

/// What is kept of how a result was made.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    recipe: Value,
    seconds: f64,
    /// Whether those seconds are in another result's note, too: it was made as a part of that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_part: bool,
}

impl Store {
    /// A store that many cells share.
    pub(crate) fn of_many(folder: &Path) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), naming: Naming::Digests })
    }

    /// One cell's results, under plain names.
    pub(crate) fn of_one(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), naming: Naming::Plain }
    }

    /// A store for results that are compared before one is taken: the same where many cells share it, else a folder within.
    pub(crate) fn scratch(&self, name: &str) -> Result<Self> {
        match self.naming {
            Naming::Digests => Ok(self.clone()),
            Naming::Plain => Self::of_many(&self.folder.join(name)),
        }
    }

    /// Whether many cells share it, and so each result's path says what it was made from.
    pub(crate) fn is_shared(&self) -> bool {
        self.naming == Naming::Digests
    }

    /// Whether it is the same as another.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.folder == other.folder
    }

    /// Removes a result; its note stays, and says how long it took. Until it is gone it has no name of a result's.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        self.sweep()?;
        match fs_err::rename(path, self.folder.join(DISCARDED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => self.sweep(),
        }
    }

    /// Removes what a kill has left of a result that was discarded.
    pub(crate) fn sweep(&self) -> Result<()> {
        Ok(remove_if_there(&self.folder.join(DISCARDED))?)
    }

    /// Removes it and all that is in it.
    pub(crate) fn remove(&self) -> Result<()> {
        Ok(remove_if_there(&self.folder)?)
    }

    /// The place of a result of a kind; `kind` is its file or folder.
    pub(crate) fn slot(&self, kind: &str, recipe: impl Serialize) -> Slot {
        let recipe = json!({"kind": kind, "version": RECIPES, "recipe": recipe});
        let digest = sha256_bytes(recipe.to_string().as_bytes());
        let (path, note) = match self.naming {
            Naming::Plain => {
                let name = Path::new(kind).file_name().unwrap_or_default().display().to_string();
                let name = name.trim_end_matches(".json");
                (self.folder.join(kind), self.folder.join(NOTES).join(format!("{name}.json")))
            }
            Naming::Digests => {
                let (stem, extension) = kind.split_once('.').unwrap_or((kind, ""));
                let name = format!("{}-{}", stem.replace('/', "-"), &digest[..16]);
                let dot = if extension.is_empty() { "" } else { "." };
                let path = self.folder.join(format!("{name}{dot}{extension}"));
                (path, self.folder.join(format!("{name}.note.json")))
            }
        };
        Slot { path, digest, note, recipe }
    }
}

impl Slot {
    /// Whether the result is there.
    ///
    /// # Errors
    ///
    /// [`PipelineError::OtherRecipe`] if there is one that was made from another recipe.
    pub(crate) fn is_there(&self) -> Result<bool> {
        let there = self.path.exists();
        match self.note() {
            Some(note) if there && note.recipe != self.recipe => Err(PipelineError::OtherRecipe {
                path: self.path.clone(),
                differing: differing(&note.recipe, &self.recipe).join(", "),
            }),
            _ => Ok(there),
        }
    }

    /// Makes the result, and notes its recipe and how long it took.
    pub(crate) fn make<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        remove_if_there(&self.note)?; // Of a result that was removed since.
        let made = make()?;
        self.write_note(begun.elapsed().as_secs_f64(), false)?;
        Ok(made)
    }

    /// Makes a result that is put together of others, whose notes have its seconds.
    pub(crate) fn gather<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let made = self.make(make)?;
        self.be_a_part()?;
        Ok(made)
    }

    /// Notes that the seconds are in another result's note, too.
    pub(crate) fn be_a_part(&self) -> Result<()> {
        self.write_note(self.seconds(), true)
    }

    fn write_note(&self, seconds: f64, is_part: bool) -> Result<()> {
        let note = Note { recipe: self.recipe.clone(), seconds, is_part };
        if let Some(folder) = self.note.parent() {
            fs_err::create_dir_all(folder)?;
        }
        write_formatted(&self.note, "gradpruner-note", &note)
    }

    /// Removes what was made from another recipe.
    pub(crate) fn clear_other(&self) -> Result<()> {
        match self.is_there() {
            Err(PipelineError::OtherRecipe { .. }) => Ok(remove_if_there(&self.path)?),
            other => other.map(|_| ()),
        }
    }

    /// Writes a result that is a JSON object, with its format before what it holds.
    pub(crate) fn write(&self, result: &impl Serialize) -> Result<()> {
        let kind = self.recipe["kind"].as_str().unwrap_or_default();
        let name = Path::new(kind).file_stem().unwrap_or_default().display();
        write_formatted(&self.path, &format!("gradpruner-{name}"), result)
    }

    /// Takes a result of the same recipe over from another place.
    pub(crate) fn adopt(&self, other: &Self) -> Result<()> {
        let seconds = other.seconds();
        remove_if_there(&self.note)?;
        fs_err::rename(&other.path, &self.path)?;
        self.write_note(seconds, true)
    }

    /// As [`Slot::adopt`], of a result that is a file, which stays there.
    pub(crate) fn copy(&self, other: &Self) -> Result<()> {
        let seconds = other.seconds();
        remove_if_there(&self.note)?;
        Staging::write(&self.path, &fs_err::read(&other.path)?)?;
        self.write_note(seconds, true)
    }

    /// The seconds it took to make the result; 0 if that was not noted.
    pub(crate) fn seconds(&self) -> f64 {
        self.note().map_or(0.0, |note| note.seconds)
    }

    fn note(&self) -> Option<Note> {
        read_json(&self.note).ok()
    }
}

/// Writes a JSON object that says what it is first.
fn write_formatted(path: &Path, format: &str, value: &impl Serialize) -> Result<()> {
    let mut object = json!({"format": format, "version": 1});
    if let (Value::Object(object), Value::Object(own)) = (&mut object, json!(value)) {
        object.extend(own);
    }
    Ok(write_json(path, &object)?)
}

/// The keys two recipes disagree on.
fn differing(found: &Value, expected: &Value) -> Vec<String> {
    let (Value::Object(found), Value::Object(expected)) = (found, expected) else {
        return vec![String::new()];
    };
    let mut keys: Vec<&String> = found.keys().chain(expected.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut names = Vec::new();
    for key in keys {
        let (old, new) = (found.get(key), expected.get(key));
        if old == new {
            continue;
        }
        let (Some(old), Some(new)) = (old, new) else {
            names.push(key.clone());
            continue;
        };
        names.extend(differing(old, new).into_iter().map(|rest| match rest.as_str() {
            "" => key.clone(),
            rest if key == "recipe" => rest.to_owned(),
            rest => format!("{key}.{rest}"),
        }));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_has_one_place() {
        let folder = testkit::temporary_folder();
        let store = Store::of_many(&folder.path().join("store")).unwrap();
        let slot = |kind: &str, recipe: &[u32]| store.slot(kind, recipe);
        let one = slot("plan.json", &[1, 2]);
        assert_eq!(slot("plan.json", &[1, 2]), one);
        assert!(one.path.extension().is_some_and(|extension| extension == "json"));
        assert!(
            slot("plan.json", &[2, 1]).path != one.path && slot("maps", &[1, 2]).path != one.path
        );
        assert!(!one.is_there().unwrap() && one.seconds() == 0.0);
        one.make(|| Ok(fs_err::write(&one.path, "")?)).unwrap();
        assert!(slot("plan.json", &[1, 2]).is_there().unwrap() && one.seconds() > 0.0);
    }

    #[test]
    fn another_recipes_result_is_refused_under_a_plain_name() {
        let folder = testkit::temporary_folder();
        let store = Store::of_one(folder.path());
        let slot = |rate: f64| store.slot("maps", json!({"with": {"rate": rate, "steps": 3}}));
        let one = slot(0.5);
        one.make(|| Ok(fs_err::write(&one.path, "")?)).unwrap();
        assert!(slot(0.5).is_there().unwrap());
        let error = slot(0.25).is_there().unwrap_err().to_string();
        assert!(error.contains("maps: it was made with different settings (with.rate)"), "{error}");
        slot(0.25).clear_other().unwrap();
        assert!(!slot(0.25).is_there().unwrap());
        // One that nobody noted anything of is taken as it is.
        fs_err::write(folder.path().join("pruned"), "").unwrap();
        assert!(store.slot("pruned", 1).is_there().unwrap());
    }

    /// Only the note is left, and the result can be made again.
    #[test]
    fn a_result_is_discarded() {
        let folder = testkit::temporary_folder();
        let store = Store::of_many(folder.path()).unwrap();
        let slot = store.slot("pruned", 7);
        let make = || slot.make(|| Ok(fs_err::create_dir_all(slot.path.join("part"))?)).unwrap();
        make();
        store.discard(&slot.path).unwrap();
        assert!(!slot.is_there().unwrap() && slot.seconds() > 0.0);
        store.discard(&slot.path).unwrap();
        // A kill in the middle leaves what the next sweep takes.
        fs_err::create_dir(folder.path().join(DISCARDED)).unwrap();
        make();
        store.sweep().unwrap();
        let names = fs_err::read_dir(folder.path()).unwrap().count();
        assert!(names == 2 && slot.is_there().unwrap(), "{names}");
    }

    #[test]
    fn a_result_is_taken_over() {
        let folder = testkit::temporary_folder();
        let (from, to) =
            (Store::of_many(&folder.path().join("race")).unwrap(), Store::of_one(folder.path()));
        let (old, new) = (from.slot("pruned", 7), to.slot("pruned", 7));
        old.make(|| Ok(fs_err::write(&old.path, "x")?)).unwrap();
        new.adopt(&old).unwrap();
        assert!(new.is_there().unwrap() && !old.path.exists() && new.seconds() > 0.0);
        assert_eq!(new.digest, old.digest);
    }
}
