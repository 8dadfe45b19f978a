//! Gradient records: each early step's LoRA gradients, as `gradpruner collect` or another
//! framework's hook leaves them (docs/formats.md).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use serde::{Deserialize, Serialize};

use crate::digest::Hashing;
use crate::json::{read_json, write_json};
use crate::names::{PairNames, pair_names};
use crate::writer::header;
use crate::{
    CheckpointError, Dtype, MOST_LAYERS, MOST_WIDTH, ModuleName, Result, Staging, TensorSpec,
    TensorView, Weights, sha256_file,
};

const FORMAT: &str = "gradpruner-gradients";
const ACTIVATIONS: &str = "gradpruner-activations";
const VERSION: u64 = 1;

/// `manifest.json` of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the file's keys; docs/formats.md says them")]
pub struct Manifest {
    pub format: String,
    pub version: u64,
    pub num_layers: usize,
    pub lora: LoraSettings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSource>,
    pub steps: Vec<StepEntry>,
}

impl Manifest {
    fn reason_against(&self) -> Option<String> {
        let Self { format, version, num_layers, lora, steps, .. } = self;
        let fail = |what: &str| Some(format!("manifest.json {what}"));
        if format != FORMAT || *version != VERSION {
            return fail(&format!(
                "says `{format}` version {version}; `{FORMAT}` version {VERSION} is understood"
            ));
        }
        if !(1..=MOST_LAYERS).contains(num_layers) {
            return fail(&format!("says {num_layers} layers; 1 to {MOST_LAYERS} are supported"));
        }
        if !(1..=MOST_WIDTH).contains(&lora.rank) {
            return fail(&format!("says rank {}; 1 to {MOST_WIDTH} are supported", lora.rank));
        }
        let mut files = BTreeSet::new();
        for (expected, StepEntry { step, file, .. }) in (1..).zip(steps) {
            if *step != expected {
                return fail(&format!("has step {step} where step {expected} belongs"));
            }
            // A manifest must not lead outside its record.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return fail(&format!("names `{file}`, which is not a plain file name"));
            }
            if !files.insert(file) {
                return fail(&format!("names `{file}` for two steps"));
            }
        }
        None
    }
}

/// The LoRA settings gradients were taken with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the file's keys")]
pub struct LoraSettings {
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<String>,
}

/// Whose gradients they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the file's keys")]
pub struct ModelSource {
    pub name: String,
    pub config_sha256: String,
}

/// What data they come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the file's keys")]
pub struct DataSource {
    pub path: String,
    pub sha256: String,
    pub rows: usize,
}

/// One step of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the file's keys")]
pub struct StepEntry {
    pub step: usize,
    pub file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(flatten)]
    pub report: StepReport,
}

/// What a step says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Mean loss over the step's labelled tokens.
    pub loss: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The learning rate this step's update uses.
    pub learning_rate: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// `activations.json` of a record: what the forward passes say of each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activations {
    format: String,
    version: u64,
    /// How many tokens the means are over.
    pub tokens: usize,
    /// `1 − mean cos(x_l, x_{l+1})` of each layer (method.md §3, `bi`).
    pub block_influence: Vec<f64>,
}

impl Activations {
    /// The block influence of each layer, as a mean over `tokens` tokens.
    pub fn new(tokens: usize, block_influence: Vec<f64>) -> Self {
        Self { format: ACTIVATIONS.into(), version: VERSION, tokens, block_influence }
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, .. } = self;
        (format != ACTIVATIONS || *version != VERSION).then(|| {
            format!(
                "activations.json says `{format}` version {version}; `{ACTIVATIONS}` version \
                 {VERSION} is understood"
            )
        })
    }
}

/// A record on disk, its step files mapped and checked for agreement.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    manifest: Option<Manifest>,
    activations: Option<Activations>,
    steps: Vec<Step>,
    num_layers: usize,
}

#[derive(Debug)]
struct Step {
    path: PathBuf,
    weights: Weights,
    pairs: PairNames,
}

/// One adapter pair's gradients at one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepGradients {
    /// `[r, in]`, by LoRA's `A`.
    pub a: Array2<f32>,
    /// `[out, r]`, by LoRA's `B`.
    pub b: Array2<f32>,
}

/// One adapter pair's gradients at one step of a record: the mapped file's own where they are
/// stored as f32.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedPair<'a> {
    /// `[r, in]`, by LoRA's `A`.
    pub a: CowArray<'a, f32, Ix2>,
    /// `[out, r]`, by LoRA's `B`.
    pub b: CowArray<'a, f32, Ix2>,
}

