//! What the environment says of the hub, by the names Python's tools use.

use std::env;
use std::path::PathBuf;

use crate::{CheckpointError, Result};

/// The hub where no other is named.
pub(super) const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub and its cache are.
pub(super) struct Settings {
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) cache: PathBuf,
    pub(super) offline: bool,
}

impl Settings {
    pub(super) fn from_environment() -> Result<Self> {
        let home = home()?;
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let path = text("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            fs_err::read_to_string(path).ok()
        });
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache: text("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
        })
    }
}

/// The folder of the cache and the saved token.
fn home() -> Result<PathBuf> {
    if let Some(home) = text("HF_HOME") {
        return Ok(home.into());
    }
    if let Some(cache) = text("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(cache).join("huggingface"));
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

fn is_set(name: &str) -> bool {
    text(name).is_some_and(|text| {
        matches!(text.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
    })
}
