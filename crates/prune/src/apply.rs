//! Carrying out a plan: the pruned checkpoint, tensor by tensor (method.md §5–§7).

use std::path::PathBuf;

use checkpoint::{
    Checkpoint, CheckpointWriter, LayerTensor, ModelConfig, Module, Record, Staging, TensorSpec,
    TensorView, Weights, copy_companions, narrow, tensor_name,
};
use igia::importance;
use merge::{Donor, keep_top, kept_count, merge_same_sign};
use serde::{Deserialize, Serialize};

use crate::scores::{require_finite, step_pairs};
use crate::{Merge, Plan, PruneError, Result};

/// What [`apply`] needs to know.
#[derive(Debug, Clone)]
pub struct PruneSettings {
    /// Folder of the checkpoint to prune.
    pub model: PathBuf,
    /// What to do.
    pub plan: Plan,
    /// Folder of the gradient record; needed if the plan merges.
    pub record: Option<PathBuf>,
    /// Folder to write.
    pub target: PathBuf,
    /// Most bytes of tensors in one file.
    pub shard_bytes: u64,
}

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Size {
    pub num_layers: usize,
    pub parameters: u64,
    pub flops_per_token: u64,
    pub size_bytes: u64,
}

impl Size {
    /// Context length at which FLOPs per token are counted.
    pub const CONTEXT: usize = 1024;

    /// The size of a model of this configuration whose weights are these.
    pub fn of(config: &ModelConfig, weights: &Weights) -> Self {
        Self {
            num_layers: config.num_layers,
            parameters: config.parameters(),
            flops_per_token: config.flops_per_token(Self::CONTEXT),
            size_bytes: weights.size_bytes(),
        }
    }
}

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PruneReport {
    pub target: PathBuf,
    pub retained: Vec<usize>,
    pub pruned: Vec<usize>,
    pub merges: Vec<Merge>,
    pub before: Size,
    pub after: Size,
}

