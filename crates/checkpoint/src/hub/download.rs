//! One file into the cache: fetched under a temporary name, resumed, checked, then renamed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Digest, Sha256};
use url::Url;

use super::cache::{Cache, link};
use super::client::{Answer, Client, answer_error, first_byte, request_error};
use super::repository::{Repository, is_hex, is_plain};
use crate::digest::hex;
use crate::{Result, remove_if_there};

/// How often a transfer that breaks off is taken up again.
const ATTEMPTS: usize = 3;
/// The most a file may have whose size the hub does not say.
const UNSIZED_BYTES: u64 = 64 << 20;

/// Brings files of one repository into the cache.
pub(super) struct Fetcher<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a Cache,
    pub(super) repository: &'a Repository,
    pub(super) revision: &'a str,
}

/// What a file must be.
struct Expected<'a> {
    url: &'a Url,
    etag: &'a str,
    size: Option<u64>,
}

impl Fetcher<'_> {
    /// Sees to it that `file` of `commit` is in the cache.
    pub(super) fn fetch(&self, commit: &str, file: &str) -> Result<()> {
        let pointer = self.cache.snapshot(self.repository, commit).join(file);
        if pointer.is_file() {
            return Ok(());
        }
        tracing::info!(name = self.repository.to_string(), file, "fetching");
        let url = self.client.file_url(self.repository, self.revision, file);
        let answer = self.client.persist(|| self.client.get(&url, 0))?;
        if answer.facts.commit.as_deref().is_some_and(|found| found != commit) {
            let what =
                "is of another commit than the list of files; try again, it may have changed";
            return Err(answer_error(&url, what));
        }
        let etag = match answer.facts.content_etag() {
            Some(etag) if is_plain(etag) => etag.to_owned(),
            Some(found) => {
                let what = format!("its ETag `{found}` is not usable as a file's name");
                return Err(answer_error(&url, what));
            }
            None => return Err(answer_error(&url, "gives no ETag; is this a hub?")),
        };
        let expected = Expected { url: &url, etag: &etag, size: answer.facts.size };
        let blob = self.blob(&expected, answer)?;
        let _held = self.cache.hold_names(self.repository)?;
        // Another process may have been here meanwhile, and read it already.
        if pointer.is_file() {
            return Ok(());
        }
        link(&blob, &pointer)
    }

    /// The file's contents in the cache, fetched if they are not there.
    fn blob(&self, expected: &Expected<'_>, answer: Answer) -> Result<PathBuf> {
        let blob = self.cache.blob(self.repository, expected.etag);
        let lock = self.cache.lock(self.repository, expected.etag);
        for folder in [&blob, &lock].into_iter().filter_map(|path| path.parent()) {
            fs_err::create_dir_all(folder)?;
        }
        // Another process may be fetching it; the system frees the lock when we end.
        let lock = fs_err::OpenOptions::new().create(true).append(true).open(lock)?;
        lock.lock()?;
        if let Ok(found) = fs_err::metadata(&blob) {
            if expected.size.is_none_or(|size| size == found.len()) {
                return Ok(blob);
            }
            fs_err::remove_file(&blob)?; // Not what it says it is.
        }
        let aside = blob.with_file_name(format!("{}.incomplete", expected.etag));
        self.transfer(expected, answer, &aside)?;
        if let Err(error) = check(expected, &aside) {
            remove_if_there(&aside)?;
            return Err(error);
        }
        fs_err::File::open(&aside)?.sync_all()?;
        fs_err::rename(&aside, &blob)?;
        Ok(blob)
    }

    /// Fills `aside`, from where an earlier attempt stopped.
    fn transfer(&self, expected: &Expected<'_>, answer: Answer, aside: &Path) -> Result<()> {
        // Parts are put together only where a checksum tells whether they belong together.
        let begun = match fs_err::metadata(aside) {
            Ok(found) if has_checksum(expected.etag) => found.len(),
            _ => 0,
        };
        let mut answer = if begun == 0 { Some(answer) } else { None };
        for attempt in 1.. {
            let at = fs_err::metadata(aside).map_or(0, |found| found.len());
            let resume =
                has_checksum(expected.etag) && expected.size.is_some_and(|size| at <= size);
            let start = if resume { at } else { 0 };
            if 0 < start && expected.size == Some(start) {
                return Ok(());
            }
            let result = match answer.take() {
                Some(answer) => receive(expected, answer, aside),
                None => self
                    .client
                    .get(expected.url, start)
                    .and_then(|answer| receive(expected, answer, aside)),
            };
            match result {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    tracing::warn!(%error, "the transfer broke off; it goes on from there");
                    self.client.pause(attempt);
                }
                result => return result,
            }
        }
        Ok(())
    }
}

