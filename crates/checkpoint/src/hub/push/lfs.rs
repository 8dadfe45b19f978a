//! Large files: the hub says what it lacks and where it wants it, then they are sent from the disk,
//! whole or in parts.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use super::files::Item;
use crate::digest::hex;
use crate::hub::client::{Client, answer_error};
use crate::hub::repository::Repository;
use crate::hub::sending::{Format, Reply};
use crate::hub::settings::ENDPOINT;
use crate::{CheckpointError, Result};

/// The most objects that are asked for at once.
const BATCH: usize = 256;

/// A large file and its checksum.
pub(super) struct Large<'a> {
    pub(super) item: &'a Item,
    /// SHA-256, in hex.
    pub(super) oid: String,
}

/// What the hub wants done with an object.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Actions {
    upload: Action,
    #[serde(default)]
    verify: Option<Action>,
}

#[derive(Debug, Clone, Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Value>,
    #[serde(default)]
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

/// A part that was sent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    part_number: usize,
    etag: String,
}

/// Where large files of one repository go.
pub(super) struct Storage<'a> {
    pub(super) client: &'a Client,
    pub(super) repository: &'a Repository,
    pub(super) revision: &'a str,
}

impl Large<'_> {
    /// Refuses a file of which other bytes were sent than were hashed.
    fn require_checksum(&self, sent: Sha256) -> Result<()> {
        if hex(&sent.finalize()) == self.oid { Ok(()) } else { Err(self.item.changed()) }
    }
}

impl Storage<'_> {
    /// What is to be done, by checksum; nothing for what the hub has already.
    pub(super) fn wanted(&self, files: &[Large<'_>]) -> Result<HashMap<String, Actions>> {
        let Repository { owner, name, .. } = self.repository;
        let repository = format!("{name}.git");
        let url = self.client.url(&[owner, &repository, "info", "lfs", "objects", "batch"]);
        let mut wanted = HashMap::new();
        for files in files.chunks(BATCH) {
            let objects: Vec<Value> =
                files.iter().map(|file| json!({"oid": file.oid, "size": file.item.size})).collect();
            let request = json!({
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "objects": objects,
                "hash_algo": "sha256",
                "ref": {"name": self.revision},
            });
            let body = request.to_string();
            let batch: Batch = self
                .client
                .persist(|| self.client.post(&url, Format::Lfs, body.as_bytes())?.json())?;
            for file in files {
                let name = &file.item.name;
                let told = batch.objects.iter().find(|object| object.oid == file.oid);
                let Some(Object { actions, error, .. }) = told else {
                    return Err(answer_error(&url, format!("does not say where `{name}` goes")));
                };
                if let Some(Refusal { message }) = error {
                    let what = format!("does not take `{name}` (the hub says: {message:.300})");
                    return Err(answer_error(&url, what));
                }
                let Some(actions) = actions.as_ref().filter(|actions| *actions != &json!({}))
                else {
                    continue;
                };
                let actions = Actions::deserialize(actions).map_err(|error| {
                    answer_error(&url, format!("says of `{name}` what is not understood: {error}"))
                })?;
                wanted.insert(file.oid.clone(), actions);
            }
        }
        Ok(wanted)
    }

    /// Sends a file; `observe` sees how many of its bytes are sent.
    pub(super) fn send(
        &self,
        file: &Large<'_>,
        actions: &Actions,
        observe: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.send_bytes(file, actions, observe).or_else(|error| {
            // A storage refuses bytes of another checksum in its own words.
            file.item.require_unchanged()?;
            Err(error)
        })
    }

    fn send_bytes(
        &self,
        file: &Large<'_>,
        actions: &Actions,
        observe: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let Actions { upload, verify } = actions;
        let url = self.address(&upload.href)?;
        let header = upload.header.clone().unwrap_or_default();
        match header.get("chunk_size") {
            None => {
                let whole = Part { item: file.item, start: 0, length: file.item.size };
                let headers: Vec<_> = header.iter().filter_map(text_header).collect();
                let (_, hasher) = self.put(&url, &headers, &whole, &Sha256::new(), observe)?;
                file.require_checksum(hasher)?;
            }
            Some(size) => self.send_parts(file, &url, &header, size, observe)?,
        }
        if let Some(verify) = verify {
            let url = self.address(&verify.href)?;
            let body = json!({"oid": file.oid, "size": file.item.size}).to_string();
            self.client
                .persist(|| self.client.post(&url, Format::Json, body.as_bytes())?.accepted())?;
        }
        Ok(())
    }

    /// Sends a file part by part, then says that it is complete.
    fn send_parts(
        &self,
        file: &Large<'_>,
        url: &Url,
        header: &Map<String, Value>,
        part_size: &Value,
        observe: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let (name, size) = (&file.item.name, file.item.size);
        let part_size = match part_size {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let part_size = part_size.filter(|&size| 0 < size);
        let addresses = part_addresses(header);
        let count = part_size.map(|part| size.div_ceil(part));
        let Some(part_size) = part_size.filter(|_| count == Some(addresses.len() as u64)) else {
            let what = format!("asks for `{name}` in parts that do not fit its {size} bytes");
            return Err(answer_error(url, what));
        };
        let mut hasher = Sha256::new();
        let mut parts = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let start = part_size * at as u64;
            let part = Part { item: file.item, start, length: part_size.min(size - start) };
            let address = self.address(address)?;
            let (reply, after) = self.put(&address, &[], &part, &hasher, observe)?;
            hasher = after;
            let Some(etag) = reply.header("etag").filter(|etag| !etag.is_empty()) else {
                return Err(answer_error(&address, "gives no ETag for the part it took"));
            };
            parts.push(Sent { part_number: at + 1, etag: etag.to_owned() });
        }
        file.require_checksum(hasher)?;
        let body = json!({"oid": file.oid, "parts": parts}).to_string();
        self.client
            .persist(|| self.client.post_signed(url, Format::Lfs, body.as_bytes())?.accepted())?;
        Ok(())
    }

    /// Sends a part, and gives the checksum's state behind it.
    fn put(
        &self,
        url: &Url,
        headers: &[(String, String)],
        part: &Part<'_>,
        hasher: &Sha256,
        observe: &mut dyn FnMut(u64),
    ) -> Result<(Reply, Sha256)> {
        self.client.persist(|| {
            let mut reading = Reading::open(part, hasher.clone(), observe)?;
            let reply = self.client.put(url, headers, part.length, &mut reading);
            if reading.is_short {
                return Err(part.item.changed());
            }
            let reply = reply?;
            if (400..500).contains(&reply.status()) {
                let what = format!(
                    "the storage answers {}; its address may have expired, push again: what is \
                     there already is not sent again",
                    reply.status()
                );
                return Err(answer_error(url, what));
            }
            Ok((reply.accepted()?, reading.hasher))
        })
    }

    /// An address that the hub names.
    fn address(&self, text: &str) -> Result<Url> {
        let own = &self.client.endpoint;
        // A mirror may pass on what the hub said of itself.
        let text = match text.strip_prefix(ENDPOINT).filter(|rest| rest.starts_with('/')) {
            Some(rest) => format!("{}{rest}", own.as_str().trim_end_matches('/')),
            None => text.to_owned(),
        };
        let is_safe = |url: &Url| url.scheme() == "https" || url.scheme() == own.scheme();
        match Url::parse(&text) {
            Ok(url) if url.has_host() && is_safe(&url) => Ok(url),
            _ => {
                let what =
                    "names a storage address that is malformed or less safe (http after https)";
                Err(answer_error(own, what))
            }
        }
    }
}

