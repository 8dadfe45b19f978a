//! Names: of repositories, of their files, and of what headers give. None leads out of the cache.

use std::fmt;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// As the hub's addresses and the cache's folders begin.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository's name, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) kind: Kind,
    pub(super) owner: String,
    pub(super) name: String,
}

impl Repository {
    /// `owner/name`, if it is one by the hub's rules.
    pub(super) fn parse(kind: Kind, text: &str) -> Option<Self> {
        let (owner, name) = text.split_once('/')?;
        let holds = |part: &str| {
            is_plain(part) && !part.starts_with('-') && !part.contains("--") && !part.contains("..")
        };
        (holds(owner) && holds(name)).then(|| Self {
            kind,
            owner: owner.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Its folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}--{}", self.kind.plural(), self.owner, self.name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// Whether a text from outside may be a file's name as it is: a commit, an `ETag`.
pub(super) fn is_plain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed)
}

/// Whether a path within a repository stays within it.
pub(super) fn is_inside(path: &str) -> bool {
    let holds = |part: &str| (1..=255).contains(&part.len()) && part != "." && part != "..";
    !path.contains(|c: char| c == '\\' || c.is_control()) && path.split('/').all(holds)
}

/// Whether a text is `length` digits of a checksum.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_none() {
        let parses = |text| Repository::parse(Kind::Model, text).is_some();
        for text in ["owner/name", "Qwen/Qwen2.5-0.5B", "a_b/c.d"] {
            assert!(parses(text), "{text}");
        }
        for text in [
            "name", "a/b/c", "../name", "owner/..", "/name", "owner/", "./a", "~/a", "a/b c",
            "a/-b", "a\\b/c", "a--b/c", "a/b..c", "a/b\0", "ä/b",
        ] {
            assert!(!parses(text), "{text}");
        }
    }

    #[test]
    fn paths_that_lead_out_are_none() {
        for path in ["config.json", "a/b/c.parquet", "a b/ü.jsonl", "..a"] {
            assert!(is_inside(path), "{path}");
        }
        for path in ["", "/etc/passwd", "../a", "a/../b", "a//b", "a\\..\\b", "a/", ".", "a\0"] {
            assert!(!is_inside(path), "{path}");
        }
    }
}