/// Writes an answer's body where it belongs in `aside`, never past the file's size.
fn receive(expected: &Expected<'_>, answer: Answer, aside: &Path) -> Result<()> {
    let Answer { url, response, .. } = answer;
    let Some(start) = first_byte(&response) else {
        return Err(answer_error(&url, "gives a part of the file without saying which"));
    };
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(aside)?;
    let at = file.metadata()?.len();
    if start == 0 {
        file.set_len(0)?;
    } else if start != at {
        return Err(answer_error(&url, format!("gives bytes from {start} on instead of {at}")));
    }
    let limit = expected.size.unwrap_or(UNSIZED_BYTES).saturating_sub(start);
    let body = response.into_body().into_reader();
    let mut body = body.take(limit + 1); // One more, so that a longer body is seen.
    let mut buffer = vec![0; 1 << 18];
    loop {
        match body.read(&mut buffer).map_err(|error| request_error(&url, error.into()))? {
            0 => return Ok(file.flush()?),
            count => file.write_all(&buffer[..count])?,
        }
    }
}

fn has_checksum(etag: &str) -> bool {
    is_hex(etag, 64) || is_hex(etag, 40)
}

/// Compares a fetched file with its size and, where its `ETag` is one, its checksum: SHA-256, or
/// for small files git's SHA-1.
fn check(expected: &Expected<'_>, path: &Path) -> Result<()> {
    let Expected { url, etag, size } = *expected;
    let length = fs_err::metadata(path)?.len();
    if size.is_some_and(|size| size != length) || (size.is_none() && UNSIZED_BYTES < length) {
        let expected =
            size.map_or_else(|| format!("at most {UNSIZED_BYTES}"), |size| size.to_string());
        let what = format!("gave {length} bytes where {expected} were due; try again");
        return Err(answer_error(url, what));
    }
    let etag = etag.to_ascii_lowercase();
    let found = Contents::of(path, length, &etag)?;
    let holds = found.checksums.is_empty() || found.checksums.contains(&etag);
    if !holds {
        return Err(answer_error(url, "gave bytes that differ from their checksum; try again"));
    }
    if found.only_zeros && 0 < length {
        return Err(answer_error(url, "gave nothing but zeros; try again, or another hub"));
    }
    Ok(())
}

/// What a file's bytes say.
struct Contents {
    /// In hex, by each algorithm that the `ETag` may be of; none if it is no checksum.
    checksums: Vec<String>,
    only_zeros: bool,
}

impl Contents {
    fn of(path: &Path, length: u64, etag: &str) -> Result<Self> {
        let mut hashers: Vec<Box<dyn DynDigest>> = Vec::new();
        if is_hex(etag, 64) {
            hashers.push(Box::new(Sha256::new()));
        } else if is_hex(etag, 40) {
            let mut git = Sha1::new();
            Digest::update(&mut git, format!("blob {length}\0"));
            // Some mirrors give the plain SHA-1.
            hashers.extend([Box::new(git) as Box<dyn DynDigest>, Box::new(Sha1::new())]);
        }
        let mut only_zeros = true;
        let mut file = fs_err::File::open(path)?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            only_zeros = only_zeros && bytes.iter().all(|&byte| byte == 0);
            for hasher in &mut hashers {
                hasher.update(bytes);
            }
        }
        let checksums = hashers.into_iter().map(|hasher| hex(&hasher.finalize())).collect();
        Ok(Self { checksums, only_zeros })
    }
}
