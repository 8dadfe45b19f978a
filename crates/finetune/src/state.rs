//! The state of an unfinished training, saved so that it can go on as if never interrupted.

use std::path::{Path, PathBuf};

use checkpoint::{
    CheckpointWriter, Dtype, Staging, TensorSpec, Weights, read_json, remove_if_there,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Tensor, no_grad_guard};

use crate::bridge::{bytes, is_finite, load};
use crate::optimizer::{AdamW, Slot};
use crate::train::recipe::{Recipe, differences};
use crate::{ComputeType, FinetuneError, Result};

const FORMAT: &str = "gradpruner-training-state";
const VERSION: u64 = 3;
const HEADER: &str = "state.json";

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u64,
    step: usize,
    /// The type of the products; another one goes on with them as well.
    #[serde(default)]
    computed_in: Option<ComputeType>,
    /// Everything a step depends on besides the state.
    recipe: Map<String, Value>,
}

/// The steps that a state has behind it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken<'a> {
    /// How many.
    pub(crate) step: usize,
    /// The type of the last one's products.
    pub(crate) computed_in: ComputeType,
    /// Everything they depend on besides.
    pub(crate) recipe: &'a Recipe,
}

/// Saves trained tensors and optimizer state after `step` steps; older states are removed then. A
/// state that is not finite is refused, and the older one stays.
///
/// Everything else a step depends on (rows, learning rate, initial adapters) follows from the
/// recipe, which is saved too, and the step's number.
pub(crate) fn save(folder: &Path, taken: Taken<'_>, adamw: &AdamW) -> Result<()> {
    save_tensors(folder, taken, adamw, |slot| {
        vec![
            (slot.name.clone(), &slot.tensor),
            (format!("{}.mean", slot.name), &slot.mean),
            (format!("{}.square", slot.name), &slot.square),
        ]
    })
}

/// As [`save`], of the trained tensors alone: enough to look at the model again, not to train on.
pub(crate) fn save_weights(folder: &Path, taken: Taken<'_>, adamw: &AdamW) -> Result<()> {
    save_tensors(folder, taken, adamw, |slot| vec![(slot.name.clone(), &slot.tensor)])
}

/// Refuses trained tensors that are not finite: the first of them by its name.
pub(crate) fn require_finite(adamw: &AdamW) -> Result<()> {
    for slot in &adamw.slots {
        if !is_finite(&slot.tensor)? {
            return Err(FinetuneError::NotFiniteWeight { name: slot.name.clone() });
        }
    }
    Ok(())
}

fn save_tensors<'a>(
    folder: &Path,
    Taken { step, computed_in, recipe }: Taken<'_>,
    adamw: &'a AdamW,
    tensors: impl Fn(&'a Slot) -> Vec<(String, &'a Tensor)>,
) -> Result<()> {
    let target = folder.join(format!("step-{step:06}"));
    if target.exists() {
        return Ok(());
    }
    require_finite(adamw)?;
    let staging = Staging::folder(&target)?;
    let (format, recipe, computed_in) = (FORMAT.into(), recipe.json(), Some(computed_in));
    let header = Header { format, version: VERSION, step, computed_in, recipe };
    let text = format!("{:#}\n", serde_json::json!(header));
    fs_err::write(staging.path().join(HEADER), text).map_err(checkpoint::CheckpointError::from)?;
    let named: Vec<(String, &Tensor)> = adamw.slots.iter().flat_map(tensors).collect();
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

/// Where a trained tensor's state lies, and what became of the tensor since.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    /// Its name there.
    pub(crate) name: String,
    /// What it is divided by; its gradients are larger by that.
    pub(crate) divisor: f64,
}

impl Source {
    /// The same name, and the tensor as it was.
    pub(crate) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), divisor: 1.0 }
    }
}

/// A saved state of the training at hand.
#[derive(Debug)]
pub(crate) struct Saved {
    /// How many steps it has behind it.
    pub(crate) step: usize,
    path: PathBuf,
}

/// The type that the last saved state in a folder was computed in, whichever training's it is.
pub(crate) fn computed_in(folder: &Path) -> Result<Option<ComputeType>> {
    let last = saved(folder)?.into_iter().max();
    Ok(last.map(|(_, path)| read_header(&path)).transpose()?.and_then(|header| header.computed_in))
}

/// The last saved state in a folder, if there is one; another training's is refused.
pub(crate) fn find(folder: &Path, recipe: &Recipe) -> Result<Option<Saved>> {
    let Some((step, path)) = saved(folder)?.into_iter().max() else {
        return Ok(None);
    };
    let header = read_header(&path)?;
    let differing = differences(&header.recipe, &recipe.json());
    if !differing.is_empty() {
        return Err(FinetuneError::OtherRun { path, differing });
    }
    // A renamed folder would go on at another place in the data and the schedule.
    if header.step != step {
        return Err(broken(&path, format!("its {HEADER} is of step {}", header.step)));
    }
    Ok(Some(Saved { step, path }))
}

