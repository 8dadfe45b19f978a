//! How positions turn into rotation angles, in transformers' spellings, old and new.

use serde_json::{Map, Value};

use super::keys::Keys;
use crate::{CheckpointError, Result};

/// How positions turn into rotation angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How many of a head's dimensions are rotated; the others are left as they are.
    pub dims: usize,
    /// What stretches the frequencies for longer contexts.
    pub scaling: RopeScaling,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f64,
}

/// How `rope_scaling` (or `rope_parameters`) changes the rotation frequencies.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are config.json's keys")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: f64 },
    /// YaRN (arXiv 2309.00071): pairs up to `low` kept, from `high` on divided by `factor`, a ramp between; both follow from
    /// `original_context` and from how often pairs turn in it.
    Yarn { factor: f64, low: f64, high: f64, original_context: f64, turns: YarnTurns },
    /// LongRoPE (arXiv 2402.13753): each pair's frequency divided by its own factor, by `long` where rows are longer than
    /// `original_context`.
    Long { short: Vec<f64>, long: Vec<f64>, original_context: usize },
}

/// How often pairs of dimensions turn within the original context where YaRN's ramp begins and ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnTurns {
    /// From here on pairs are kept; `None` for 32.
    pub beta_fast: Option<f64>,
    /// Up to here their frequencies are divided; `None` for 1.
    pub beta_slow: Option<f64>,
    /// Whether the ramp reaches from one whole pair to another.
    pub is_truncated: bool,
}

/// YaRN's factor of cosines and sines for a context longer by `scale`, `0.1 · by · ln(scale) + 1`.
pub(crate) fn yarn_attention(scale: f64, by: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * by * scale.ln() + 1.0 }
}

impl Keys<'_> {
    /// The one rotation of all layers, of `dims` of a head's dimensions: `rope_theta` and `rope_scaling`, or both in
    /// `rope_parameters` (transformers 5).
    pub(super) fn rope(&self, dims: usize, theta: f64) -> Result<Rope> {
        let none = Map::new();
        let inner = match self.either("rope_parameters", "rope_scaling") {
            None => &none,
            Some(Value::Object(map)) => map,
            Some(_) => return self.fail("the rope scaling is no object"),
        };
        if inner.values().any(Value::is_object) {
            return self.untrained("rope parameters that differ by layer type are not supported");
        }
        let theta = self.positive("rope_theta")?.unwrap_or(theta);
        self.rope_of(inner, dims, theta)
    }

    /// The rotation that an object describes; `theta` where it says none.
    pub(super) fn rope_of(
        &self,
        inner: &Map<String, Value>,
        dims: usize,
        theta: f64,
    ) -> Result<Rope> {
        let inner = Keys { raw: inner, path: self.path };
        let theta = inner.positive("rope_theta")?.unwrap_or(theta);
        let (scaling, attention_factor) = match inner.either("rope_type", "type").map(Value::as_str)
        {
            None | Some(Some("default")) => (RopeScaling::Default, 1.0),
            Some(Some("linear")) => (RopeScaling::Linear { factor: inner.scale("factor")? }, 1.0),
            Some(Some("llama3")) => {
                let scaling = RopeScaling::Llama3 {
                    factor: inner.scale("factor")?,
                    low_freq_factor: inner.scale("low_freq_factor")?,
                    high_freq_factor: inner.scale("high_freq_factor")?,
                    original_context: inner.scale("original_max_position_embeddings")?,
                };
                (scaling, 1.0)
            }
            Some(Some("yarn")) => self.yarn(&inner, dims, theta)?,
            // Phi-3's configurations call it "su", too.
            Some(Some("longrope" | "su")) => self.long_rope(&inner, dims)?,
            Some(other) => {
                return self.untrained(format!(
                    "rope type `{}` is not supported; default, linear, llama3, yarn and longrope are",
                    other.unwrap_or("?")
                ));
            }
        };
        Ok(Rope { theta, dims, scaling, attention_factor })
    }

    /// The context that the model was first trained with.
    fn original_context(&self, inner: &Keys<'_>) -> Result<f64> {
        let key = "original_max_position_embeddings";
        match inner.positive(key)?.or(self.positive(key)?) {
            Some(context) => Ok(context),
            None => self.scale("max_position_embeddings"),
        }
    }

    /// By how much the context is longer than it was first.
    fn stretch(&self, inner: &Keys<'_>, original: f64) -> Result<f64> {
        match inner.positive("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.scale("max_position_embeddings")? / original),
        }
    }

    fn yarn(&self, inner: &Keys<'_>, dims: usize, theta: f64) -> Result<(RopeScaling, f64)> {
        let original = self.original_context(inner)?;
        let factor = self.stretch(inner, original)?;
        if theta <= 1.0 {
            let what = "YaRN needs a `rope_theta` above 1";
            return Err(CheckpointError::config(self.path, what));
        }
        let given = inner.positive("attention_factor")?;
        let scales = (inner.positive("mscale")?, inner.positive("mscale_all_dim")?);
        let attention_factor = match (given, scales) {
            (Some(given), _) => given,
            (None, (Some(one), Some(all))) => {
                yarn_attention(factor, one) / yarn_attention(factor, all)
            }
            _ => yarn_attention(factor, 1.0),
        };
        let turns = YarnTurns {
            beta_fast: inner.positive("beta_fast")?,
            beta_slow: inner.positive("beta_slow")?,
            is_truncated: inner.flag("truncate", true)?,
        };
        let pair = |turns: f64| {
            let wavelengths = original / (turns * 2.0 * std::f64::consts::PI);
            dims as f64 * wavelengths.ln() / (2.0 * theta.ln())
        };
        let mut low = pair(turns.beta_fast.unwrap_or(32.0));
        let mut high = pair(turns.beta_slow.unwrap_or(1.0));
        if turns.is_truncated {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        let scaling = RopeScaling::Yarn { factor, low, high, original_context: original, turns };
        Ok((scaling, attention_factor))
    }

    fn long_rope(&self, inner: &Keys<'_>, dims: usize) -> Result<(RopeScaling, f64)> {
        let original = self.original_context(inner)?;
        let factor = self.stretch(inner, original)?;
        if original <= 1.0 {
            let what = "longrope needs an `original_max_position_embeddings` above 1";
            return Err(CheckpointError::config(self.path, what));
        }
        let attention_factor = match inner.positive("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let list = |key: &str| -> Result<Vec<f64>> {
            let found = inner.get(key).and_then(Value::as_array);
            let numbers: Option<Vec<f64>> =
                found.and_then(|list| list.iter().map(Value::as_f64).collect());
            let good = |list: &Vec<f64>| list.len() == dims / 2 && list.iter().all(|x| *x > 0.0);
            numbers.filter(good).ok_or_else(|| {
                let what =
                    format!("the rope scaling's `{key}` must be {} numbers above 0", dims / 2);
                CheckpointError::config(self.path, what)
            })
        };
        let (short, long) = (list("short_factor")?, list("long_factor")?);
        Ok((
            RopeScaling::Long { short, long, original_context: original as usize },
            attention_factor,
        ))
    }

    /// A number of the rope scaling, which must be there.
    fn scale(&self, key: &str) -> Result<f64> {
        match self.positive(key)? {
            Some(value) => Ok(value),
            None => self.fail(format!("the rope scaling lacks `{key}`")),
        }
    }
}