/// The addresses of parts in order: headers that are named by numbers.
fn part_addresses(header: &Map<String, Value>) -> Vec<String> {
    let numbered = |(name, address): (&String, &Value)| {
        let number: u64 = name.parse().ok()?;
        Some((number, address.as_str()?.to_owned()))
    };
    let mut parts: Vec<(u64, String)> = header.iter().filter_map(numbered).collect();
    parts.sort();
    parts.into_iter().map(|(_, address)| address).collect()
}

/// A header that the storage wants, if it is one.
fn text_header((name, value): (&String, &Value)) -> Option<(String, String)> {
    Some((name.clone(), value.as_str()?.to_owned()))
}

/// A piece of a file.
struct Part<'a> {
    item: &'a Item,
    start: u64,
    length: u64,
}

/// Reads a part from the disk, hashes what is read and tells of it.
struct Reading<'a> {
    file: fs_err::File,
    left: u64,
    at: u64,
    hasher: Sha256,
    /// Whether the file ended before the part did.
    is_short: bool,
    observe: &'a mut dyn FnMut(u64),
}

impl<'a> Reading<'a> {
    fn open(part: &Part<'_>, hasher: Sha256, observe: &'a mut dyn FnMut(u64)) -> Result<Self> {
        let mut file = fs_err::File::open(&part.item.path)?;
        file.seek(SeekFrom::Start(part.start)).map_err(CheckpointError::from)?;
        let (left, at) = (part.length, part.start);
        Ok(Self { file, left, at, hasher, is_short: false, observe })
    }
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            self.is_short = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buffer[..count]);
        self.left -= count as u64;
        self.at += count as u64;
        (self.observe)(self.at);
        Ok(count)
    }
}
