//! Requests to the hub: few redirects, and the token to the first host alone.

use std::io::Read;

use serde::Deserialize;
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};
use url::Url;

use super::Listing;
use super::repository::{Kind, Repository, is_inside, is_plain};
use super::settings::{Settings, Waits};
use crate::{CheckpointError, Result};

pub(super) const MAX_REDIRECTS: usize = 5;
const LISTING_BYTES: u64 = 64 << 20;
pub(super) struct Client {
    pub(super) agent: ureq::Agent,
    pub(super) endpoint: Url,
    pub(super) token: Option<String>,
    pub(super) waits: Waits,
}

/// The last answer after redirects, and what was said of the file on the way there.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) facts: Facts,
    pub(super) response: Response<Body>,
}

/// What headers say of a file. The first host's word counts, and the next one's where it says
/// nothing.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) commit: Option<String>,
    pub(super) etag: Option<String>,
    linked_etag: Option<String>,
    pub(super) size: Option<u64>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
    #[serde(default, rename = "cardData")]
    card: serde_json::Value,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let text = settings.endpoint.trim_end_matches('/');
        let endpoint = match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
            _ => {
                let what = "HF_ENDPOINT must be an address such as https://hub.example.com".into();
                return Err(CheckpointError::HubAnswer { url: text.to_owned(), what });
            }
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0) // They are followed here, where the token is left behind.
            .max_redirects_will_error(false)
            .accept_encoding("identity") // Sizes are those of the files.
            .user_agent(concat!("gradpruner/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(settings.waits.more))
            .timeout_recv_response(Some(settings.waits.more))
            .timeout_per_read(Some(settings.waits.more))
            .timeout_per_write(Some(settings.waits.more))
            .build();
        let bearer = settings.token.as_ref().map(|token| format!("Bearer {token}"));
        let allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if bearer.as_ref().is_some_and(|token| !token.bytes().all(allowed)) {
            let what = "HF_TOKEN holds characters that no token has; copy it again".into();
            return Err(CheckpointError::HubAnswer { url: text.to_owned(), what });
        }
        let waits = settings.waits;
        Ok(Self { agent: config.into(), endpoint, token: bearer, waits })
    }

    /// The files of a repository.
    pub(super) fn listing(&self, repository: &Repository, revision: &str) -> Result<Listing> {
        let Repository { kind, owner, name } = repository;
        let url = self.url(&["api", kind.plural(), owner, name, "revision", revision]);
        let Answer { url, response, .. } = self.get(&url, 0)?;
        let mut text = String::new();
        let read = response.into_body().into_reader().take(LISTING_BYTES).read_to_string(&mut text);
        read.map_err(|error| request_error(&url, error.into()))?;
        let Info { sha, siblings, card } = serde_json::from_str(&text)
            .map_err(|error| answer_error(&url, format!("not a list of files: {error}")))?;
        if !is_plain(&sha) {
            return Err(answer_error(&url, format!("{sha:?} is not a commit; is this a hub?")));
        }
        let files: Vec<_> = siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        if let Some(file) = files.iter().find(|file| !is_inside(file)) {
            let what = format!("lists a file {file:?}, which leads out of its folder");
            return Err(answer_error(&url, what));
        }
        Ok(Listing { commit: sha, files, card })
    }

    /// Where a file of a repository is.
    pub(super) fn file_url(&self, repository: &Repository, revision: &str, file: &str) -> Url {
        let Repository { kind, owner, name } = repository;
        let mut parts: Vec<&str> = match kind {
            Kind::Model => Vec::new(),
            Kind::Dataset => vec![kind.plural()],
        };
        parts.extend([owner, name, "resolve", revision]);
        parts.extend(file.split('/'));
        self.url(&parts)
    }

    pub(super) fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Asks for a file from the byte `start` on.
    pub(super) fn get(&self, first: &Url, start: u64) -> Result<Answer> {
        let mut url = first.clone();
        let mut token = self.token.as_deref();
        let mut facts = Facts::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&url, token, start)?;
            facts.note(response.headers());
            let status = response.status();
            if status.is_success() {
                facts.size = facts.size.or_else(|| whole_size(&response));
                return Ok(Answer { url, facts, response });
            }
            if !status.is_redirection() {
                return Err(refusal(&url, status));
            }
            let next = header(response.headers(), "location").and_then(|to| url.join(to).ok());
            url = match next {
                Some(next) if next.scheme() == "https" || next.scheme() == url.scheme() => next,
                _ => {
                    let what = "redirects to an address that is missing, malformed or less safe \
                                (http after https)";
                    return Err(answer_error(&url, what));
                }
            };
            if url.origin() != first.origin() {
                token = None; // And not again, whatever comes next.
            }
        }
        Err(answer_error(first, format!("redirects more than {MAX_REDIRECTS} times")))
    }

    fn request(&self, url: &Url, token: Option<&str>, start: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url.as_str());
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        if 0 < start {
            request = request.header("range", format!("bytes={start}-"));
        }
        request.call().map_err(|error| request_error(url, error))
    }
}

impl Facts {
    fn note(&mut self, headers: &HeaderMap) {
        let text = |name| header(headers, name).map(str::to_owned);
        self.commit = self.commit.take().or_else(|| text("x-repo-commit"));
        self.etag = self.etag.take().or_else(|| text("etag"));
        self.linked_etag = self.linked_etag.take().or_else(|| text("x-linked-etag"));
        self.size = self
            .size
            .or_else(|| header(headers, "x-linked-size").and_then(|size| size.parse().ok()));
    }

    /// The file's own `ETag`, without quotes: a checksum on the hub.
    pub(super) fn content_etag(&self) -> Option<&str> {
        let etag = self.linked_etag.as_deref().or(self.etag.as_deref())?;
        Some(etag.trim_start_matches("W/").trim_matches('"'))
    }
}

/// The size of the whole file, of which the answer may be a part.
fn whole_size(response: &Response<Body>) -> Option<u64> {
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = header(response.headers(), "content-range")?;
        return range.rsplit_once('/')?.1.parse().ok();
    }
    header(response.headers(), "content-length")?.parse().ok()
}

/// The first byte of the file that the answer holds.
pub(super) fn first_byte(response: &Response<Body>) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    let range = header(response.headers(), "content-range")?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn refusal(url: &Url, status: StatusCode) -> CheckpointError {
    if status.is_server_error() {
        return request_error(url, ureq::Error::StatusCode(status.as_u16()));
    }
    let what = match status.as_u16() {
        401 | 403 => {
            "wants a token that may read it; set HF_TOKEN, and accept the terms on its page"
        }
        404 => return CheckpointError::HubMissing { url: shown(url) },
        429 => "has had too many requests; wait a while, or set HF_TOKEN",
        _ => return answer_error(url, format!("answers {status}")),
    };
    answer_error(url, what)
}

pub(super) fn answer_error(url: &Url, what: impl Into<String>) -> CheckpointError {
    CheckpointError::HubAnswer { url: shown(url), what: what.into() }
}

pub(super) fn request_error(url: &Url, source: ureq::Error) -> CheckpointError {
    CheckpointError::HubRequest { url: shown(url), source: Box::new(source) }
}

/// Without its query, which may hold a signature, and without a password.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}
