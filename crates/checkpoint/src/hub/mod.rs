//! Models and data sets by hub name: fetched once, checked, and kept in the cache that Python's
//! tools share; and models pushed there.

mod cache;
mod client;
mod data;
mod download;
mod push;
mod repository;
mod sending;
mod settings;

use std::path::{Path, PathBuf};

use cache::Cache;
use client::Client;
use download::Fetcher;
use repository::{Kind, Repository};
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::companions::{CODE, TEMPLATE_FOLDERS};
use crate::other_formats::pickled;
use crate::{CheckpointError, Result};

pub use data::locate_data;
pub use push::{PushEvent, PushReport, PushSettings, Pushed, PushedFile, push};

/// The branch that a name alone means.
const MAIN: &str = "main";

/// The folder of `model`: itself if there is such a folder, else the hub's model of that name.
///
/// Only configuration, tokenizer, chat templates, code of the model's own and safetensors files are
/// taken. They lie in the hub's usual cache, shared with Python's tools, and are fetched once; what
/// other tools fetched is found. Each file is checked by its size and, where the hub gives it, its checksum before it gets its
/// name there. Without a network, what the cache has is used.
///
/// # Environment
///
/// `HF_ENDPOINT` names another hub; `HF_TOKEN` (or the file `HF_TOKEN_PATH`, or what
/// `hf auth login` saved) opens gated models, and goes to that hub alone; `HF_HUB_CACHE` or `HF_HOME`
/// says where the cache is; `HF_HUB_OFFLINE=1` forbids fetching.
///
/// # Errors
///
/// [`CheckpointError::NoModel`] if there is no such folder and it cannot be a hub name;
/// [`CheckpointError::OnlyPickled`] if the hub's model has no safetensors;
/// [`CheckpointError::Hub`] if the hub does not give the model.
pub fn locate(model: &str) -> Result<PathBuf> {
    find(model, &is_wanted)
}

/// As [`locate`], but of a hub's model only configuration and tokenizer are fetched.
///
/// # Errors
///
/// As [`locate`].
pub fn locate_configuration(model: &str) -> Result<PathBuf> {
    find(model, &|file| is_wanted(file) && !file.ends_with(".safetensors"))
}

fn find(model: &str, wanted: &dyn Fn(&str) -> bool) -> Result<PathBuf> {
    let folder = Path::new(model);
    if folder.exists() {
        return Ok(folder.to_owned());
    }
    let Some(repository) = Repository::parse(Kind::Model, model) else {
        return Err(CheckpointError::NoModel { name: model.to_owned() });
    };
    Settings::from_environment()
        .and_then(|settings| Hub::new(&settings)?.model(&repository, wanted))
        .map_err(|source| match source {
            // The hub has it, and its files are the reason.
            CheckpointError::OnlyPickled { .. } => source,
            _ => CheckpointError::Hub { name: model.to_owned(), source: Box::new(source) },
        })
}

/// Mistral's own format of weights that the repository has in the usual one, too.
const CONSOLIDATED: &str = "consolidated";

/// Files in subfolders are other formats of the same weights, but for further chat templates.
fn is_wanted(file: &str) -> bool {
    let has = |ending: &str| file.ends_with(ending);
    if let Some((folder, name)) = file.split_once('/') {
        return TEMPLATE_FOLDERS.contains(&folder) && !name.contains('/') && has(".jinja");
    }
    let is_code = has(".py") && CODE.iter().any(|beginning| file.starts_with(beginning));
    let is_other_format = has(".safetensors") && file.starts_with(CONSOLIDATED);
    let endings = [".json", ".safetensors", ".jinja", ".model", ".txt", "LICENSE"];
    is_code || (!is_other_format && endings.into_iter().any(has))
}

/// A hub and the cache before it.
struct Hub {
    cache: Cache,
    /// `None` if fetching is forbidden.
    client: Option<Client>,
}

impl Hub {
    fn new(settings: &Settings) -> Result<Self> {
        let client = if settings.offline { None } else { Some(Client::new(settings)?) };
        Ok(Self { cache: Cache::new(&settings.cache), client })
    }

    /// A model's snapshot with every wanted file in it.
    fn model(&self, repository: &Repository, wanted: &dyn Fn(&str) -> bool) -> Result<PathBuf> {
        let snapshot = self.snapshot(repository, MAIN)?;
        let whole = wanted("model.safetensors");
        if whole {
            snapshot.refuse_pickled()?;
            snapshot.require_weights()?;
        }
        let files: Vec<_> = snapshot.files().filter(|file| wanted(file)).collect();
        if files.is_empty() {
            let what = "has no configuration, tokenizer or safetensors files; is it a model?";
            return Err(CheckpointError::HubData {
                name: repository.to_string(),
                what: what.into(),
            });
        }
        snapshot.fetch(&files)?;
        // A name that leads to a commit that is there whole stays, where only some of another one was wanted.
        if whole || self.cache.listing(repository, MAIN)?.is_none() {
            snapshot.note()?;
        }
        Ok(snapshot.folder())
    }

