//! A model to the hub: the repository, what it lacks, then one commit. Until the commit nothing of
//! the repository changes, so a push that breaks off leaves it as it was.

mod commit;
mod files;
mod lfs;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::commit::{Branch, git_oid, line_of_large, line_of_removed, line_of_small};
use self::files::{Item, Parcel, is_weights};
use self::lfs::{Large, Storage};
use super::client::Client;
use super::repository::{Kind, Repository, is_inside};
use super::sending::Format;
use super::settings::Settings;
use crate::{CheckpointError, Result, sha256_file};

/// The most of small files in one commit, which is sent from memory.
const SMALL_BYTES: u64 = 64 << 20;

/// How [`push`] pushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushSettings {
    /// Whether the repository must be private: it is made so, and a public one is refused.
    pub private: bool,
    /// The branch, which must be there unless it is `main`.
    pub revision: String,
    /// The commit's message.
    pub message: String,
}

/// What happens in a [`push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent<'a> {
    /// These files and folders stay here.
    LeftOut(&'a [String]),
    /// These old weights were removed from the repository.
    Removed(&'a [String]),
    /// A large file's bytes are being sent.
    Bytes {
        /// Whose.
        file: &'a str,
        /// How many of all large files' are sent.
        done: u64,
        /// How many are to be sent.
        total: u64,
    },
    /// The hub has a file's bytes, or gets them with the commit.
    File(&'a PushedFile),
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pushed {
    /// Its bytes were sent.
    Sent,
    /// The hub had its bytes under another name, and gave them this one.
    Known,
    /// The repository has it as it is.
    Unchanged,
}

/// A file of a [`push`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PushedFile {
    pub file: String,
    pub size_bytes: u64,
    pub outcome: Pushed,
}

/// What a [`push`] came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushReport {
    /// The repository's page.
    pub url: String,
    /// The branch.
    pub revision: String,
    /// Whether the repository was made.
    pub created: bool,
    /// Whether there was anything to commit.
    pub committed: bool,
    /// The commit, if the hub named it.
    pub commit: Option<String>,
    /// The files, in the order of their names.
    pub files: Vec<PushedFile>,
    /// What was left out.
    pub left_out: Vec<String>,
    /// Old weights that were removed, since they would be loaded in place of the new ones.
    pub removed: Vec<String>,
}

/// Puts a folder in Hugging Face layout (a model, an adapter), or one GGUF file, into the repository
/// `name` of the hub, as one commit.
///
/// Only what belongs to a model goes: configuration, tokenizer, chat templates, safetensors and GGUF
/// files, model card, licence, plan and scores. Large files are read from the disk as they are sent;
/// what the hub has already is not sent again. A repository that is not there is made.
///
/// # Environment
///
/// As for [`super::locate`]: `HF_ENDPOINT`, and a token that may write.
///
/// # Errors
///
/// If there is no model in `what`, or a file changes meanwhile; if there is no token, or the hub
/// refuses it; if the hub cannot be reached or does not take a file. Nothing is committed then,
/// unless [`CheckpointError::HubCommit`] says that this is not known.
pub fn push(
    what: &Path,
    name: &str,
    settings: &PushSettings,
    observe: &mut dyn FnMut(PushEvent<'_>),
) -> Result<PushReport> {
    let Some(repository) = Repository::parse(Kind::Model, name) else {
        let what = "is no repository's name; give OWNER/NAME, such as your-name/pruned";
        return Err(CheckpointError::HubData { name: name.to_owned(), what: what.into() });
    };
    push_to(&Settings::from_environment()?, &repository, what, settings, observe)
}

pub(super) fn push_to(
    hub: &Settings,
    repository: &Repository,
    what: &Path,
    settings: &PushSettings,
    observe: &mut dyn FnMut(PushEvent<'_>),
) -> Result<PushReport> {
    let fail = |what: &str| {
        Err(CheckpointError::HubData { name: repository.to_string(), what: what.into() })
    };
    if !is_inside(&settings.revision) {
        return fail(&format!("`{}` is no branch's name", settings.revision));
    }
    let parcel = Parcel::of(what)?;
    if hub.offline {
        return fail("HF_HUB_OFFLINE forbids pushing to it; unset it");
    }
    if hub.token.is_none() {
        return fail(
            "pushing needs a token; set HF_TOKEN to one with write access, or run `hf auth login`",
        );
    }
    let client = Client::new(hub)?;
    let pushing = Pushing { client: &client, repository, settings };
    pushing.carry_out(parcel, observe)
}

/// What asking for a repository came to.
enum Making {
    Made,
    There,
    /// It may be there nevertheless.
    Refused(CheckpointError),
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    private: bool,
}

struct Pushing<'a> {
    client: &'a Client,
    repository: &'a Repository,
    settings: &'a PushSettings,
}

impl Pushing<'_> {
    fn carry_out(
        &self,
        parcel: Parcel,
        observe: &mut dyn FnMut(PushEvent<'_>),
    ) -> Result<PushReport> {
        let Self { client, repository, settings } = *self;
        let revision = settings.revision.as_str();
        let Parcel { items, mut left_out } = parcel;
        let making = self.make()?;
        if settings.private {
            self.require_private()?;
        }
        let branch = Branch { client, repository, revision };
        let created = matches!(making, Making::Made);
        let wishes = match (branch.wishes(&items), making) {
            // The first refusal is the reason.
            (Err(CheckpointError::HubMissing { .. }), Making::Refused(error)) => return Err(error),
            (wishes, _) => wishes?,
        };
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (item, wish) in items.iter().zip(wishes) {
            if wish.should_ignore {
                left_out.push(item.name.clone());
            } else if wish.is_large(item) {
                large.push((item, wish.oid));
            } else {
                small.push((item, wish.oid));
            }
        }
        if !left_out.is_empty() {
            observe(PushEvent::LeftOut(&left_out));
        }
        let mut done = Done::default();
        add_small(&small, &mut done, observe)?;
        self.send_large(&large, &mut done, observe)?;
        for item in &items {
            item.require_unchanged()?;
        }
        let removed = if created { Vec::new() } else { self.superseded(&done.files)? };
        let Done { mut files, mut lines } = done;
        lines.extend(removed.iter().map(|name| line_of_removed(name)));
        let commit = match lines.is_empty() {
            true => None,
            false => branch.commit(&settings.message, &lines)?,
        };
        if !removed.is_empty() {
            observe(PushEvent::Removed(&removed));
        }
        files.sort_by(|a, b| a.file.cmp(&b.file));
        let Repository { owner, name, .. } = repository;
        Ok(PushReport {
            url: client.url(&[owner, name]).into(),
            revision: revision.to_owned(),
            created,
            committed: !lines.is_empty(),
            commit,
            files,
            left_out,
            removed,
        })
    }

    /// Weights that the branch has and that would be loaded in place of those that are pushed: shards beside a single file, or
    /// the other way round, another form of an adapter, and an adapter beside a model.
    fn superseded(&self, pushed: &[PushedFile]) -> Result<Vec<String>> {
        let weights: Vec<&str> = pushed
            .iter()
            .map(|pushed| pushed.file.as_str())
            .filter(|name| is_weights(name))
            .collect();
        if weights.is_empty() {
            return Ok(Vec::new()); // As for a GGUF file, which stands for itself.
        }
        let is_model = weights.iter().any(|name| name.starts_with("model"));
        let ask = || self.client.listing(self.repository, &self.settings.revision);
        let there = self.client.persist(ask)?.files.into_iter();
        let goes = |name: &String| {
            is_weights(name)
                && (is_model || name.starts_with("adapter"))
                && !weights.contains(&name.as_str())
        };
        Ok(there.filter(goes).collect())
    }

    /// Sees to it that the repository is there.
    fn make(&self) -> Result<Making> {
        let Repository { owner, name, .. } = self.repository;
        let mut request = json!({"name": name, "organization": owner, "type": "model"});
        if self.settings.private {
            request["private"] = true.into();
        }
        let (url, body) = (self.client.url(&["api", "repos", "create"]), request.to_string());
        self.client.persist(|| {
            let reply = self.client.post(&url, Format::Json, body.as_bytes())?;
            match reply.status() {
                409 => Ok(Making::There),
                // A token for one repository may make none.
                401..=403 => match reply.accepted() {
                    Ok(_) => Ok(Making::There),
                    Err(error) => Ok(Making::Refused(error)),
                },
                _ => reply.accepted().map(|_| Making::Made),
            }
        })
    }

    /// Refuses a public repository before anything is sent there.
    fn require_private(&self) -> Result<()> {
        let Repository { owner, name, .. } = self.repository;
        let url = self.client.url(&["api", Kind::Model.plural(), owner, name]);
        match self.client.persist(|| self.client.ask(&url))? {
            Info { private: true } => Ok(()),
            Info { private: false } => Err(CheckpointError::HubData {
                name: self.repository.to_string(),
                what: "is public; make it private on its page, or push without --private".into(),
            }),
        }
    }

    /// Sends what the hub lacks of large files, and notes the lines that name them.
    fn send_large(
        &self,
        files: &[(&Item, Option<String>)],
        done: &mut Done,
        observe: &mut dyn FnMut(PushEvent<'_>),
    ) -> Result<()> {
        let mut changed = Vec::new();
        for (item, there) in files {
            tracing::info!(file = item.name, "hashing");
            let oid = sha256_file(&item.path)?;
            match there.as_deref() == Some(&oid) {
                true => done.add(item, Pushed::Unchanged, None, observe),
                false => changed.push(Large { item, oid }),
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let Self { client, repository, settings } = *self;
        let storage = Storage { client, repository, revision: &settings.revision };
        let wanted = storage.wanted(&changed)?;
        let is_wanted = |file: &&Large<'_>| wanted.contains_key(&file.oid);
        // Once each: files may be the same.
        let sizes: HashMap<&str, u64> = changed
            .iter()
            .filter(is_wanted)
            .map(|file| (file.oid.as_str(), file.item.size))
            .collect();
        let total = sizes.values().sum();
        let (mut sent, mut before) = (HashSet::new(), 0);
        for file in &changed {
            let line = Some(line_of_large(file));
            let outcome = match wanted.get(&file.oid) {
                Some(actions) if sent.insert(&file.oid) => {
                    let name = file.item.name.as_str();
                    let mut told = |bytes| {
                        observe(PushEvent::Bytes { file: name, done: before + bytes, total });
                    };
                    storage.send(file, actions, &mut told)?;
                    before += file.item.size;
                    Pushed::Sent
                }
                _ => Pushed::Known,
            };
            done.add(file.item, outcome, line, observe);
        }
        Ok(())
    }
}

/// Notes the lines that hold small files.
fn add_small(
    files: &[(&Item, Option<String>)],
    done: &mut Done,
    observe: &mut dyn FnMut(PushEvent<'_>),
) -> Result<()> {
    let mut left = SMALL_BYTES;
    for (item, there) in files {
        let Some(rest) = left.checked_sub(item.size) else {
            let what = "the hub takes it for a small file, and it is too large for one; mark it as \
                        large (LFS) in the repository's .gitattributes";
            return Err(CheckpointError::config(&item.path, what));
        };
        left = rest;
        let bytes = item.contents()?;
        match there.as_deref() == Some(&git_oid(&bytes)) {
            true => done.add(item, Pushed::Unchanged, None, observe),
            false => done.add(item, Pushed::Sent, Some(line_of_small(item, &bytes)), observe),
        }
    }
    Ok(())
}

/// The commit so far.
#[derive(Default)]
struct Done {
    files: Vec<PushedFile>,
    lines: Vec<Value>,
}

impl Done {
    fn add(
        &mut self,
        item: &Item,
        outcome: Pushed,
        line: Option<Value>,
        observe: &mut dyn FnMut(PushEvent<'_>),
    ) {
        let file = PushedFile { file: item.name.clone(), size_bytes: item.size, outcome };
        observe(PushEvent::File(&file));
        self.files.push(file);
        self.lines.extend(line);
    }
}

#[cfg(test)]
mod tests;
