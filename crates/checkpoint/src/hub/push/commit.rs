//! What the hub makes of each file, and the one commit that names them all.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use url::Url;

use super::files::Item;
use super::lfs::Large;
use crate::digest::hex;
use crate::hub::client::{Client, answer_error};
use crate::hub::repository::{Kind, Repository, is_plain};
use crate::hub::sending::{Format, Reply};
use crate::{CheckpointError, Result};

/// The most files that are asked for at once.
const BATCH: usize = 256;

/// How the hub wants a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wish {
    path: String,
    upload_mode: String,
    #[serde(default)]
    pub(super) should_ignore: bool,
    /// The checksum of the file that has this path now.
    #[serde(default)]
    pub(super) oid: Option<String>,
}

#[derive(Deserialize)]
struct Wishes {
    files: Vec<Wish>,
}

#[derive(Deserialize)]
struct Committed {
    #[serde(default, rename = "commitOid")]
    commit: Option<String>,
}

/// A repository's branch.
pub(super) struct Branch<'a> {
    pub(super) client: &'a Client,
    pub(super) repository: &'a Repository,
    pub(super) revision: &'a str,
}

impl Wish {
    /// Whether a file is one of the large ones. Storage takes no empty files.
    pub(super) fn is_large(&self, item: &Item) -> bool {
        self.upload_mode == "lfs" && 0 < item.size
    }
}

impl Branch<'_> {
    /// How the hub wants each file.
    pub(super) fn wishes(&self, items: &[Item]) -> Result<Vec<Wish>> {
        let url = self.url("preupload");
        let mut wishes = Vec::new();
        for items in items.chunks(BATCH) {
            let mut files = Vec::new();
            for item in items {
                let sample = STANDARD.encode(item.sample()?);
                files.push(json!({"path": item.name, "sample": sample, "size": item.size}));
            }
            let body = json!({ "files": files }).to_string();
            let told: Wishes = self
                .client
                .persist(|| self.client.post(&url, Format::Json, body.as_bytes())?.json())?;
            let mut by_path: HashMap<String, Wish> =
                told.files.into_iter().map(|wish| (wish.path.clone(), wish)).collect();
            for item in items {
                match by_path.remove(&item.name) {
                    Some(wish) if matches!(wish.upload_mode.as_str(), "lfs" | "regular") => {
                        wishes.push(wish);
                    }
                    _ => {
                        let what = format!("does not say how `{}` is to be sent", item.name);
                        return Err(answer_error(&url, what));
                    }
                }
            }
        }
        Ok(wishes)
    }

    /// Commits what the lines name; the commit's name, if the hub gives it.
    pub(super) fn commit(&self, message: &str, lines: &[Value]) -> Result<Option<String>> {
        let header = json!({"key": "header", "value": {"summary": message, "description": ""}});
        let mut body = Vec::new();
        for line in std::iter::once(&header).chain(lines) {
            body.extend(line.to_string().into_bytes());
            body.push(b'\n');
        }
        let url = self.url("commit");
        // Once: where the answer is lost, a second one may be committed twice.
        let committed = self.client.post(&url, Format::Lines, &body).and_then(Reply::json);
        match committed {
            Ok(Committed { commit }) => Ok(commit.filter(|commit| is_plain(commit))),
            Err(source) if source.is_passing() => Err(CheckpointError::HubCommit {
                name: self.repository.to_string(),
                source: Box::new(source),
            }),
            Err(error) => Err(error),
        }
    }

    fn url(&self, what: &str) -> Url {
        let Repository { owner, name, .. } = self.repository;
        self.client.url(&["api", Kind::Model.plural(), owner, name, what, self.revision])
    }
}

/// A large file's line, which names its bytes.
pub(super) fn line_of_large(file: &Large<'_>) -> Value {
    let Large { item, oid } = file;
    json!({
        "key": "lfsFile",
        "value": {"path": item.name, "algo": "sha256", "oid": oid, "size": item.size},
    })
}

/// A small file's line, which holds its bytes.
pub(super) fn line_of_small(item: &Item, bytes: &[u8]) -> Value {
    let content = STANDARD.encode(bytes);
    json!({
        "key": "file",
        "value": {"content": content, "path": item.name, "encoding": "base64"},
    })
}

/// The line of a file that goes.
pub(super) fn line_of_removed(name: &str) -> Value {
    json!({"key": "deletedFile", "value": {"path": name}})
}

/// What git knows a small file by.
pub(super) fn git_oid(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hex(&Sha1::new().chain_update(header).chain_update(bytes).finalize())
}