impl Saved {
    /// Takes it up; `source` says where a trained tensor's state lies:
    ///
    /// ```text
    /// p' = p / a,   m' = a·m,   v' = a²·v
    /// ```
    ///
    /// with `a` what the tensor is divided by.
    pub(crate) fn restore(&self, adamw: &mut AdamW, source: &dyn Fn(&str) -> Source) -> Result<()> {
        let weights = Weights::open(&self.path)?;
        for slot in &mut adamw.slots {
            let Source { name, divisor } = source(&slot.name);
            for (name, tensor, times) in [
                (name.clone(), &mut slot.tensor, 1.0 / divisor),
                (format!("{name}.mean"), &mut slot.mean, divisor),
                (format!("{name}.square"), &mut slot.square, divisor * divisor),
            ] {
                self.copy(&weights, &name, tensor, times)?;
            }
        }
        adamw.updates = self.step;
        Ok(())
    }

    /// Takes up the trained tensors alone, as [`save_weights`] leaves them.
    pub(crate) fn restore_weights(&self, adamw: &mut AdamW) -> Result<()> {
        let weights = Weights::open(&self.path)?;
        for slot in &mut adamw.slots {
            self.copy(&weights, &slot.name, &mut slot.tensor, 1.0)?;
        }
        Ok(())
    }

    fn copy(&self, from: &Weights, name: &str, tensor: &mut Tensor, times: f64) -> Result<()> {
        let _guard = no_grad_guard();
        let other = |what: &str| broken(&self.path, format!("`{name}` {what}"));
        let view = from.get(name).ok_or_else(|| other("is missing"))?;
        let loaded = load(&view, tensor.device(), tch::Kind::Float)?;
        if loaded.tensor.size() != tensor.size() {
            return Err(other("is of another shape than the model's"));
        }
        tensor.f_copy_(&loaded.tensor.f_mul_scalar(times)?)?;
        Ok(())
    }
}

fn broken(path: &Path, what: String) -> FinetuneError {
    FinetuneError::BrokenState { path: path.to_owned(), what }
}

fn read_header(state: &Path) -> Result<Header> {
    let raw: Value = read_json(&state.join(HEADER))?;
    if raw.get("format").and_then(Value::as_str) != Some(FORMAT) {
        return Err(broken(state, format!("its {HEADER} does not say that it is one")));
    }
    // Other versions have other keys.
    match raw.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(found) => {
            let what = format!("it is of version {found}, and this program reads {VERSION}");
            return Err(broken(state, what));
        }
        None => return Err(broken(state, format!("its {HEADER} has no version"))),
    }
    serde_json::from_value(raw).map_err(|error| broken(state, format!("its {HEADER}: {error}")))
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
        let header =
            r#"{"format": "gradpruner-training-state", "version": 3, "step": 3, "recipe": {}"#;
        assert_eq!(check(&format!("{header}}}")).unwrap().step, 3);

        let twice = check(&format!("{header}, \"step\": 5}}")).unwrap_err();
        let is_twice = matches!(twice, FinetuneError::Checkpoint(CheckpointError::KeyTwice { .. }));
        assert!(is_twice, "{twice}");
        let other = check(r#"{"format": "f", "version": 3}"#).unwrap_err().to_string();
        assert!(other.contains("does not say that it is one"), "{other}");
        let old = r#"{"format": "gradpruner-training-state", "version": 2, "settings": "s"}"#;
        let old = check(old).unwrap_err().to_string();
        assert!(
            old.contains("it is of version 2, and this program reads 3; remove it to start over"),
            "{old}"
        );
        let none = check(r#"{"format": "gradpruner-training-state"}"#).unwrap_err().to_string();
        assert!(none.contains("has no version"), "{none}");
        let bare = r#"{"format": "gradpruner-training-state", "version": 3, "step": 3}"#;
        let bare = check(bare).unwrap_err().to_string();
        assert!(bare.contains("missing field `recipe`"), "{bare}");

        let folder = testkit::temporary_folder();
        symlink("/dev/zero", folder.path().join(HEADER)).unwrap();
        let endless = read_header(folder.path()).unwrap_err();
        let is_no_file =
            matches!(endless, FinetuneError::Checkpoint(CheckpointError::NotAFile { .. }));
        assert!(is_no_file, "{endless}");
    }
}
