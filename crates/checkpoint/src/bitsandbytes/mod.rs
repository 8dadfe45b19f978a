//! Checkpoints that transformers saved with bitsandbytes' weights of four bits, made ordinary again.

mod state;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use self::state::{FourBits, PARTS, STATE, error};
use crate::config::{is_in_four_bits, quantised};
use crate::json::{read_json, write_json};
use crate::other_formats::without_config;
use crate::unused::is_of_a_quantiser;
use crate::{
    CheckpointError, CheckpointWriter, ModelConfig, Result, Staging, TensorSpec, TensorView,
    Weights, copy_companions, narrow,
};

/// What [`convert`] made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct WidenReport {
    /// Weights that were in four bits.
    pub widened: usize,
    /// Tensors that are as they were.
    pub copied: usize,
    pub parameters: u64,
    pub size_bytes: u64,
}

/// Turns a folder of a model in NF4 or FP4, with or without double quantisation, into the ordinary folder `target`.
///
/// Each weight is widened to f32 as bitsandbytes does it, by the blocks and the 16 values that are stored beside it, and
/// rounded once to the type that it had before it was quantised. Other tensors and files are copied, and
/// `quantization_config` is gone from `config.json`. Of a weight, its scales and a part of its values are in memory.
/// `observe` sees how many of how many tensors are written.
///
/// # Errors
///
/// If the checkpoint is not quantised, or in another way; what belongs to a weight is missing, broken or not finite; the
/// weights are not those of `config.json`; `target` exists; or the disk refuses.
pub fn convert(
    folder: &Path,
    target: &Path,
    shard_bytes: u64,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<WidenReport> {
    let path = folder.join("config.json");
    if let Some(other) = without_config(folder).filter(|_| !path.exists()) {
        return Err(other);
    }
    let config = ordinary(read_json(&path)?, &path)?;
    let weights = Weights::open(folder)?;
    let states = states(&weights, &path)?;
    let specs = specs(&weights, &states)?;
    require_model(&config, &path, &specs)?;

    let staging = Staging::folder(target)?;
    write_json(&staging.path().join("config.json"), &config)?;
    copy_companions(folder, staging.path())?;
    let (total, size_bytes) =
        (specs.len(), specs.iter().map(|spec| spec.size_bytes() as u64).sum());
    let parameters = specs.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum();
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let writer = CheckpointWriter::create(staging.path(), specs, shard_bytes)?;
    let mut widened = 0;
    for (done, name) in names.iter().enumerate() {
        observe(done, total);
        if let Some(state) = states.get(name.as_str()) {
            widen(&FourBits::open(&weights, name, state)?, name, &writer)?;
            widened += 1;
        } else if let Some(view) = weights.get(name) {
            writer.copy(name, &view)?;
        }
    }
    writer.finish()?;
    staging.commit()?;
    Ok(WidenReport { widened, copied: total - widened, parameters, size_bytes })
}

/// The configuration of the model without its quantisation.
fn ordinary(mut config: Map<String, Value>, path: &Path) -> Result<Map<String, Value>> {
    let reason = match quantised(&config) {
        Some(_) if is_in_four_bits(&config) => {
            config.shift_remove("quantization_config");
            return Ok(config);
        }
        Some(reason) => reason,
        None => "has no `quantization_config`, so the folder is an ordinary one already; to make a GGUF file of it, add \
                 `--to gguf`"
            .into(),
    };
    Err(CheckpointError::config(path, reason))
}

/// The names of the weights in four bits, each with the tensor that describes it.
fn states<'a>(weights: &'a Weights, config: &Path) -> Result<BTreeMap<&'a str, TensorView<'a>>> {
    let mut states = BTreeMap::new();
    for view in weights.iter() {
        let Some((weight, _)) = view.name().split_once(STATE) else { continue };
        if states.insert(weight, view).is_some() {
            return Err(error(&view, weight, "two quant states describe it"));
        }
    }
    if states.is_empty() {
        let what = format!("it says bitsandbytes with 4 bits, and no tensor is a `…{STATE}…`");
        return Err(CheckpointError::config(config, what));
    }
    Ok(states)
}

/// What is going to be written, in the order in which it lies on disk.
fn specs(weights: &Weights, states: &BTreeMap<&str, TensorView<'_>>) -> Result<Vec<TensorSpec>> {
    let mut parts = HashSet::new();
    let mut widened = HashMap::new();
    for (&name, state) in states {
        let weight = FourBits::open(weights, name, state)?;
        widened.insert(name, (weight.dtype.to_safetensors(), weight.shape));
        parts.extend(PARTS.map(|part| format!("{name}.{part}")));
        parts.insert(state.name().to_owned());
    }
    let mut specs = Vec::new();
    for view in weights.iter().filter(|view| !parts.contains(view.name())) {
        let name = view.name();
        let mut spec = TensorSpec::like(&view, name);
        if let Some((dtype, shape)) = widened.remove(name) {
            (spec.dtype, spec.shape) = (dtype, shape);
        } else if is_left_over(&view) {
            return Err(error(&view, name, "it belongs to no weight with a quant state"));
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// Whether a quantiser has left a tensor that is not of a weight in four bits.
fn is_left_over(view: &TensorView<'_>) -> bool {
    let is_of_bytes =
        matches!(view.stored_dtype(), safetensors::Dtype::U8 | safetensors::Dtype::I8);
    is_of_a_quantiser(view.name()) || (is_of_bytes && view.name().ends_with(".weight"))
}

/// Refuses tensors that are not those of a configuration whose tensors are known.
fn require_model(config: &Map<String, Value>, path: &Path, specs: &[TensorSpec]) -> Result<()> {
    let model = match ModelConfig::from_json(config.clone(), path) {
        Ok(model) => model,
        Err(CheckpointError::Untrained { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let found: HashMap<&str, &[usize]> =
        specs.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())).collect();
    for (name, expected) in model.tensors() {
        let path = path.to_owned();
        match found.get(name.as_str()) {
            None => return Err(CheckpointError::MissingTensor { path, name }),
            Some(&shape) if shape != expected => {
                let found = shape.to_vec();
                return Err(CheckpointError::Shape { path, name, found, expected });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Writes a weight in its own type.
fn widen(weight: &FourBits<'_>, name: &str, writer: &CheckpointWriter) -> Result<()> {
    weight.for_each_run(&mut |first, values| {
        let offset = (first * weight.dtype.size()) as u64;
        writer.write_part(name, offset, &narrow(values, weight.dtype))
    })
}

#[cfg(test)]
mod tests;
