//! What the environment says of the hub, by the names Python's tools use.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{CheckpointError, Result};

/// The hub where no other is named.
pub(super) const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub and its cache are.
pub(super) struct Settings {
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) cache: PathBuf,
    pub(super) offline: bool,
    pub(super) waits: Waits,
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// For a connection, and for more of what is on its way.
    pub(super) more: Duration,
    /// For the answer to what was sent, which the hub puts together first.
    pub(super) answer: Duration,
    /// Before the second attempt; four times as long before the third.
    pub(super) pause: Duration,
}

impl Waits {
    pub(super) const USUAL: Self = Self {
        more: Duration::from_mins(1),
        answer: Duration::from_mins(10),
        pause: Duration::from_secs(1),
    };
}

impl Settings {
    pub(super) fn from_environment() -> Result<Self> {
        let home = home()?;
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            fs_err::read_to_string(path).ok()
        });
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            waits: Waits::USUAL,
        })
    }
}

/// The folder of the cache and the saved token.
fn home() -> Result<PathBuf> {
    if let Some(home) = path("HF_HOME") {
        return Ok(home);
    }
    if let Some(cache) = path("XDG_CACHE_HOME") {
        return Ok(cache.join("huggingface"));
    }
    match env::home_dir() {
        Some(home) => Ok(home.join(".cache/huggingface")),
        None => Err(CheckpointError::HubData {
            name: "HF_HOME".into(),
            what: "is not set, and there is no home folder; set it to where the cache is to be"
                .into(),
        }),
    }
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.is_empty())
}

/// A path, of which `~` is the home folder where no shell has put it in.
fn path(name: &str) -> Option<PathBuf> {
    text(name).map(|text| expanded(&text, env::home_dir().as_deref()))
}

fn expanded(text: &str, home: Option<&Path>) -> PathBuf {
    let below = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match below.zip(home) {
        Some((rest, home)) => home.join(rest.trim_start_matches('/')),
        None => text.into(),
    }
}

fn is_set(name: &str) -> bool {
    text(name).is_some_and(|text| {
        matches!(text.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = Some(Path::new("/home/a"));
        for (text, found) in [
            ("~/hf", "/home/a/hf"),
            ("~", "/home/a"),
            ("~b/hf", "~b/hf"),
            ("/x/~", "/x/~"),
            ("hub", "hub"),
        ] {
            assert_eq!(expanded(text, home), Path::new(found));
        }
        assert_eq!(expanded("~/hf", None), Path::new("~/hf"));
    }
}
