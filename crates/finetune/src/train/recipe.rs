//! What a step depends on besides the state that is saved: what identifies a training.

use std::fmt;
use std::ops::Range;

use checkpoint::sha256_bytes;
use dataset::Example;
use serde::Serialize;
use serde_json::{Map, Value};

use super::settings::{Method, TrainSettings};
use crate::{DistilSettings, LoraSettings};

/// Exactly what a step depends on, besides the trained tensors, the optimizer's means and the type of the products.
///
/// Its JSON lies in a saved state, under the names that a user knows the settings by. What changes no step is not
/// in it: how activations are kept, how often states are saved, and (but for hidden states compared with a teacher's, whose
/// weight falls over half of the steps taken) where a training is cut short.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Recipe {
    /// How many layers the model has.
    num_layers: usize,
    /// What tells the model from another, where a training begins with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_sha256: Option<String>,
    /// The type of the frozen weights, where it is not the stored one.
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen_weights: Option<&'static str>,
    method: &'static str,
    #[serde(flatten)]
    lora: Option<LoraRecipe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_layers: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_layers: Option<usize>,
    batch_rows: usize,
    accumulate: usize,
    epochs: f64,
    seed: u64,
    learning_rate: f64,
    warmup: f64,
    decay: &'static str,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_share: Option<f64>,
    examples: usize,
    /// Of their tokens and labels.
    examples_sha256: String,
    #[serde(flatten)]
    distil: Option<DistilRecipe>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct DistilRecipe {
    distil_weight: f64,
    distil_temperature: f64,
    distil_top_k: usize,
    distil_hidden: f64,
    /// The step at which the teacher joined.
    distil_from: usize,
    /// How many steps are taken, where the weight of hidden states falls over half of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    distil_steps: Option<usize>,
    teacher_sha256: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are keys beside others")]
struct LoraRecipe {
    lora_rank: usize,
    lora_alpha: f64,
    lora_targets: Vec<&'static str>,
    /// `None` for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_layers: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lora_dora: bool,
}

impl LoraRecipe {
    fn of(settings: &LoraSettings) -> Self {
        let LoraSettings { rank, alpha, targets, layers, dora } = settings;
        Self {
            lora_rank: *rank,
            lora_alpha: *alpha,
            lora_targets: targets.iter().map(|module| module.short_name()).collect(),
            lora_layers: layers.as_ref().map(|layers| layers.iter().copied().collect()),
            lora_dora: *dora,
        }
    }
}

impl Recipe {
    pub(crate) fn of(settings: &TrainSettings, num_layers: usize, examples: &[Example]) -> Self {
        let (method, lora, last_layers) = match &settings.method {
            Method::Lora(lora) => ("lora", Some(lora), None),
            Method::LoraAndLayers(both) => ("lora+layers", Some(&both.lora), None),
            Method::Full => ("full", None, None),
            Method::HeadAndLast(count) => ("head+last", None, Some(*count)),
        };
        let full_layers = match &settings.method {
            Method::LoraAndLayers(both) => Some(both.full.iter().copied().collect()),
            _ => None,
        };
        let TrainSettings { adamw, schedule, .. } = settings;
        Self {
            num_layers,
            model_sha256: None,
            frozen_weights: None,
            method,
            lora: lora.map(LoraRecipe::of),
            full_layers,
            last_layers,
            batch_rows: settings.batch_rows,
            accumulate: settings.accumulate,
            epochs: settings.epochs,
            seed: settings.seed,
            learning_rate: schedule.peak,
            warmup: schedule.warmup,
            decay: schedule.decay.name(),
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            epsilon: adamw.epsilon,
            weight_decay: adamw.weight_decay,
            max_grad_norm: settings.max_grad_norm,
            update_share: settings.update_share,
            examples: examples.len(),
            examples_sha256: digest(examples),
            distil: None,
        }
    }

    /// Names the type of the model's frozen weights, if it is not the stored one.
    #[must_use]
    pub(crate) fn with_frozen(self, frozen_weights: Option<&'static str>) -> Self {
        Self { frozen_weights, ..self }
    }

    /// Says which model the training begins with.
    pub(crate) fn begin_with(&mut self, model_sha256: String) {
        self.model_sha256 = Some(model_sha256);
    }

    /// Adds a teacher, who is there for some steps, counted from 0.
    pub(crate) fn teach(
        &mut self,
        settings: &DistilSettings,
        teacher_sha256: String,
        steps: Range<usize>,
    ) {
        let DistilSettings { weight, temperature, top_k, hidden } = *settings;
        self.distil = Some(DistilRecipe {
            distil_weight: weight,
            distil_temperature: temperature,
            distil_top_k: top_k,
            distil_hidden: hidden,
            distil_from: steps.start,
            distil_steps: (hidden > 0.0).then_some(steps.end),
            teacher_sha256,
        });
    }

    /// Lets the teacher, if there is one, join at another step.
    pub(crate) fn join_at(&mut self, from: usize) {
        if let Some(distil) = &mut self.distil {
            distil.distil_from = from;
        }
    }

    /// The training that this one goes on from: of a model of so many layers, and without a teacher.
    pub(crate) fn before(&self, num_layers: usize) -> Self {
        Self { num_layers, distil: None, ..self.clone() }
    }

    /// As a saved state holds it.
    pub(crate) fn json(&self) -> Map<String, Value> {
        // Through text, as what it is compared with went: a number is what its digits are read as.
        let text = serde_json::json!(self).to_string();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// Of all examples' tokens and labels, by the digests of each.
fn digest(examples: &[Example]) -> String {
    let mut all = String::new();
    for Example { tokens, labelled, cut: _ } in examples {
        let tokens = tokens.iter().flat_map(|token| token.to_le_bytes());
        let bytes: Vec<u8> = tokens.chain(labelled.iter().map(|&label| u8::from(label))).collect();
        all += &sha256_bytes(&bytes);
    }
    sha256_bytes(all.as_bytes())
}

/// One thing on which a saved training and the one at hand disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name in `state.json`.
    pub key: String,
    /// What the saved training has; `None` if it knows no such thing.
    pub was: Option<Value>,
    /// What the training at hand has.
    pub is: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, was, is } = self;
        write!(f, "{key} was {} and is {}", shown(was.as_ref()), shown(is.as_ref()))
    }
}

