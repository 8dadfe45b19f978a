//! Where a decoder's layers are, by the names of its tensors and the keys of its configuration, whatever its family.

mod follow;
mod parts;
mod tried;
mod written_out;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::names::LayerTensor;
use crate::{CheckpointError, MOST_LAYERS, ModelConfig, Result};

pub(crate) use parts::{is_of_another_part, layer_and_rest, numbered};
pub(crate) use written_out::write_out;

/// Keys that count a decoder's layers.
const COUNTS: [&str; 5] =
    ["num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers"];
/// Keys that count the layers behind these that predict further tokens.
const PREDICTING: [&str; 2] = ["num_nextn_predict_layers", "num_mtp_layers"];

/// The layers of a checkpoint's decoder: the tensors whose names repeat by a number, and the parts of `config.json` that
/// count and list them.
#[derive(Debug, Clone)]
pub struct Outline {
    path: PathBuf,
    raw: Map<String, Value>,
    /// What stands before a layer's number in a tensor's name, such as `model.layers`.
    container: String,
    num_layers: usize,
    /// Layers numbered behind the others that predict further tokens.
    predicting: usize,
    /// The objects of the configuration that count the layers, each by the keys that lead to it.
    sections: Vec<Vec<String>>,
}

impl Outline {
    /// Makes sense of a parsed `config.json` and the names of the tensors it belongs to; `path` is for messages only.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Config`] if no object counts layers, or not exactly one group of tensors has as many.
    pub fn new<'a>(
        raw: Map<String, Value>,
        path: &Path,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self> {
        let fail = |what: String| Err(CheckpointError::config(path, what));
        let groups = groups(names);
        let mut counted = Vec::new();
        find_counts(&raw, &mut Vec::new(), &mut counted);
        if counted.is_empty() {
            let keys = COUNTS.map(|key| format!("`{key}`")).join(", ");
            return fail(format!("nothing in it counts a decoder's layers; it has none of {keys}"));
        }
        let mut found = fits(&raw, &counted, &groups).into_iter();
        let Some(Fit { container, num_layers, predicting, sections }) = found.next() else {
            let counts: BTreeSet<usize> = counted.iter().map(|(_, count)| *count).collect();
            let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
            let counts = counts.join(" or ");
            let there = groups.iter().map(|(name, numbers)| format!("`{name}` {}", numbers.len()));
            return fail(format!(
                "it counts {counts} layers, and no group of numbered tensors has as many ({}); is it of this model?",
                there.collect::<Vec<_>>().join(", ")
            ));
        };
        if let Some(Fit { container: other, .. }) = found.next() {
            return fail(format!(
                "which layers are the decoder's is not clear: `{container}` and `{other}` both have as many as it counts"
            ));
        }
        let container = container.to_owned();
        let path = path.to_owned();
        Ok(Self { path, raw, container, num_layers, predicting, sections })
    }

    /// Those of a model of the engine's families; `path` is for messages only.
    pub(crate) fn of(config: &ModelConfig, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            raw: config.raw().clone(),
            container: "model.layers".into(),
            num_layers: config.num_layers,
            predicting: 0,
            sections: vec![Vec::new()],
        }
    }

    /// How many layers there are.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// What stands before a layer's number in a tensor's name, such as `model.layers`.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The family's name, as `model_type` says it where layers are counted.
    pub fn family(&self) -> &str {
        let of = |keys: &[String]| section(&self.raw, keys)?.get("model_type")?.as_str();
        let inner = self.sections.iter().rev().find_map(|keys| of(keys));
        inner.or_else(|| of(&[])).unwrap_or("unnamed")
    }

    /// Whether models of this family were pruned and gave transformers' own logits. Another's code may go by a layer's number
    /// in a way that no key says.
    pub fn is_tried(&self) -> bool {
        tried::TRIED.contains(&self.family())
    }

    /// Whether linear weights are stored as `[in, out]` (GPT-2's `Conv1D`).
    pub fn stores_transposed(&self) -> bool {
        matches!(self.family(), "gpt2" | "decision_transformer" | "imagegpt")
    }

    /// The parsed `config.json`.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// A number of the configuration where layers are counted.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.sections.iter().find_map(|keys| section(&self.raw, keys)?.get(key)?.as_u64())
    }

    /// Takes the name of a layer's tensor apart; `None` for what stands outside the layers.
    pub fn layer_tensor<'a>(&self, name: &'a str) -> Option<LayerTensor<'a>> {
        let rest = name.strip_prefix(self.container.as_str())?.strip_prefix('.')?;
        let (layer, rest) = layer_and_rest(rest)?;
        Some(LayerTensor { layer, rest })
    }

    /// The name that a tensor has once only the layers `retained` are left; `None` if its layer goes.
    pub fn name_among(&self, name: &str, retained: &[usize]) -> Option<String> {
        let Some(LayerTensor { layer, rest }) = self.layer_tensor(name) else {
            return Some(name.to_owned());
        };
        let position = match layer.checked_sub(self.num_layers) {
            Some(behind) if behind < self.predicting => retained.len() + behind,
            Some(_) => return None,
            None => retained.iter().position(|&kept| kept == layer)?,
        };
        Some(format!("{}.{position}.{rest}", self.container))
    }

    /// `config.json` for the same model with only the layers `retained`, ascending: whatever counts or lists layers
    /// follows, and what the family's code works out of a layer's number is written out where it has a list for it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Config`] if a layer would be another at its new number and no key can say what it was.
    pub fn with_layers(&self, retained: &[usize]) -> Result<Map<String, Value>> {
        let mut raw = self.raw.clone();
        for keys in &self.sections {
            if let Some(section) = section_mut(&mut raw, keys) {
                follow::follow(section, retained, self.num_layers, self.predicting)
                    .map_err(|what| CheckpointError::config(&self.path, what))?;
            }
        }
        follow::require_seen_layers(&self.raw, retained)
            .map_err(|what| CheckpointError::config(&self.path, what))?;
        Ok(raw)
    }
}

