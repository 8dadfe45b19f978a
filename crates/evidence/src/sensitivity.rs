//! `sensitivity.json` of a record: how the loss answers to each layer's weights and output.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{MOST_LAYERS, Module, read_json};
use serde::{Deserialize, Serialize};

use crate::{EvidenceError, Result};

const FORMAT: &str = "gradpruner-sensitivity";
const VERSION: u64 = 1;

/// The file's name in a record.
pub const SENSITIVITY: &str = "sensitivity.json";

/// Gradients of the model without adapters, each reduced to a number as soon as it is formed (method.md §3).
///
/// `L_i` is the mean token loss of batch `i`; all numbers are means over batches, so that those of batches as
/// large as the collected steps' are what `igia` simulates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    format: String,
    version: u64,
    /// How many rows were seen.
    pub rows: usize,
    /// In how many batches.
    pub batches: usize,
    /// The layers, in order.
    pub layers: Vec<LayerSensitivity>,
}

/// One layer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSensitivity {
    /// `‖∂L_i/∂x_{l+1}‖`, the norm of the gradient of the layer's output, mean over tokens.
    pub state_gradient: f64,
    /// Of each linear weight of the layer.
    pub modules: BTreeMap<Module, WeightSensitivity>,
}

/// One linear weight's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightSensitivity {
    /// `‖∂L_i/∂W‖²_F`.
    pub gradient_squared: f64,
    /// `Σ |W ∘ ∂L_i/∂W|`.
    pub weight_times_gradient: f64,
}

impl Sensitivity {
    /// The file of these layers.
    pub fn new(rows: usize, batches: usize, layers: Vec<LayerSensitivity>) -> Self {
        Self { format: FORMAT.into(), version: VERSION, rows, batches, layers }
    }

    /// How many layers the model has.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Every weight, in layer order.
    pub fn weights(&self) -> impl Iterator<Item = ((usize, Module), WeightSensitivity)> {
        self.layers.iter().enumerate().flat_map(|(layer, found)| {
            found.modules.iter().map(move |(&module, &weight)| ((layer, module), weight))
        })
    }

    /// Reads the file of a record, if it has one.
    ///
    /// # Errors
    ///
    /// If it is no such file, a layer lacks a weight, or a number is not finite or below zero.
    pub fn read(record: &Path) -> Result<Option<Self>> {
        let path = record.join(SENSITIVITY);
        if !path.exists() {
            return Ok(None);
        }
        let found: Self = read_json(&path)?;
        match found.reason_against() {
            Some(what) => Err(EvidenceError::File { path, what }),
            None => Ok(Some(found)),
        }
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, layers, .. } = self;
        if format != FORMAT || *version != VERSION {
            return Some(format!("it says `{format}` version {version}, not `{FORMAT}` {VERSION}"));
        }
        if !(1..=MOST_LAYERS).contains(&layers.len()) {
            let found = layers.len();
            return Some(format!("it is of {found} layers; 1 to {MOST_LAYERS} are supported"));
        }
        for (number, layer) in layers.iter().enumerate() {
            let is_fused = layer.modules.contains_key(&Module::QkvProj);
            let all = if is_fused { &Module::FUSED[..] } else { &Module::SPLIT };
            let lacking = all.iter().find(|module| !layer.modules.contains_key(module));
            if let Some(module) = lacking {
                return Some(format!("layer {number} lacks `{module}`"));
            }
            let weights = layer.modules.values();
            let numbers = weights.flat_map(|x| [x.gradient_squared, x.weight_times_gradient]);
            // Sums of squares and of magnitudes.
            let is_wrong = |x: &f64| !(x.is_finite() && *x >= 0.0);
            if let Some(x) = numbers.chain([layer.state_gradient]).find(is_wrong) {
                return Some(format!("layer {number} has {x}; no number can be below zero"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_files_are_refused() {
        let folder = testkit::temporary_folder();
        assert_eq!(Sensitivity::read(folder.path()).unwrap(), None);
        let weight = WeightSensitivity { gradient_squared: 0.5, weight_times_gradient: 2.0 };
        let modules = Module::SPLIT.map(|module| (module, weight)).into();
        let layer = LayerSensitivity { state_gradient: 1e-3, modules };
        let good = Sensitivity::new(8, 2, vec![layer.clone(), layer]);
        let write = |text: &str| fs_err::write(folder.path().join(SENSITIVITY), text).unwrap();
        write(&serde_json::to_string(&good).unwrap());
        assert_eq!(Sensitivity::read(folder.path()).unwrap().unwrap(), good);
        assert_eq!(good.weights().count(), 2 * Module::SPLIT.len());

        let check = |change: &dyn Fn(&mut Sensitivity), expected: &str| {
            let mut other = good.clone();
            change(&mut other);
            write(&serde_json::to_string(&other).unwrap());
            let error = Sensitivity::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&|x| x.version = 2, "version 2");
        check(&|x| x.layers.clear(), "0 layers");
        check(&|x| _ = x.layers[1].modules.remove(&Module::UpProj), "layer 1 lacks `mlp.up_proj`");
        check(&|x| x.layers[1].state_gradient = -1.0, "layer 1 has -1");
        check(
            &|x| x.layers[0].modules.entry(Module::OProj).or_default().gradient_squared = -0.5,
            "layer 0 has -0.5",
        );
        // A number beyond f64.
        let text = serde_json::to_string(&good).unwrap().replace("0.001", "1e999");
        write(&text);
        assert!(Sensitivity::read(folder.path()).is_err());
    }
}
