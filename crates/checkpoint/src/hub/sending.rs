//! Requests that change the hub: bodies that are sent again where a redirect asks for it, and the
//! hub's own words where it refuses.

use std::io::Read;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::typestate::WithBody;
use ureq::{Body, RequestBuilder, SendBody};
use url::Url;

use super::client::{Client, MAX_REDIRECTS, answer_error, header, request_error};
use crate::{CheckpointError, Result};

/// How often a request that breaks off is made.
pub(super) const ATTEMPTS: usize = 3;
/// The most that is read of an answer.
const ANSWER_BYTES: u64 = 16 << 20;

/// A body's kind, as its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    /// Lines of JSON.
    Lines,
    /// As git-lfs's servers want it.
    Lfs,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Lfs => "application/vnd.git-lfs+json",
        }
    }

    fn accept(self) -> &'static str {
        match self {
            Self::Json | Self::Lines => "application/json",
            Self::Lfs => self.content_type(),
        }
    }
}

/// What a request came to, good or bad.
pub(super) struct Reply {
    url: Url,
    response: Response<Body>,
}

/// What a refusal says of itself.
#[derive(Default, Deserialize)]
struct Reason {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Client {
    /// Sends a body. The token goes along to the hub alone.
    pub(super) fn post(&self, url: &Url, format: Format, body: &[u8]) -> Result<Reply> {
        let is_hub = url.origin() == self.endpoint.origin();
        self.send(url, format, body, self.token.as_deref().filter(|_| is_hub))
    }

    /// Sends a body to an address that holds its own permission.
    pub(super) fn post_signed(&self, url: &Url, format: Format, body: &[u8]) -> Result<Reply> {
        self.send(url, format, body, None)
    }

    /// Sends a body, after redirects within one host too.
    fn send(&self, first: &Url, format: Format, body: &[u8], token: Option<&str>) -> Result<Reply> {
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let request = self.agent.post(url.as_str());
            let request = request.header("content-type", format.content_type());
            let mut request = request.header("accept", format.accept());
            if let Some(token) = token {
                request = request.header("authorization", token);
            }
            let request = patient(request, self.waits.answer);
            let response = request.send(body).map_err(|error| request_error(&url, error))?;
            if !matches!(response.status().as_u16(), 307 | 308) {
                return Ok(Reply { url, response });
            }
            let next = header(response.headers(), "location").and_then(|to| url.join(to).ok());
            url = match next {
                Some(next) if next.origin() == url.origin() => next,
                _ => {
                    let what = "redirects what is sent to another host; check HF_ENDPOINT";
                    return Err(answer_error(&url, what));
                }
            };
        }
        Err(answer_error(first, format!("redirects more than {MAX_REDIRECTS} times")))
    }

    /// Sends `size` bytes to where a hub wants them, with the headers it names and no token.
    pub(super) fn put(
        &self,
        url: &Url,
        headers: &[(String, String)],
        size: u64,
        body: &mut dyn Read,
    ) -> Result<Reply> {
        let mut request = self.agent.put(url.as_str()).header("content-length", size);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = patient(request, self.waits.answer);
        let sent = request.send(SendBody::from_reader(body));
        let response = sent.map_err(|error| request_error(url, error))?;
        Ok(Reply { url: url.clone(), response })
    }

    /// Asks the hub, without a body.
    pub(super) fn ask<T: DeserializeOwned>(&self, url: &Url) -> Result<T> {
        let answer = self.get(url, 0)?;
        Reply { url: answer.url, response: answer.response }.json()
    }
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }

    /// Itself, if the hub did what it was asked for.
    pub(super) fn accepted(self) -> Result<Self> {
        let status = self.response.status();
        if status.is_success() { Ok(self) } else { Err(self.refusal(status)) }
    }

    /// What it says.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<T> {
        let Self { url, response } = self.accepted()?;
        let mut text = String::new();
        let body = response.into_body().into_reader();
        body.take(ANSWER_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| request_error(&url, error.into()))?;
        serde_json::from_str(&text).map_err(|error| {
            answer_error(&url, format!("its answer is not understood: {error}; is this a hub?"))
        })
    }

    fn refusal(self, status: StatusCode) -> CheckpointError {
        let Self { url, response } = self;
        if status.is_server_error() {
            return request_error(&url, ureq::Error::StatusCode(status.as_u16()));
        }
        let code = header(response.headers(), "x-error-code").unwrap_or_default().to_owned();
        let what = match status.as_u16() {
            401 | 403 => {
                "does not let this token write; set HF_TOKEN to one with write access to the repository"
                    .into()
            }
            404 if code == "RevisionNotFound" => {
                "has no such branch; make it on the repository's page, or push without --revision"
                    .into()
            }
            404 => return CheckpointError::HubMissing { url: super::client::shown(&url) },
            429 => "has had too many requests; wait a while, and push again".into(),
            _ => format!("answers {status}"),
        };
        match reason(response) {
            Some(reason) => answer_error(&url, format!("{what} (the hub says: {reason})")),
            None => answer_error(&url, what),
        }
    }
}

/// Waits as long as that for each part of an answer.
fn patient(request: RequestBuilder<WithBody>, wait: Duration) -> RequestBuilder<WithBody> {
    let wait = Some(wait);
    request.config().timeout_recv_response(wait).timeout_per_read(wait).build()
}

/// The first words of what the hub says of a refusal, on one line.
fn reason(response: Response<Body>) -> Option<String> {
    let mut text = String::new();
    response.into_body().into_reader().take(1 << 16).read_to_string(&mut text).ok()?;
    let reason: Reason = serde_json::from_str(&text).ok()?;
    let said = reason.error.or(reason.message)?;
    let words: Vec<&str> = said.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line: String = words.join(" ").chars().take(300).collect();
    Some(line).filter(|line| !line.trim().is_empty())
}

impl Client {
    /// Makes an attempt until it succeeds or there is no more hope in it.
    pub(super) fn persist<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let mut made = 1;
        loop {
            match attempt() {
                Err(error) if error.is_passing() && made < ATTEMPTS => {
                    tracing::warn!(%error, "the request failed; it is made again");
                    self.pause(made);
                    made += 1;
                }
                result => return result,
            }
        }
    }

    /// Lets whatever it was pass, after so many attempts.
    pub(super) fn pause(&self, made: usize) {
        thread::sleep(self.waits.pause * 4_u32.pow(made.saturating_sub(1) as u32));
    }
}