impl Record {
    /// Opens a record: the files its manifest names, or all `step-*.safetensors` of the folder.
    ///
    /// # Errors
    ///
    /// If there are no steps, they are not numbered from 1 on, a file is missing, truncated or
    /// outside the folder, a pair is incomplete or there twice, or steps disagree on which weights
    /// they hold or on a shape.
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest: Option<Manifest> = read_optional(&folder.join("manifest.json"))?;
        let activations: Option<Activations> = read_optional(&folder.join("activations.json"))?;
        let fail = |what: String| Err(CheckpointError::record(folder, what));
        let reason = manifest.as_ref().and_then(Manifest::reason_against);
        if let Some(reason) = reason.or_else(|| activations.as_ref()?.reason_against()) {
            return fail(reason);
        }
        let files = match &manifest {
            Some(manifest) => manifest.steps.iter().map(|step| folder.join(&step.file)).collect(),
            None => step_files(folder)?,
        };
        let steps = files.iter().map(|path| Step::open(path)).collect::<Result<Vec<_>>>()?;
        let Some((first, rest)) = steps.split_first() else {
            return fail("there are no step-*.safetensors in it".into());
        };
        for step in rest {
            step.require_like(first)?;
        }
        let Some((last_layer, _)) = first.pairs.keys().next_back() else {
            return fail(format!("{} holds no LoRA gradients", first.path.display()));
        };
        let num_layers = manifest.as_ref().map_or(last_layer + 1, |manifest| manifest.num_layers);
        if *last_layer >= num_layers {
            return fail(format!("it has gradients of layer {last_layer} of {num_layers}"));
        }
        if let Some(found) = &activations
            && found.block_influence.len() != num_layers
        {
            return fail(format!(
                "activations.json has {} layers, the gradients {num_layers}",
                found.block_influence.len()
            ));
        }
        Ok(Self { folder: folder.to_owned(), manifest, activations, steps, num_layers })
    }

    /// Compares every step file with the checksum in the manifest.
    ///
    /// # Errors
    ///
    /// If one differs or cannot be read.
    pub fn verify(&self) -> Result<()> {
        for entry in self.manifest.iter().flat_map(|manifest| &manifest.steps) {
            let path = self.folder.join(&entry.file);
            if let Some(expected) = &entry.sha256
                && *expected != sha256_file(&path)?
            {
                return Err(CheckpointError::record(&path, "differs from its checksum"));
            }
        }
        Ok(())
    }

    /// Whether every step's file is still the one that was mapped.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Changed`] for one that is not.
    pub fn require_unchanged(&self) -> Result<()> {
        self.steps.iter().try_for_each(|step| step.weights.require_unchanged())
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its manifest says, if it has one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// What its forward passes said, if that was kept.
    pub fn activations(&self) -> Option<&Activations> {
        self.activations.as_ref()
    }

    /// How many steps it holds.
    pub fn num_steps(&self) -> usize {
        self.steps.len()
    }

    /// How many layers the model has.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// The weights it has gradients of.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, ModuleName)> {
        self.steps.iter().take(1).flat_map(|step| step.pairs.keys().cloned())
    }

    /// `(out, in)` of a recorded weight; `None` if it is not recorded.
    pub fn shape(&self, layer: usize, module: &ModuleName) -> Option<(usize, usize)> {
        let step = self.steps.first()?;
        let (a, b) = step.views(layer, module)?;
        Some((*b.shape().first()?, *a.shape().last()?))
    }

    /// One weight's gradients at one step, counted from 0.
    ///
    /// # Errors
    ///
    /// If the weight is not recorded or its gradients are no floats.
    pub fn gradients(
        &self,
        step: usize,
        layer: usize,
        module: &ModuleName,
    ) -> Result<RecordedPair<'_>> {
        let step = &self.steps[step];
        let Some((a, b)) = step.views(layer, module) else {
            let what = format!("it has no gradients of layer {layer} {module}");
            return Err(CheckpointError::record(&step.path, what));
        };
        Ok(RecordedPair { a: matrix(a)?, b: matrix(b)? })
    }

    /// The file of a step counted from 0, for messages.
    pub fn step_path(&self, step: usize) -> &Path {
        &self.steps[step].path
    }
}

impl Step {
    fn open(path: &Path) -> Result<Self> {
        let weights = Weights::open_file(path)?;
        let pairs = pair_names(weights.iter().map(|view| view.name()))
            .map_err(|what| CheckpointError::record(path, what))?;
        let step = Self { path: path.to_owned(), weights, pairs };
        for (layer, module) in step.pairs.keys() {
            step.require_pair(*layer, module)?;
        }
        Ok(step)
    }

    fn views(&self, layer: usize, module: &ModuleName) -> Option<(TensorView<'_>, TensorView<'_>)> {
        let (a, b) = self.pairs.get(&(layer, module.clone()))?;
        Some((self.weights.get(a)?, self.weights.get(b)?))
    }

