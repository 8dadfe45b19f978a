//! The state of an unfinished training, saved so that it can go on as if never interrupted.

use std::path::{Path, PathBuf};

use checkpoint::{
    CheckpointWriter, Dtype, Staging, TensorSpec, Weights, read_json, remove_if_there, sha256_bytes,
};
use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad_guard};

use crate::bridge::{bytes, is_finite, load};
use crate::optimizer::AdamW;
use crate::{FinetuneError, Result};

const FORMAT: &str = "gradpruner-training-state";
const VERSION: u64 = 2;
const HEADER: &str = "state.json";

#[derive(Debug, Serialize, Deserialize)]
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
    fs_err::write(staging.path().join(HEADER), text).map_err(checkpoint::CheckpointError::from)?;
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
    let header = read_header(&path)?;
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

fn read_header(state: &Path) -> Result<Header> {
    let raw: serde_json::Value = read_json(&state.join(HEADER))?;
    // Other versions have other keys.
    serde_json::from_value(raw).map_err(|_| FinetuneError::OtherRun { path: state.to_owned() })
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

#[cfg(test)]
mod tests {
    use checkpoint::CheckpointError;
    use fs_err::os::unix::fs::symlink;

    use super::*;

    /// Reads a state whose header is this text.
    fn check(text: &str) -> Result<Header> {
        let folder = testkit::temporary_folder();
        fs_err::write(folder.path().join(HEADER), text).unwrap();
        read_header(folder.path())
    }

    #[test]
    fn headers_that_cannot_be_trusted_are_refused() {
        let header = r#"{"format": "f", "version": 2, "step": 3, "num_layers": 4, "settings": "s""#;
        assert_eq!(check(&format!("{header}}}")).unwrap().step, 3);

        let twice = check(&format!("{header}, \"step\": 5}}")).unwrap_err();
        let is_twice = matches!(twice, FinetuneError::Checkpoint(CheckpointError::KeyTwice { .. }));
        assert!(is_twice, "{twice}");
        let other = check(r#"{"format": "f", "version": 1}"#).unwrap_err();
        assert!(matches!(other, FinetuneError::OtherRun { .. }), "{other}");

        let folder = testkit::temporary_folder();
        symlink("/dev/zero", folder.path().join(HEADER)).unwrap();
        let endless = read_header(folder.path()).unwrap_err();
        let is_no_file =
            matches!(endless, FinetuneError::Checkpoint(CheckpointError::NotAFile { .. }));
        assert!(is_no_file, "{endless}");
    }
}
