//! The state of an unfinished training, saved so that it can go on as if never interrupted.

use std::path::{Path, PathBuf};

use checkpoint::{
    CheckpointWriter, Dtype, Staging, TensorSpec, Weights, remove_if_there, sha256_bytes,
};
use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad_guard};

use crate::bridge::{bytes, is_finite, load};
use crate::optimizer::AdamW;
use crate::{FinetuneError, Result};

const FORMAT: &str = "gradpruner-training-state";
const VERSION: u64 = 2;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u64,
    step: usize,
    /// How many layers the model has.
    num_layers: usize,
    settings: String,
}

/// The training a state is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Everything a step depends on besides the state.
    pub(crate) settings: String,
    /// How many layers the model has.
    pub(crate) num_layers: usize,
}

/// Saves trained tensors and optimizer state after `step` steps; older states are removed then. A
/// state that is not finite is refused, and the older one stays.
///
/// Everything else a step depends on (rows, learning rate, initial adapters) follows from the
/// settings and the step's number.
pub(crate) fn save(folder: &Path, step: usize, owner: &Owner, adamw: &AdamW) -> Result<()> {
    let target = folder.join(format!("step-{step:06}"));
    if target.exists() {
        return Ok(());
    }
    for slot in &adamw.slots {
        if !is_finite(&slot.tensor)? {
            return Err(FinetuneError::NotFiniteWeight { name: slot.name.clone() });
        }
    }
    let staging = Staging::folder(&target)?;
    let header = Header {
        format: FORMAT.into(),
        version: VERSION,
        step,
        num_layers: owner.num_layers,
        settings: sha256_bytes(owner.settings.as_bytes()),
    };
    let text = serde_json::json!(header).to_string();
    fs_err::write(staging.path().join("state.json"), text)
        .map_err(checkpoint::CheckpointError::from)?;
    let named: Vec<(String, &Tensor)> = adamw
        .slots
        .iter()
        .flat_map(|slot| {
            [
                (slot.name.clone(), &slot.tensor),
                (format!("{}.mean", slot.name), &slot.mean),
                (format!("{}.square", slot.name), &slot.square),
            ]
        })
        .collect();
    let specs = named
        .iter()
        .map(|(name, tensor)| {
            let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
            TensorSpec::new(name, Dtype::F32, &shape)
        })
        .collect();
    let writer = CheckpointWriter::create(staging.path(), specs, u64::MAX)?;
    for (name, tensor) in &named {
        writer.write(name, &bytes(tensor, Dtype::F32)?)?;
    }
    writer.finish()?;
    staging.commit()?;
    for (older, path) in saved(folder)? {
        if older < step {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Restores the last saved state, if there is one, and returns how many steps it has behind it.
///
/// `origin` gives the name a trained tensor has there.
pub(crate) fn restore(
    folder: &Path,
    owner: &Owner,
    adamw: &mut AdamW,
    origin: &dyn Fn(&str) -> String,
) -> Result<Option<usize>> {
    let Some((step, path)) = saved(folder)?.into_iter().max() else {
        return Ok(None);
    };
    let other = || FinetuneError::OtherRun { path: path.clone() };
    let text = fs_err::read_to_string(path.join("state.json"))
        .map_err(checkpoint::CheckpointError::from)?;
    let header: Header = serde_json::from_str(&text).map_err(|_| other())?;
    let found = (header.format.as_str(), header.version, header.num_layers, header.settings);
    let expected = (FORMAT, VERSION, owner.num_layers, sha256_bytes(owner.settings.as_bytes()));
    // A renamed folder would go on at another place in the data and the schedule.
    if found != expected || header.step != step {
        return Err(other());
    }
    let weights = Weights::open(&path)?;
    let _guard = no_grad_guard();
    for slot in &mut adamw.slots {
        let name = origin(&slot.name);
        for (name, tensor) in [
            (name.clone(), &mut slot.tensor),
            (format!("{name}.mean"), &mut slot.mean),
            (format!("{name}.square"), &mut slot.square),
        ] {
            let view = weights.get(&name).ok_or_else(other)?;
            let loaded = load(&view, tensor.device(), tch::Kind::Float)?;
            if loaded.tensor.size() != tensor.size() {
                return Err(other());
            }
            tensor.copy_(&loaded.tensor);
        }
    }
    adamw.updates = step;
    Ok(Some(step))
}

fn saved(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    for entry in fs_err::read_dir(folder).map_err(checkpoint::CheckpointError::from)? {
        let path = entry.map_err(checkpoint::CheckpointError::from)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    Ok(found)
}