    fn require_pair(&self, layer: usize, module: &ModuleName) -> Result<()> {
        let shapes = self.views(layer, module).map(|(a, b)| (a.shape(), b.shape()));
        match shapes {
            Some((&[rank, columns], &[rows, of_b]))
                if rank == of_b && rank > 0 && columns > 0 && rows > 0 =>
            {
                Ok(())
            }
            found => {
                let what =
                    format!("layer {layer} {module} has shapes {found:?}, not r × in and out × r");
                Err(CheckpointError::record(&self.path, what))
            }
        }
    }

    fn require_like(&self, first: &Self) -> Result<()> {
        let fail = |what: String| Err(CheckpointError::record(&self.path, what));
        if !self.pairs.keys().eq(first.pairs.keys()) {
            return fail(format!("it holds other weights than {}", first.path.display()));
        }
        for (layer, module) in self.pairs.keys() {
            let shapes = |step: &Self| {
                step.views(*layer, module).map(|(a, b)| (a.shape().to_vec(), b.shape().to_vec()))
            };
            if shapes(self) != shapes(first) {
                return fail(format!(
                    "layer {layer} {module} has another shape or rank than in {}",
                    first.path.display()
                ));
            }
        }
        Ok(())
    }
}

fn matrix(view: TensorView<'_>) -> Result<CowArray<'_, f32, Ix2>> {
    let shape = (view.shape()[0], view.shape()[1]); // Two dimensions: `require_pair` has seen to it.
    let found = match view.f32s()? {
        Cow::Borrowed(values) => ArrayView2::from_shape(shape, values).map(CowArray::from),
        Cow::Owned(values) => Array2::from_shape_vec(shape, values).map(CowArray::from),
    };
    found.map_err(|_| CheckpointError::record(view.path(), "a gradient's shape and size disagree"))
}

fn read_optional<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    read_json(path).map(Some)
}

/// The step files of a record without a manifest, which says their order and that none is missing.
fn step_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors"));
        let Some(number) = number else { continue };
        let Ok(step) = number.parse::<usize>() else {
            let what = format!("`{name}` has no step's number");
            return Err(CheckpointError::record(folder, what));
        };
        if let Some(other) = files.insert(step, path.clone()) {
            let what = format!("step {step} is there twice; {} is the other", other.display());
            return Err(CheckpointError::record(&path, what));
        }
    }
    for (expected, (step, path)) in (1..).zip(&files) {
        if *step != expected {
            let what = format!("it stands where step {expected} belongs");
            return Err(CheckpointError::record(path, what));
        }
    }
    Ok(files.into_values().collect())
}

/// Writes a record step by step; it stands under its name only when it is complete.
#[derive(Debug)]
pub struct RecordWriter {
    staging: Staging,
    dtype: Dtype,
    steps: Vec<StepEntry>,
}

impl RecordWriter {
    /// Begins a record whose gradients are stored as `dtype`.
    ///
    /// # Errors
    ///
    /// If `target` exists or its folder cannot be made.
    pub fn create(target: &Path, dtype: Dtype) -> Result<Self> {
        Ok(Self { staging: Staging::folder(target)?, dtype, steps: Vec::new() })
    }

