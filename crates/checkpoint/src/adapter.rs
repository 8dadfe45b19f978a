//! LoRA adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.

mod keys;
mod matrices;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ndarray::{Array1, Array2};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::json::{read_json, write_json};
use crate::{CheckpointError, Module, Result};

const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";

/// `adapter_config.json`, the keys that change what an adapter computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are PEFT's keys")]
pub struct AdapterConfig {
    pub base_model_name_or_path: Option<String>,
    pub peft_type: String,
    #[serde(default)]
    pub task_type: Option<String>,
    pub r: usize,
    pub lora_alpha: f64,
    #[serde(default)]
    pub lora_dropout: f64,
    #[serde(default, deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub exclude_modules: Vec<String>,
    #[serde(default, deserialize_with = "one_or_many_layers")]
    pub layers_to_transform: Option<Vec<usize>>,
    #[serde(default = "no_bias")]
    pub bias: String,
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(default)]
    pub use_dora: bool,
    #[serde(default)]
    pub fan_in_fan_out: bool,
    #[serde(default)]
    pub inference_mode: bool,
    /// Ranks of modules that have another than `r`, by name.
    #[serde(default, deserialize_with = "map_or_null")]
    pub rank_pattern: Map<String, Value>,
    /// Alphas of modules that have another than `lora_alpha`, by name.
    #[serde(default, deserialize_with = "map_or_null")]
    pub alpha_pattern: Map<String, Value>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
        OneOrMany::None(()) => Vec::new(),
    })
}

fn one_or_many_layers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<usize>>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => Some(vec![one]),
        OneOrMany::Many(many) => Some(many),
        OneOrMany::None(()) => None,
    })
}

/// PEFT takes one name or number where a list can stand.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    None(()),
    One(T),
    Many(Vec<T>),
}

fn map_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn no_bias() -> String {
    "none".into()
}

impl AdapterConfig {
    /// LoRA of one rank and alpha on `modules` of `layers`, out of `num_layers`; DoRA where `use_dora` is set afterwards.
    pub fn lora(
        base: &str,
        (rank, alpha): (usize, f64),
        modules: &BTreeSet<Module>,
        layers: &BTreeSet<usize>,
        num_layers: usize,
    ) -> Self {
        Self {
            base_model_name_or_path: Some(base.to_owned()),
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            r: rank,
            lora_alpha: alpha,
            lora_dropout: 0.0,
            target_modules: modules.iter().map(|module| module.short_name().into()).collect(),
            exclude_modules: Vec::new(),
            layers_to_transform: (layers.len() < num_layers)
                .then(|| layers.iter().copied().collect()),
            bias: no_bias(),
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            inference_mode: true,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
        }
    }
}

/// One LoRA pair.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPair {
    /// `[r, in]`.
    pub a: Array2<f32>,
    /// `[out, r]`.
    pub b: Array2<f32>,
    /// DoRA's magnitudes, `[out]`: the norm that each of the adapted weight's rows is given.
    pub magnitude: Option<Array1<f32>>,
}

/// An adapter: its configuration and its pairs by layer and weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What PEFT needs to know of it.
    pub config: AdapterConfig,
    /// The pairs.
    pub pairs: BTreeMap<(usize, Module), AdapterPair>,
}

impl Adapter {
    /// Reads a PEFT LoRA folder.
    ///
    /// # Errors
    ///
    /// If a file is missing or broken, a key asks for what is not supported, or the matrices are
    /// not those the configuration names.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let fail = |what: String| Err(CheckpointError::adapter(&path, what));
        let raw: Map<String, Value> = read_json(&path)?;
        if let Some(reason) = keys::reason_against(&raw) {
            return fail(reason);
        }
        let config: AdapterConfig =
            serde_json::from_value(Value::Object(raw)).map_err(CheckpointError::json(&path))?;
        if let Some(reason) = keys::out_of_bounds(&config) {
            return fail(reason);
        }
        let pairs = matrices::read(&folder.join(MODEL), &config)?;
        Ok(Self { config, pairs })
    }
}