/// A group of tensors with as many numbers as an object of the configuration counts layers.
struct Fit<'a> {
    container: &'a str,
    num_layers: usize,
    predicting: usize,
    sections: Vec<Vec<String>>,
}

/// Every group that fits, with all objects that count its layers.
fn fits<'a>(
    raw: &Map<String, Value>,
    counted: &[(Vec<String>, usize)],
    groups: &BTreeMap<&'a str, BTreeSet<usize>>,
) -> Vec<Fit<'a>> {
    let mut found: Vec<Fit<'a>> = Vec::new();
    for (keys, count) in counted {
        let more = PREDICTING.iter().find_map(|&key| section(raw, keys)?.get(key)?.as_u64());
        let more = usize::try_from(more.unwrap_or(0)).unwrap_or(usize::MAX);
        for (&container, numbers) in groups {
            // All that are counted, without a gap, and of those behind them none or all.
            let last = numbers.last().map_or(0, |last| last + 1);
            let all = [*count, count.saturating_add(more)].contains(&last);
            if !all || numbers.len() != last {
                continue;
            }
            let same = |fit: &&mut Fit<'_>| (fit.container, fit.num_layers) == (container, *count);
            if let Some(fit) = found.iter_mut().find(same) {
                fit.sections.push(keys.clone());
            } else {
                let (num_layers, sections) = (*count, vec![keys.clone()]);
                found.push(Fit { container, num_layers, predicting: last - count, sections });
            }
        }
    }
    found
}

/// The numbers that follow each name under which tensors are numbered, other parts of a model left out.
fn groups<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, BTreeSet<usize>> {
    let mut groups: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        let Some((container, layer, _)) = numbered(name) else { continue };
        if !is_of_another_part(container) && layer < MOST_LAYERS {
            groups.entry(container).or_default().insert(layer);
        }
    }
    groups
}

/// Finds the objects that count layers, and how many: the decoder's, not those of another part.
fn find_counts(
    object: &Map<String, Value>,
    keys: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, usize)>,
) {
    let count = COUNTS.iter().find_map(|&key| object.get(key)?.as_u64());
    if let Some(count) = count
        && (1..=MOST_LAYERS as u64).contains(&count)
    {
        found.push((keys.clone(), count as usize));
    }
    for (key, value) in object {
        if let Value::Object(inner) = value
            && key.ends_with("_config")
            && !is_of_another_part(key)
        {
            keys.push(key.clone());
            find_counts(inner, keys, found);
            keys.pop();
        }
    }
}

fn section<'a>(raw: &'a Map<String, Value>, keys: &[String]) -> Option<&'a Map<String, Value>> {
    keys.iter().try_fold(raw, |object, key| object.get(key)?.as_object())
}

fn section_mut<'a>(
    raw: &'a mut Map<String, Value>,
    keys: &[String],
) -> Option<&'a mut Map<String, Value>> {
    keys.iter().try_fold(raw, |object, key| object.get_mut(key)?.as_object_mut())
}

#[cfg(test)]
mod tests;
