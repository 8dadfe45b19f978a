//! Results of stages, each found again by the digest of its recipe.

use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::{Staging, sha256_bytes};
use serde::Serialize;

use crate::Result;

/// A folder of results. Each is made from a recipe, which says exactly what it depends on, and is complete or absent.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
}

/// A result's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Where the result lies, or will.
    pub(crate) path: PathBuf,
    /// What stands for it in other recipes.
    pub(crate) digest: String,
}

impl Store {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The place of a result of a kind. The recipe is written beside it, for people.
    pub(crate) fn slot(&self, kind: &str, recipe: &impl Serialize) -> Result<Slot> {
        let recipe = serde_json::json!({"kind": kind, "version": RECIPES, "recipe": recipe});
        let digest = sha256_bytes(recipe.to_string().as_bytes());
        let name = format!("{kind}-{}", &digest[..16]);
        let slot = Slot { path: self.folder.join(name), digest };
        let beside = slot.beside("recipe.json");
        if !beside.exists() {
            Staging::write(&beside, format!("{recipe:#}\n").as_bytes())?;
        }
        Ok(slot)
    }
}

/// Raised whenever the same recipe comes to another result.
const RECIPES: u32 = 1;

impl Slot {
    /// Makes the result and notes how long it took.
    pub(crate) fn make(&self, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        make()?;
        let seconds = format!("{}\n", begun.elapsed().as_secs_f64());
        Ok(Staging::write(&self.beside("seconds"), seconds.as_bytes())?)
    }

    /// The seconds it took to make the result; 0 if that was not noted.
    pub(crate) fn seconds(&self) -> f64 {
        let noted = fs_err::read_to_string(self.beside("seconds")).ok();
        noted.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0)
    }

    fn beside(&self, what: &str) -> PathBuf {
        PathBuf::from(format!("{}.{what}", self.path.display()))
    }

    /// Whether the result is there.
    pub(crate) fn is_there(&self) -> bool {
        self.path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_has_one_place() {
        let folder = testkit::temporary_folder();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let slot = |kind: &str, recipe: &[u32]| store.slot(kind, &recipe).unwrap();
        let one = slot("plan", &[1, 2]);
        assert_eq!(slot("plan", &[1, 2]), one);
        assert!(slot("plan", &[2, 1]).path != one.path && slot("maps", &[1, 2]).path != one.path);
        assert!(!one.is_there());
        fs_err::write(&one.path, "").unwrap();
        assert!(slot("plan", &[1, 2]).is_there());
        let recipe = testkit::json(&PathBuf::from(format!("{}.recipe.json", one.path.display())));
        assert_eq!(recipe, serde_json::json!({"kind": "plan", "version": 1, "recipe": [1, 2]}));
        assert_eq!(one.seconds(), 0.0);
        one.make(|| Ok(())).unwrap();
        assert!(one.seconds() > 0.0);
    }
}
