//! The keys of one `config.json`, each as the type it must have and within its bounds.

use std::path::Path;

use serde_json::{Map, Value};

use super::refused::supported;
use super::{Family, MOST_POSITIONS};
use crate::{CheckpointError, Result};

/// The keys of one file, with errors that name it.
pub(super) struct Keys<'a> {
    pub(super) raw: &'a Map<String, Value>,
    pub(super) path: &'a Path,
}

impl Keys<'_> {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.raw.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn either(&self, new: &str, old: &str) -> Option<&Value> {
        self.get(new).or_else(|| self.get(old))
    }

    pub(super) fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(CheckpointError::config(self.path, what))
    }

    /// Of a model that is not trained, and may be pruned.
    pub(super) fn untrained<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(CheckpointError::untrained(self.path, what))
    }

    /// A count that must be there, of at least one.
    pub(super) fn count(&self, key: &str, most: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return self.fail(format!("`{key}` is missing; is this a model's config.json?"));
        };
        match value.as_u64() {
            Some(0) | None => self.fail(format!("`{key}` must be a positive whole number")),
            Some(count) if count > most as u64 => {
                self.fail(format!("`{key}` is {count}; {most} is the most that is supported"))
            }
            Some(count) => Ok(count as usize),
        }
    }

    pub(super) fn count_or(&self, key: &str, default: usize, most: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count(key, most) } else { Ok(default) }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(number)) if number.is_finite() => Ok(Some(number)),
            Some(_) => self.fail(format!("`{key}` must be a number")),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key).map(Value::as_bool) {
            None => Ok(default),
            Some(Some(flag)) => Ok(flag),
            Some(None) => self.fail(format!("`{key}` must be true or false")),
        }
    }

    pub(super) fn family(&self) -> Result<Family> {
        let found = self.get("model_type").and_then(Value::as_str).unwrap_or("missing");
        match Family::ALL.into_iter().find(|family| family.name() == found) {
            Some(family) => Ok(family),
            None => self.untrained(format!("`model_type` is `{found}`; {}", supported())),
        }
    }

    /// Refuses another activation than the one the family has.
    pub(super) fn require_activation(&self, key: &str, names: &[&str]) -> Result<()> {
        let Some(value) = self.get(key) else { return Ok(()) };
        match value.as_str() {
            Some(name) if names.contains(&name) => Ok(()),
            Some(name) => {
                self.untrained(format!("`{key}` is `{name}`; only {} is supported", names[0]))
            }
            None => self.untrained(format!("`{key}` is {value}; only {} is supported", names[0])),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => self.fail(format!("`{key}` must be above 0")),
            found => Ok(found),
        }
    }

    /// Each layer's window, if some have one: by `layer_types` where it is given, else all from layer `first` on.
    pub(super) fn windows(
        &self,
        num_layers: usize,
        window: Option<usize>,
        first: usize,
    ) -> Result<Vec<Option<usize>>> {
        let Some(types) = self.get("layer_types") else {
            return Ok((0..num_layers).map(|layer| window.filter(|_| first <= layer)).collect());
        };
        let Some(types) = types.as_array().filter(|types| types.len() == num_layers) else {
            let found = types.as_array().map_or(0, Vec::len);
            return self.fail(format!("`layer_types` has {found} entries for {num_layers} layers"));
        };
        types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(window),
                _ => self.untrained(format!("layer type {kind} is not supported")),
            })
            .collect()
    }

    /// `sliding_window`, if there is one of a token or more.
    pub(super) fn window(&self) -> Result<Option<usize>> {
        Ok(self.count_or_zero("sliding_window")?.filter(|&window| window > 0))
    }

    /// A count that may be missing, or 0.
    pub(super) fn count_or_zero(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key).map(Value::as_u64) {
            Some(Some(0)) => Ok(Some(0)),
            Some(_) => self.count(key, MOST_POSITIONS).map(Some),
            None => Ok(None),
        }
    }
}