    /// What a revision holds: the hub's list of files, or what the cache has if the hub is not to be
    /// asked or does not answer.
    fn snapshot<'a>(
        &'a self,
        repository: &'a Repository,
        revision: &'a str,
    ) -> Result<Snapshot<'a>> {
        let cached = || self.cached(repository, revision);
        let Some(client) = &self.client else {
            return cached()?.ok_or_else(|| CheckpointError::HubData {
                name: repository.to_string(),
                what: format!(
                    "is not in the cache `{}`, and HF_HUB_OFFLINE forbids fetching it",
                    self.cache.root().display()
                ),
            });
        };
        let ask = || client.listing(repository, revision);
        let listing = match ask() {
            Err(error) if error.is_passing() => {
                if let Some(snapshot) = cached()? {
                    tracing::warn!(
                        name = repository.to_string(),
                        "the hub does not answer; what the cache has is used"
                    );
                    return Ok(snapshot);
                }
                client.pause(1);
                client.persist(ask)?
            }
            listing => listing?,
        };
        let fetcher = Fetcher { client, cache: &self.cache, repository, revision };
        Ok(Snapshot { hub: self, repository, listing, fetcher: Some(fetcher) })
    }

    fn cached<'a>(
        &'a self,
        repository: &'a Repository,
        revision: &str,
    ) -> Result<Option<Snapshot<'a>>> {
        let listing = self.cache.listing(repository, revision)?;
        Ok(listing.map(|listing| Snapshot { hub: self, repository, listing, fetcher: None }))
    }
}

/// The files of a repository at one commit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Listing {
    commit: String,
    files: Vec<String>,
    /// The head of its README as the hub understands it, or null.
    card: serde_json::Value,
}

/// A listing and where its files come from.
struct Snapshot<'a> {
    hub: &'a Hub,
    repository: &'a Repository,
    listing: Listing,
    /// `None` if the files are those of the cache.
    fetcher: Option<Fetcher<'a>>,
}

impl Snapshot<'_> {
    fn files(&self) -> impl Iterator<Item = &str> {
        self.listing.files.iter().map(String::as_str)
    }

    fn folder(&self) -> PathBuf {
        self.hub.cache.snapshot(self.repository, &self.listing.commit)
    }

    /// Refuses weights that are only pickled, before anything is fetched.
    fn refuse_pickled(&self) -> Result<()> {
        let names = self.files().filter(|file| !file.contains('/')).map(str::to_owned);
        let names: Vec<String> = names.collect();
        // An adapter is refused later, by what it is.
        let settled =
            |name: &String| name.ends_with(".safetensors") || name == "adapter_config.json";
        match pickled(&names) {
            Some(file) if !names.iter().any(settled) => {
                let folder = self.repository.to_string().into();
                Err(CheckpointError::OnlyPickled { folder, file })
            }
            _ => Ok(()),
        }
    }

    /// Sees to it that these of its files are in the cache; returns where.
    fn fetch(&self, files: &[&str]) -> Result<Vec<PathBuf>> {
        let (folder, cache, commit) = (self.folder(), &self.hub.cache, &self.listing.commit);
        let paths = files.iter().map(|file| folder.join(file)).collect();
        let Some(fetcher) = &self.fetcher else {
            return match files.iter().find(|file| !folder.join(file).is_file()) {
                None => Ok(paths),
                Some(file) => Err(CheckpointError::HubData {
                    name: self.repository.to_string(),
                    what: format!(
                        "`{file}` is not in the cache `{}`; read it once with a network",
                        cache.root().display()
                    ),
                }),
            };
        };
        for file in files {
            fetcher.fetch(commit, file)?;
        }
        if self.repository.kind == Kind::Dataset {
            cache.keep_listing(self.repository, &self.listing)?;
            self.note()?;
        }
        Ok(paths)
    }

    /// Notes that the revision is at this commit: last, so that its name never leads to one whose files are not all there.
    fn note(&self) -> Result<()> {
        let Some(fetcher) = &self.fetcher else { return Ok(()) };
        self.hub.cache.set_commit(self.repository, fetcher.revision, &self.listing.commit)
    }

    /// Refuses a cache that has a model's configuration alone.
    fn require_weights(&self) -> Result<()> {
        let is_whole = self.fetcher.is_some()
            || self
                .files()
                .any(|file| file.ends_with(".safetensors") || file == "adapter_config.json");
        if is_whole {
            return Ok(());
        }
        Err(CheckpointError::HubData {
            name: self.repository.to_string(),
            what: format!(
                "has no weights in the cache `{}`; read it once with a network",
                self.hub.cache.root().display()
            ),
        })
    }
}

#[cfg(test)]
mod tests;