impl AdapterConfig {
    /// What a weight's `B A` is multiplied by: `alpha / r`, or with rsLoRA `alpha / √r`.
    pub fn scale(&self, layer: usize, module: Module) -> f64 {
        let alpha = keys::of_pattern(&self.alpha_pattern, &full_name(layer, module));
        let alpha = alpha.and_then(Value::as_f64).unwrap_or(self.lora_alpha);
        let rank = self.rank(layer, module) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    fn rank(&self, layer: usize, module: Module) -> usize {
        let rank = keys::of_pattern(&self.rank_pattern, &full_name(layer, module));
        rank.and_then(Value::as_u64).map_or(self.r, |rank| rank as usize)
    }

    /// PEFT leaves out what the configuration does not name, and so the adapter would compute
    /// something else there.
    fn require_named(&self, layer: usize, module: Module) -> Result<(), String> {
        let name = full_name(layer, module);
        let is_pattern = |target: &String| {
            target == "all-linear"
                || target.contains(|c: char| !c.is_alphanumeric() && c != '_' && c != '.')
        };
        let targets = &self.target_modules;
        // A pattern names what it names; the matrices in the file are what it named.
        let named = targets.is_empty()
            || targets.iter().any(|target| is_pattern(target) || keys::is_end(&name, target));
        if !named {
            return Err(format!(
                "`target_modules` leaves out layer {layer} {module}, but the file has matrices for it"
            ));
        }
        if self.exclude_modules.iter().any(|target| keys::is_end(&name, target)) {
            return Err(format!(
                "`exclude_modules` leaves out layer {layer} {module}, but the file has matrices for it"
            ));
        }
        match &self.layers_to_transform {
            // To PEFT an empty list is none.
            Some(layers) if !layers.is_empty() && !layers.contains(&layer) => Err(format!(
                "`layers_to_transform` leaves out layer {layer}, but the file has matrices for it"
            )),
            _ => Ok(()),
        }
    }
}

fn full_name(layer: usize, module: Module) -> String {
    format!("model.layers.{layer}.{module}")
}

/// Writes a PEFT LoRA folder (F32) into an existing folder.
///
/// # Errors
///
/// If the disk refuses.
pub fn write_adapter(folder: &Path, adapter: &Adapter) -> Result<()> {
    write_json(&folder.join(CONFIG), &adapter.config)?;
    matrices::write(&folder.join(MODEL), &adapter.pairs)
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use serde_json::json;

    use super::*;

    /// An adapter of rank 1 on layer 2's `q_proj`.
    fn adapter() -> Adapter {
        let modules = BTreeSet::from([Module::QProj]);
        let layers = BTreeSet::from([2]);
        let config = AdapterConfig::lora("base", (1, 2.0), &modules, &layers, 4);
        let pair = AdapterPair { a: array![[1.0, 2.0]], b: array![[3.0], [4.0]], magnitude: None };
        Adapter { config, pairs: BTreeMap::from([((2, Module::QProj), pair)]) }
    }

    /// Reads that adapter with some keys of its configuration set.
    fn check(keys: &[(&str, Value)]) -> Result<Adapter, String> {
        written(&adapter(), keys)
    }

    /// Writes an adapter, sets some keys of its configuration, and reads it.
    fn written(adapter: &Adapter, keys: &[(&str, Value)]) -> Result<Adapter, String> {
        let folder = testkit::temporary_folder();
        write_adapter(folder.path(), adapter).unwrap();
        let path = folder.path().join(CONFIG);
        let mut raw = testkit::json(&path);
        for (key, value) in keys {
            raw[key] = value.clone();
        }
        fs_err::write(path, raw.to_string()).unwrap();
        Adapter::read(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_written_is_read_back() {
        let expected = adapter();
        assert_eq!(expected.config.layers_to_transform, Some(vec![2]));
        assert_eq!(check(&[]), Ok(expected));
    }

    /// DoRA's magnitudes come with the key that says so, one for each of a weight's rows, and not without it.
    #[test]
    fn magnitudes_belong_to_dora() {
        let mut dora = adapter();
        dora.config.use_dora = true;
        for pair in dora.pairs.values_mut() {
            pair.magnitude = Some(array![0.5, 2.0]);
        }
        assert_eq!(written(&dora, &[]), Ok(dora.clone()));
        let error = written(&dora, &[("use_dora", json!(false))]).unwrap_err();
        assert!(error.contains("lora_magnitude_vector` is no LoRA matrix"), "{error}");
        let error = check(&[("use_dora", json!(true))]).unwrap_err();
        assert!(error.contains("layer 2 self_attn.q_proj has no lora_magnitude_vector"), "{error}");
        for pair in dora.pairs.values_mut() {
            pair.magnitude = Some(array![0.5]);
        }
        let error = written(&dora, &[]).unwrap_err();
        assert!(error.contains("lora_magnitude_vector` is not a vector of 2"), "{error}");
    }

    #[test]
    fn keys_that_scale_a_matrix_are_used() {
        let scale = |keys: &[(&str, Value)]| check(keys).unwrap().config.scale(2, Module::QProj);
        assert_eq!(scale(&[]), 2.0);
        assert_eq!(
            scale(&[("alpha_pattern", json!({"k_proj": 9, "q_proj": 5, "layers.2": 7}))]),
            5.0
        );
        assert_eq!(
            scale(&[("alpha_pattern", json!({"roj": 9, "^model.layers.2.self_attn.q_proj": 7}))]),
            7.0
        );
        assert_eq!(
            scale(&[("r", json!(64)), ("rank_pattern", json!({"2.self_attn.q_proj": 1}))]),
            2.0
        );
        let mut config = adapter().config;
        (config.r, config.use_rslora) = (16, true);
        assert_eq!(config.scale(2, Module::QProj), 0.5);
    }

    #[test]
    fn keys_that_change_nothing_are_taken() {
        for (key, value) in [
            ("target_modules", json!("all-linear")),
            ("target_modules", json!(".*\\.q_proj")),
            ("layers_to_transform", json!(2)),
            ("layers_to_transform", json!([])),
            ("layers_pattern", json!("layers")),
            ("layers_pattern", json!(["layers"])),
            ("modules_to_save", Value::Null),
            ("loftq_config", json!({})),
            ("rank_pattern", Value::Null),
            ("init_lora_weights", json!(true)),
            ("init_lora_weights", json!("gaussian")),
            ("runtime_config", json!({"ephemeral_gpu_offload": false})),
            ("target_parameters", json!([])),
            ("exclude_modules", json!(["lm_head"])),
            ("a_key_of_tomorrow", json!(false)),
        ] {
            let found = check(&[(key, value)]);
            assert!(found.is_ok(), "{key}: {found:?}");
        }
    }

    #[test]
    fn keys_that_change_the_result_are_refused_by_name() {
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("bias", json!("lora_only")),
            ("fan_in_fan_out", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("layers_to_transform", json!([0, 1])),
            ("layers_pattern", json!("blocks")),
            ("target_modules", json!(["k_proj"])),
            ("exclude_modules", json!(["q_proj"])),
            ("lora_bias", json!(true)),
            ("target_parameters", json!(["q_proj.weight"])),
            ("trainable_token_indices", json!([1])),
            ("layer_replication", json!([[0, 2], [1, 3]])),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("init_lora_weights", json!("loftq")),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("alpha_pattern", json!({".*q_proj": 2})),
            ("rank_pattern", json!({"q_proj": 0})),
            ("a_key_of_tomorrow", json!(1)),
        ] {
            let error = check(&[(key, value)]).unwrap_err();
            let named = error.contains(&format!("`{key}`")) || error.contains("q_proj`");
            assert!(named, "{key}: {error}");
        }
        let error = check(&[("target_modules", json!(["k_proj"]))]).unwrap_err();
        let reason = "leaves out layer 2 self_attn.q_proj, but the file has matrices for it";
        assert!(error.ends_with(reason), "{error}");
        let error = check(&[("r", json!(u64::MAX))]).unwrap_err();
        assert!(error.contains("the rank `r` is not between 1 and 1048576"), "{error}");
    }
}