/// A digest's first digits tell it from another.
const SHOWN: usize = 12;

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not set".into(),
        Some(Value::String(text)) if text.len() == 64 => {
            format!("{}…", &text[..text.floor_char_boundary(SHOWN)])
        }
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// All on which two recipes disagree, by key.
pub(crate) fn differences(was: &Map<String, Value>, is: &Map<String, Value>) -> Vec<Difference> {
    let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    keys.into_iter()
        .filter(|key| was.get(*key) != is.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            was: was.get(key).cloned(),
            is: is.get(key).cloned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Schedule;
    use crate::train::tests::{lora, rows, settings};

    fn json(settings: &TrainSettings, examples: &[Example]) -> Map<String, Value> {
        Recipe::of(settings, 6, examples).json()
    }

    /// What differs is named with both values; what changes no step makes no difference.
    #[test]
    fn differences_are_named() {
        let examples = rows("tiny_llama").examples;
        let own = settings(lora());
        let base = json(&own, &examples);
        let check = |changed: &TrainSettings, expected: &[&str]| {
            let found = differences(&base, &json(changed, &examples));
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected);
        };
        check(&own, &[]);
        let free =
            TrainSettings { remat: true, save_every: Some(3), max_steps: Some(2), ..own.clone() };
        check(&free, &[]);
        let slower = Schedule { peak: 2e-4, ..own.schedule };
        let slower = TrainSettings { schedule: slower, seed: 8, ..own.clone() };
        check(&slower, &["learning_rate was 0.001 and is 0.0002", "seed was 7 and is 8"]);
        let masked = TrainSettings { update_share: Some(0.3), ..own.clone() };
        check(&masked, &["update_share was not set and is 0.3"]);
        check(
            &settings(Method::HeadAndLast(2)),
            &[
                "last_layers was not set and is 2",
                "lora_alpha was 8.0 and is not set",
                "lora_rank was 4 and is not set",
                "lora_targets was [\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\
                 \"down_proj\"] and is not set",
                "method was lora and is head+last",
            ],
        );
    }

    #[test]
    fn other_tokens_or_labels_are_another_training() {
        let examples = rows("tiny_llama").examples;
        let own = settings(lora());
        let base = json(&own, &examples);
        let changed = |change: &dyn Fn(&mut Example)| {
            let mut examples = examples.clone();
            change(&mut examples[1]);
            let found = differences(&base, &json(&own, &examples));
            found.into_iter().map(|difference| difference.key).collect::<Vec<_>>()
        };
        assert_eq!(changed(&|row| row.tokens[1] += 1), ["examples_sha256"]);
        assert_eq!(changed(&|row| row.labelled[1] ^= true), ["examples_sha256"]);
        assert!(changed(&|row| row.cut = 3).is_empty());
        let fewer = json(&own, &examples[1..]);
        let keys: Vec<String> =
            differences(&base, &fewer).into_iter().map(|difference| difference.key).collect();
        assert_eq!(keys, ["examples", "examples_sha256"]);
    }
}
