//! LoRA adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::names::parse_lora_name;
use crate::writer::{start, write_json};
use crate::{CheckpointError, Dtype, Module, Result, TensorSpec, Weights, narrow};

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
    pub target_modules: Vec<String>,
    #[serde(default)]
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
    /// Per-module ranks, which this reader refuses unless empty.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Per-module alphas, which this reader refuses unless empty.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
}

fn no_bias() -> String {
    "none".into()
}

impl AdapterConfig {
    /// LoRA of one rank and alpha on `modules` of `layers`, out of `num_layers`.
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
            layers_to_transform: (layers.len() < num_layers)
                .then(|| layers.iter().copied().collect()),
            bias: no_bias(),
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            inference_mode: true,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
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
    /// If a file is missing or broken, or the adapter is of a kind that is not plain LoRA.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = fs_err::read_to_string(&path)?;
        let config: AdapterConfig =
            serde_json::from_str(&text).map_err(CheckpointError::json(&path))?;
        let fail = |what: &str| Err(CheckpointError::adapter(&path, what));
        if config.peft_type != "LORA" || config.use_dora || config.use_rslora {
            return fail("only plain LoRA is supported (no DoRA, no rsLoRA)");
        }
        if !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty() {
            return fail("ranks or alphas that differ by module are not supported");
        }
        let path = folder.join(MODEL);
        let weights = Weights::open_file(&path)?;
        let mut sides: BTreeMap<_, [Option<Array2<f32>>; 2]> = BTreeMap::new();
        for view in weights.iter() {
            let place = parse_lora_name(view.name());
            let (Some((layer, module, side)), &[rows, columns]) = (place, view.shape()) else {
                let what = format!("`{}` is no LoRA matrix of a decoder layer", view.name());
                return Err(CheckpointError::adapter(&path, what));
            };
            let matrix = Array2::from_shape_vec((rows, columns), view.to_f32()?)
                .map_err(|_| CheckpointError::adapter(&path, "a shape and a size disagree"))?;
            sides.entry((layer, module)).or_default()[usize::from(side == 'B')] = Some(matrix);
        }
        let mut pairs = BTreeMap::new();
        for ((layer, module), sides) in sides {
            let [Some(a), Some(b)] = sides else {
                let what = format!("layer {layer} {module} has only one of lora_A and lora_B");
                return Err(CheckpointError::adapter(&path, what));
            };
            if a.nrows() != config.r || b.ncols() != config.r {
                let what = format!("layer {layer} {module} is not of rank {}", config.r);
                return Err(CheckpointError::adapter(&path, what));
            }
            pairs.insert((layer, module), AdapterPair { a, b });
        }
        Ok(Self { config, pairs })
    }
}

/// Writes a PEFT LoRA folder (F32) into an existing folder.
///
/// # Errors
///
/// If the disk refuses.
pub fn write_adapter(folder: &Path, adapter: &Adapter) -> Result<()> {
    write_json(&folder.join(CONFIG), &adapter.config)?;
    let matrices: Vec<_> = adapter
        .pairs
        .iter()
        .flat_map(|((layer, module), pair)| {
            let name = format!("base_model.model.model.layers.{layer}.{module}");
            [(format!("{name}.lora_A.weight"), &pair.a), (format!("{name}.lora_B.weight"), &pair.b)]
        })
        .collect();
    let specs: Vec<_> = matrices
        .iter()
        .map(|(name, matrix)| TensorSpec::new(name, Dtype::F32, matrix.shape()))
        .collect();
    let mut out = start(&folder.join(MODEL), &specs)?;
    for (_, matrix) in &matrices {
        let values: Vec<f32> = matrix.iter().copied().collect();
        out.write_all(&narrow(&values, Dtype::F32))?;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let folder = testkit::temporary_folder();
        let modules = BTreeSet::from([Module::QProj]);
        let layers = BTreeSet::from([2]);
        let config = AdapterConfig::lora("base", (1, 2.0), &modules, &layers, 4);
        assert_eq!(config.layers_to_transform, Some(vec![2]));
        let pair = AdapterPair { a: array![[1.0, 2.0]], b: array![[3.0], [4.0]] };
        let adapter = Adapter { config, pairs: BTreeMap::from([((2, Module::QProj), pair)]) };
        write_adapter(folder.path(), &adapter).unwrap();
        assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
    }
}
