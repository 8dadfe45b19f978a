//! The keys of one `config.json`, each as the type it must have and within its bounds.

use std::path::Path;

use serde_json::{Map, Value};

use super::refused::SUPPORTED;
use super::{Family, MOST_POSITIONS, Rope, RopeScaling};
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
        match self.get("model_type").and_then(Value::as_str) {
            Some("llama") => Ok(Family::Llama),
            Some("mistral") => Ok(Family::Mistral),
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            found => {
                let found = found.unwrap_or("missing");
                self.untrained(format!("`model_type` is `{found}`; {SUPPORTED}"))
            }
        }
    }

    pub(super) fn require_silu(&self) -> Result<()> {
        match self.get("hidden_act").map(|name| (name, name.as_str())) {
            None | Some((_, Some("silu" | "swish"))) => Ok(()),
            Some((_, Some(other))) => {
                self.untrained(format!("`hidden_act` is `{other}`; only silu is supported"))
            }
            Some((other, None)) => {
                self.untrained(format!("`hidden_act` is {other}; only silu is supported"))
            }
        }
    }

    /// `rope_theta` and `rope_scaling`, or both in `rope_parameters` (transformers 5).
    pub(super) fn rope(&self) -> Result<Rope> {
        let none = Map::new();
        let inner = match self.either("rope_parameters", "rope_scaling") {
            None => &none,
            Some(Value::Object(map)) => map,
            Some(_) => return self.fail("the rope scaling is no object"),
        };
        let inner = Keys { raw: inner, path: self.path };
        if inner.raw.values().any(Value::is_object) {
            return self.untrained("rope parameters that differ by layer type are not supported");
        }
        let theta = match inner.positive("rope_theta")? {
            Some(theta) => theta,
            None => self.positive("rope_theta")?.unwrap_or(1e4),
        };
        let scaling = match inner.either("rope_type", "type").map(Value::as_str) {
            None | Some(Some("default")) => RopeScaling::Default,
            Some(Some("linear")) => RopeScaling::Linear { factor: inner.scale("factor")? },
            Some(Some("llama3")) => RopeScaling::Llama3 {
                factor: inner.scale("factor")?,
                low_freq_factor: inner.scale("low_freq_factor")?,
                high_freq_factor: inner.scale("high_freq_factor")?,
                original_context: inner.scale("original_max_position_embeddings")?,
            },
            Some(other) => {
                return self.untrained(format!(
                    "rope type `{}` is not supported; default, linear and llama3 are",
                    other.unwrap_or("?")
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => self.fail(format!("`{key}` must be above 0")),
            found => Ok(found),
        }
    }

    /// A number of the rope scaling, which must be there.
    fn scale(&self, key: &str) -> Result<f64> {
        match self.positive(key)? {
            Some(value) => Ok(value),
            None => self.fail(format!("the rope scaling lacks `{key}`")),
        }
    }

    /// Each layer's window: from `layer_types` where it is given, else by the family's old rule.
    pub(super) fn windows(&self, family: Family, num_layers: usize) -> Result<Vec<Option<usize>>> {
        let used = match family {
            Family::Mistral => true,
            Family::Llama => false,
            Family::Qwen2 | Family::Qwen3 => self.flag("use_sliding_window", false)?,
        };
        let window = self.count_or_zero("sliding_window")?.filter(|&window| used && window > 0);
        let Some(types) = self.get("layer_types") else {
            let first = match family {
                // 0 where every layer has a window, as after the first layers were pruned.
                Family::Qwen2 | Family::Qwen3 => {
                    self.count_or_zero("max_window_layers")?.unwrap_or(num_layers)
                }
                Family::Llama | Family::Mistral => 0,
            };
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

    /// A count that may be missing, or 0.
    fn count_or_zero(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key).map(Value::as_u64) {
            Some(Some(0)) => Ok(Some(0)),
            Some(_) => self.count(key, MOST_POSITIONS).map(Some),
            None => Ok(None),
        }
    }
}