    /// Adds the next step's gradients.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn step(
        &mut self,
        report: StepReport,
        gradients: &[((usize, ModuleName), StepGradients)],
    ) -> Result<()> {
        let step = self.steps.len() + 1;
        let file = format!("step-{step:05}.safetensors");
        let path = self.staging.path().join(&file);
        let specs: Vec<_> = gradients
            .iter()
            .flat_map(|((layer, module), pair)| {
                let name = format!("layers.{layer}.{module}");
                [
                    TensorSpec::new(format!("{name}.lora_A"), self.dtype, pair.a.shape()),
                    TensorSpec::new(format!("{name}.lora_B"), self.dtype, pair.b.shape()),
                ]
            })
            .collect();
        let mut out = Hashing::new(fs_err::File::create(&path)?);
        out.write_all(&header(&specs))?;
        for (_, pair) in gradients {
            for matrix in [&pair.a, &pair.b] {
                let matrix = matrix.as_standard_layout();
                let values = matrix.as_slice().unwrap_or(&[]);
                match self.dtype {
                    Dtype::F32 => out.write_all(bytemuck::cast_slice(values))?,
                    dtype => out.write_all(&crate::narrow(values, dtype))?,
                }
            }
        }
        self.steps.push(StepEntry { step, file, sha256: Some(out.digest()), report });
        Ok(())
    }

    /// Adds a file of further evidence, as JSON.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn add(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write_json(&self.staging.path().join(name), value)
    }

    /// Writes the manifest and gives the record its name.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn finish(
        self,
        num_layers: usize,
        lora: LoraSettings,
        seed: u64,
        sources: (ModelSource, DataSource),
        activations: Option<&Activations>,
    ) -> Result<Manifest> {
        let (model, data) = sources;
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            num_layers,
            lora,
            seed: Some(seed),
            model: Some(model),
            data: Some(data),
            steps: self.steps,
        };
        write_json(&self.staging.path().join("manifest.json"), &manifest)?;
        if let Some(activations) = activations {
            write_json(&self.staging.path().join("activations.json"), activations)?;
        }
        self.staging.commit()?;
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::Module;

    fn write(folder: &Path, steps: &[StepGradients]) {
        let mut writer = RecordWriter::create(folder, Dtype::F32).unwrap();
        for pair in steps {
            let report = StepReport { loss: 1.0, grad_norm: 2.0, learning_rate: 0.1, tokens: 3 };
            writer.step(report, &[((0, Module::QProj.into()), pair.clone())]).unwrap();
        }
        let lora = LoraSettings { rank: 1, alpha: 2.0, targets: vec!["q_proj".into()] };
        let model = ModelSource { name: "m".into(), config_sha256: "0".into() };
        let data = DataSource { path: "d".into(), sha256: "0".into(), rows: 1 };
        let activations = Activations::new(9, vec![0.5]);
        writer.finish(1, lora, 7, (model, data), Some(&activations)).unwrap();
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("record");
        let pair = StepGradients { a: array![[1.0, 2.0, 3.0]], b: array![[4.0], [5.0]] };
        write(&path, &[pair.clone(), pair.clone()]);
        let record = Record::open(&path).unwrap();
        record.verify().unwrap();
        assert_eq!((record.num_steps(), record.num_layers()), (2, 1));
        assert_eq!(record.shape(0, &Module::QProj.into()), Some((2, 3)));
        let found = record.gradients(1, 0, &Module::QProj.into()).unwrap();
        assert!(found.a == pair.a && found.b == pair.b);
        assert_eq!(record.activations().unwrap().block_influence, [0.5]);

        // Without its manifest it is read from its step files alone.
        fs_err::remove_file(path.join("manifest.json")).unwrap();
        assert_eq!(Record::open(&path).unwrap().num_steps(), 2);
    }

    #[test]
    fn steps_that_disagree_are_refused() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("record");
        let one = StepGradients { a: array![[1.0, 2.0]], b: array![[4.0]] };
        let other = StepGradients { a: array![[1.0, 2.0], [3.0, 4.0]], b: array![[4.0, 5.0]] };
        write(&path, &[one, other]);
        let error = Record::open(&path).unwrap_err().to_string();
        assert!(error.contains("another shape or rank"), "{error}");
    }
    /// Opens a record of two steps whose manifest was changed.
    fn check(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("record");
        let pair = StepGradients { a: array![[1.0]], b: array![[4.0]] };
        write(&path, &[pair.clone(), pair]);
        let file = path.join("manifest.json");
        let mut manifest = testkit::json(&file);
        change(&mut manifest);
        fs_err::write(&file, manifest.to_string()).unwrap();
        Record::open(&path).unwrap_err().to_string()
    }

    #[test]
    fn manifests_that_lie_are_refused() {
        for (at, value, reason) in [
            ("/num_layers", 1_u64 << 32, "says 4294967296 layers; 1 to 10000"),
            ("/num_layers", 0, "says 0 layers"),
            ("/lora/rank", u64::MAX, "says rank 18446744073709551615"),
            ("/steps/1/step", 1, "has step 1 where step 2 belongs"),
            ("/steps/0/step", 0, "has step 0 where step 1 belongs"),
        ] {
            let error = check(|manifest| *manifest.pointer_mut(at).unwrap() = value.into());
            assert!(error.contains(reason), "{error}");
        }
        for (file, reason) in [
            ("../record/step-00002.safetensors", "which is not a plain file name"),
            ("/etc/hosts", "which is not a plain file name"),
            ("..", "which is not a plain file name"),
            ("step-00001.safetensors", "names `step-00001.safetensors` for two steps"),
        ] {
            let error = check(|manifest| manifest["steps"][1]["file"] = file.into());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn step_files_alone_are_numbered_without_a_gap() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("record");
        let pair = StepGradients { a: array![[1.0]], b: array![[4.0]] };
        write(&path, &[pair.clone(), pair]);
        fs_err::remove_file(path.join("manifest.json")).unwrap();
        let second = path.join("step-00002.safetensors");
        for (name, reason) in [
            ("step-00003.safetensors", "it stands where step 2 belongs"),
            ("step-1.safetensors", "step 1 is there twice"),
            ("step-x.safetensors", "`step-x.safetensors` has no step's number"),
        ] {
            fs_err::rename(&second, path.join(name)).unwrap();
            let error = Record::open(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            fs_err::rename(path.join(name), &second).unwrap();
        }
    }
}