/// Writes the pruned checkpoint. `observe` sees how many of how many tensors are written.
///
/// Retained layers are renumbered in order, receivers take their donors in, the configuration
/// follows, and all else is byte for byte the source. Held in memory are one weight, its donors
/// and their importance.
///
/// # Errors
///
/// If the model, the plan and the record do not fit each other, a gradient is not finite, the
/// target exists, or the disk refuses; nothing is left under the target's name then.
pub fn apply(
    settings: &PruneSettings,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<PruneReport> {
    let PruneSettings { model, plan, record, target, shard_bytes } = settings;
    plan.check()?;
    let source = Checkpoint::open(model)?;
    let config = source.config();
    if plan.num_layers != config.num_layers {
        return Err(PruneError::Plan(format!(
            "it is for {} layers, the model has {}",
            plan.num_layers, config.num_layers
        )));
    }
    let record = match record {
        Some(record) => Some(Record::open(record)?),
        None if plan.merges.is_empty() => None,
        None => return Err(PruneError::NoRecord),
    };
    if let Some(record) = &record {
        require_same_model(record, config)?;
    }

    let retained = plan.retained();
    let staging = Staging::folder(target)?;
    copy_companions(model, staging.path())?;
    let raw = serde_json::Value::Object(config.with_layers(&retained));
    let text = format!("{raw:#}\n");
    fs_err::write(staging.path().join("config.json"), text)
        .map_err(checkpoint::CheckpointError::from)?;

    let kept: Vec<(TensorView<'_>, String)> = source
        .weights()
        .iter()
        .filter_map(|view| Some((view, new_name(view.name(), &retained)?)))
        .collect();
    let specs = kept.iter().map(|(view, name)| TensorSpec::like(view, name)).collect();
    let mut writer = CheckpointWriter::new(staging.path(), specs, *shard_bytes);
    for (done, (view, name)) in kept.iter().enumerate() {
        observe(done, kept.len());
        match receiver_of(view, plan) {
            Some((layer, module)) => {
                let record = record.as_ref().ok_or(PruneError::NoRecord)?;
                tracing::info!(layer, %module, donors = ?plan.donors_of(layer), "merging");
                writer.append(name, &merged(&source, view, plan, record, (layer, module))?)?;
            }
            None => writer.append(name, view.bytes())?,
        }
    }
    writer.finish()?;
    staging.commit()?;

    let pruned = Checkpoint::open(target)?;
    Ok(PruneReport {
        target: target.clone(),
        retained,
        pruned: plan.pruned.clone(),
        merges: plan.merges.clone(),
        before: Size::of(config, source.weights()),
        after: Size::of(pruned.config(), pruned.weights()),
    })
}

/// The name a tensor has in the pruned checkpoint; `None` if its layer is pruned.
fn new_name(name: &str, retained: &[usize]) -> Option<String> {
    let Some(LayerTensor { layer, rest }) = LayerTensor::parse(name) else {
        return Some(name.to_owned());
    };
    let position = retained.iter().position(|&kept| kept == layer)?;
    Some(format!("model.layers.{position}.{rest}"))
}

/// Which linear weight this is, if donors are merged into it.
fn receiver_of(view: &TensorView<'_>, plan: &Plan) -> Option<(usize, Module)> {
    let tensor = LayerTensor::parse(view.name())?;
    let module = tensor.module()?;
    (!plan.donors_of(tensor.layer).is_empty()).then_some((tensor.layer, module))
}

/// A receiver's weight with its donors merged in, in its stored type.
fn merged(
    source: &Checkpoint,
    receiver: &TensorView<'_>,
    plan: &Plan,
    record: &Record,
    (layer, module): (usize, Module),
) -> Result<Vec<u8>> {
    let mut donors = Vec::new();
    for &donor in plan.donors_of(layer) {
        let weight = source.tensor(&tensor_name(donor, module))?.to_f32()?;
        let kept = kept_elements(record, donor, module, plan.density)?;
        donors.push((weight, kept));
    }
    let donors: Vec<Donor<'_>> =
        donors.iter().map(|(weight, kept)| Donor { weight, kept }).collect();
    let merged = merge_same_sign(&receiver.to_f32()?, &donors);
    Ok(narrow(&merged, receiver.dtype()?))
}

/// A donor's mask: its most important elements (method.md §5).
fn kept_elements(record: &Record, layer: usize, module: Module, density: f64) -> Result<Vec<bool>> {
    require_finite(record, layer, module)?;
    let gradients = record.all_gradients(layer, module)?;
    let pairs = step_pairs(&gradients);
    let importance = importance(&pairs);
    Ok(keep_top(&importance, kept_count(density, importance.len())))
}

fn require_same_model(record: &Record, config: &ModelConfig) -> Result<()> {
    let fail =
        |what: String| Err(PruneError::OtherModel { path: record.folder().to_owned(), what });
    if record.num_layers() != config.num_layers {
        return fail(format!(
            "it has {} layers, the model {}",
            record.num_layers(),
            config.num_layers
        ));
    }
    for (layer, module) in record.pairs() {
        let (found, expected) = (record.shape(layer, module), config.linear_shape(module));
        if found != Some(expected) {
            return fail(format!(
                "layer {layer} {module} is {found:?} there and {expected:?} in the model"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(name: &str, target: &Path) -> PruneSettings {
        PruneSettings {
            model: testkit::fixture(&format!("{name}/model")),
            plan: Plan::read(&testkit::fixture(&format!("{name}/plan.json"))).unwrap(),
            record: Some(testkit::fixture(&format!("{name}/record"))),
            target: target.to_owned(),
            shard_bytes: u64::MAX,
        }
    }

    #[test]
    fn golden_importance_and_masks() {
        for name in testkit::GOLDEN {
            let record = Record::open(&testkit::fixture(&format!("{name}/record"))).unwrap();
            let file = testkit::fixture(&format!("{name}/igia.safetensors"));
            for tensor in testkit::tensor_names(&file) {
                let (layer, module) = place(&tensor);
                let gradients = record.all_gradients(layer, module).unwrap();
                let found = importance(&step_pairs(&gradients));
                let (_, expected) = testkit::tensor_f32(&file, &tensor);
                assert!(testkit::relative_deviation(&found, &expected) < 1e-5, "{name} {tensor}");
            }
            let file = testkit::fixture(&format!("{name}/masks.safetensors"));
            for tensor in testkit::tensor_names(&file) {
                let (layer, module) = place(&tensor);
                let found = kept_elements(&record, layer, module, 0.2).unwrap();
                let (_, expected) = testkit::tensor_bytes(&file, &tensor);
                assert!(found.iter().map(|&kept| u8::from(kept)).eq(expected), "{name} {tensor}");
            }
        }
    }

    fn place(tensor: &str) -> (usize, Module) {
        let (layer, module) = tensor.strip_prefix("layers.").unwrap().split_once('.').unwrap();
        (layer.parse().unwrap(), module.parse().unwrap())
    }

    #[test]
    fn golden_pruned_checkpoints() {
        let folder = testkit::temporary_folder();
        for name in testkit::GOLDEN {
            let target = folder.path().join(name);
            let report = apply(&settings(name, &target), &mut |_, _| {}).unwrap();
            assert!(report.after.parameters < report.before.parameters);
            let expected = Checkpoint::open(&testkit::fixture(&format!("{name}/pruned"))).unwrap();
            let found = Checkpoint::open(&target).unwrap();
            assert_eq!(found.config().raw(), expected.config().raw(), "{name}");
            let names = |checkpoint: &Checkpoint| {
                let mut names: Vec<String> =
                    checkpoint.weights().iter().map(|view| view.name().to_owned()).collect();
                names.sort();
                names
            };
            assert_eq!(names(&found), names(&expected), "{name}");
            for view in expected.weights().iter() {
                let found = found.tensor(view.name()).unwrap();
                assert_eq!(found.bytes(), view.bytes(), "{name} {}", view.name());
            }
        }
    }

    // Law: merging nothing changes no byte.
    #[test]
    fn a_density_of_zero_merges_nothing() {
        let folder = testkit::temporary_folder();
        let mut settings = settings("tiny_llama", &folder.path().join("merged"));
        settings.plan.density = 0.0;
        apply(&settings, &mut |_, _| {}).unwrap();
        let merged = fs_err::read(settings.target.join("model.safetensors")).unwrap();
        settings.plan.merges.clear();
        settings.record = None;
        settings.target = folder.path().join("dropped");
        apply(&settings, &mut |_, _| {}).unwrap();
        assert_eq!(merged, fs_err::read(settings.target.join("model.safetensors")).unwrap());
    }

    #[test]
    fn bad_input_leaves_nothing_behind() {
        let folder = testkit::temporary_folder();
        let check = |settings: &PruneSettings, reason: &str| {
            let error = apply(settings, &mut |_, _| {}).unwrap_err();
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                text = format!("{text}: {source}");
            }
            assert!(text.contains(reason), "{text}");
            assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0, "{text}");
        };
        let good = settings("tiny_llama", &folder.path().join("out"));
        check(&PruneSettings { record: None, ..good.clone() }, "the gradient record is needed");
        let other = testkit::fixture("tiny_llama_tied/record");
        check(&PruneSettings { record: Some(other), ..good.clone() }, "does not fit the model");
        let mut plan = good.plan.clone();
        plan.num_layers = 7;
        check(&PruneSettings { plan, ..good.clone() }, "it is for 7 layers, the model has 6");

        // A NaN in a donor's gradient, found while the checkpoint is being written.
        let broken = testkit::temporary_folder();
        let record = broken.path().join("record");
        testkit::copy_folder(&testkit::fixture("tiny_llama/record"), &record);
        let file = record.join("step-00002.safetensors");
        let mut bytes = fs_err::read(&file).unwrap();
        let (_, target) = testkit::tensor_bytes(&file, "layers.5.mlp.down_proj.lora_B");
        let at = bytes.windows(target.len()).position(|window| window == target).unwrap();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs_err::write(&file, bytes).unwrap();
        check(
            &PruneSettings { record: Some(record), ..good },
            "step 2, layer 5 mlp.down_proj cannot be scored: a gradient is not finite",
        );
    }
}
