//! Carrying out a plan: the pruned checkpoint, tensor by tensor (method.md §7).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::available_parallelism;

use checkpoint::{
    Checkpoint, CheckpointWriter, Staging, TensorSpec, TensorView, copy_companions,
    require_companions,
};
use rayon::prelude::*;
use selection::{Merge, Plan, Repair};
use serde::{Deserialize, Serialize};

use crate::repairs::{self, Edits, Inputs, Opened, Place};
use crate::{RepairError, Result, Size};

/// What [`apply`] needs to know.
#[derive(Debug, Clone)]
pub struct PruneSettings {
    /// Folder of the checkpoint to prune.
    pub model: PathBuf,
    /// What to do.
    pub plan: Plan,
    /// Folder of the gradient record; needed if the plan merges.
    pub record: Option<PathBuf>,
    /// Folder of what the plan's repair was fitted: linear maps, scales or retrained layers; needed if it is fitted.
    pub fitted: Option<PathBuf>,
    /// Folder to write.
    pub target: PathBuf,
    /// Most bytes of tensors in one file.
    pub shard_bytes: u64,
    /// Read the result back and compare every tensor with what the plan makes of the source.
    pub verify: bool,
}

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PruneReport {
    pub target: PathBuf,
    pub retained: Vec<usize>,
    pub pruned: Vec<usize>,
    pub merges: Vec<Merge>,
    pub repair: Repair,
    /// How far the repair goes, if it may go less than the whole way; 0 if it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<f64>,
    pub before: Size,
    pub after: Size,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_tensors: Option<usize>,
}

/// Writes the pruned checkpoint. `observe` sees how many of how many tensors are written.
///
/// Retained layers are renumbered in order, the weights that the repair changes are computed, the
/// configuration follows, and all else is byte for byte the source: the kernel copies it from file to file
/// meanwhile. Tensors of layers beyond the configuration's last are left out. Held in memory are, to merge, the
/// importance of one weight, 224 MiB at most, its gradients of as many steps as fit 48 MiB (or of one), its
/// donors' masks and a block of each; for linear maps one map and one weight as f32; for `weighted`
/// the importance of some rows of both sides besides.
///
/// # Errors
///
/// If the model, the plan, the record and the maps do not fit each other, a gradient is not finite, a source
/// changes meanwhile, the target exists, or the disk is full or refuses; nothing is left under the
/// target's name then.
pub fn apply(
    settings: &PruneSettings,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<PruneReport> {
    let PruneSettings { model, plan, record, fitted, target, shard_bytes, verify } = settings;
    plan.check()?;
    let source = Checkpoint::open(model)?;
    require_companions(model)?;
    plan.require_layers(source.num_layers())?;
    let inputs = Inputs { plan, source: &source, record: record.as_ref(), fitted: fitted.as_ref() };
    let repair = repairs::open(&inputs)?;

    let work = Work::new(&source, plan, &*repair);
    let staging = Staging::folder(target)?;
    copy_companions(model, staging.path())?;
    let raw = serde_json::Value::Object(source.outline().with_layers(&plan.retained())?);
    let text = format!("{raw:#}\n");
    fs_err::write(staging.path().join("config.json"), text)
        .map_err(checkpoint::CheckpointError::from)?;
    let writer = CheckpointWriter::create(staging.path(), work.specs(), *shard_bytes)?;
    work.write(&writer, observe)?;
    writer.finish()?;
    source.weights().require_unchanged()?;
    repair.require_unchanged()?;
    let pruned = Checkpoint::open(staging.path())?;
    let verified_tensors = match verify {
        true => Some(work.verify(&pruned, observe)?),
        false => None,
    };
    staging.commit()?;
    Ok(PruneReport {
        target: target.clone(),
        retained: plan.retained(),
        pruned: plan.pruned.clone(),
        merges: plan.merges.clone(),
        repair: plan.repair(),
        step: plan.step(),
        before: Size::of(&source),
        after: Size::of(&pruned),
        verified_tensors,
    })
}

/// What becomes of each tensor of the source.
struct Work<'a> {
    source: &'a Checkpoint,
    plan: &'a Plan,
    repair: &'a dyn Opened,
    /// Tensors that stay as they are, in the order they lie on disk, and their new names.
    copied: Vec<(TensorView<'a>, String)>,
    /// Tensors of linear maps that the repair changes.
    edited: Vec<(TensorView<'a>, String, Place)>,
    /// All of them, in the order they lie on disk.
    specs: Vec<TensorSpec>,
}

impl<'a> Work<'a> {
    fn new(source: &'a Checkpoint, plan: &'a Plan, repair: &'a dyn Opened) -> Self {
        let (copied, edited, specs) = (Vec::new(), Vec::new(), Vec::new());
        let mut work = Self { source, plan, repair, copied, edited, specs };
        let (retained, edits, outline) = (plan.retained(), work.edits(), source.outline());
        for view in source.weights().iter() {
            let Some(name) = outline.name_among(view.name(), &retained) else { continue };
            work.specs.push(TensorSpec::like(&view, &name));
            match Place::of(outline, &view).filter(|place| edits.change(place)) {
                Some(place) => work.edited.push((view, name, place)),
                None => work.copied.push((view, name)),
            }
        }
        work
    }

    fn specs(&self) -> Vec<TensorSpec> {
        self.specs.clone()
    }

    /// Copies on some threads and computes what changes on another meanwhile.
    fn write(
        &self,
        writer: &CheckpointWriter,
        observe: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let mut shards: BTreeMap<usize, Vec<&(TensorView<'a>, String)>> = BTreeMap::new();
        for tensor in &self.copied {
            shards.entry(writer.shard_of(&tensor.1)).or_default().push(tensor);
        }
        let copiers = available_parallelism().map_or(1, usize::from).min(shards.len());
        let (waiting, failed) = (Mutex::new(shards), AtomicBool::new(false));
        let step = |result: Result<()>, done: &mpsc::Sender<()>| {
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            // Whoever counts them stays until all who send are done.
            let _ = done.send(());
            result
        };
        let next_shard = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
        let copy = |done: mpsc::Sender<()>| -> Result<()> {
            while let Some((_, tensors)) = next_shard() {
                for (view, name) in tensors {
                    if failed.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    step(writer.copy(name, view).map_err(RepairError::from), &done)?;
                }
            }
            Ok(())
        };
        let edit = |done: mpsc::Sender<()>| -> Result<()> {
            let mut edits = self.edits();
            for (view, name, place) in &self.edited {
                if failed.load(Ordering::Relaxed) {
                    break;
                }
                let Place { layer, module, .. } = place;
                tracing::info!(layer, %module, repair = %self.plan.repair(), "changing");
                let mut take = |offset, part: &[u8]| Ok(writer.write_part(name, offset, part)?);
                step(edits.write(view, place, &mut take), &done)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let (done, progress) = mpsc::channel();
            let mut workers: Vec<_> = (0..copiers)
                .map(|_| {
                    let done = done.clone();
                    scope.spawn(|| copy(done))
                })
                .collect();
            workers.push(scope.spawn(|| edit(done)));
            for (count, ()) in progress.into_iter().enumerate() {
                observe(count + 1, self.specs.len());
            }
            workers
                .into_iter()
                .map(|worker| {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .fold(Ok(()), Result::and)
        })
    }

    fn edits(&self) -> Box<dyn Edits + 'a> {
        self.repair.edits(self.source, self.plan)
    }

    /// Compares every tensor of the result with what the plan makes of the source; returns how many
    /// there are.
    fn verify(&self, found: &Checkpoint, observe: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        let total = self.specs.len();
        let differs = |name: &str| RepairError::Differs { name: name.to_owned() };
        let mut done = 0;
        if found.weights().iter().count() != total {
            return Err(differs("model.safetensors.index.json"));
        }
        for (view, name) in &self.copied {
            if !same_bytes(found.tensor(name)?.bytes(), view.bytes()) {
                return Err(differs(name));
            }
            done += 1;
            observe(done, total);
        }
        let mut edits = self.edits();
        for (view, name, place) in &self.edited {
            let written = found.tensor(name)?;
            let mut compare = |offset: u64, part: &[u8]| {
                let from = offset as usize;
                match written.bytes().get(from..from + part.len()) {
                    Some(written) if same_bytes(written, part) => Ok(()),
                    _ => Err(differs(name)),
                }
            };
            edits.write(view, place, &mut compare)?;
            done += 1;
            observe(done, total);
        }
        Ok(done)
    }
}

/// Bytes that a thread compares at a time.
const COMPARED: usize = 1 << 22;

fn same_bytes(found: &[u8], expected: &[u8]) -> bool {
    found.len() == expected.len()
        && found.par_chunks(COMPARED).zip(expected.par_chunks(COMPARED)).all(|(x, y)| x == y)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::path::Path;

    use checkpoint::{
        DataSource, Dtype, ModelConfig, ModelSource, Module, Record, RecordWriter, StepGradients,
    };

    use super::*;
    use crate::{FittedRun, MapsHeader, MapsWriter};

    pub(crate) fn settings(name: &str, target: &Path) -> PruneSettings {
        PruneSettings {
            model: testkit::fixture(&format!("{name}/model")),
            plan: Plan::read(&testkit::fixture(&format!("{name}/plan.json"))).unwrap(),
            record: Some(testkit::fixture(&format!("{name}/record"))),
            fitted: None,
            target: target.to_owned(),
            shard_bytes: u64::MAX,
            verify: true,
        }
    }

    /// The tensors of a pruned checkpoint that are not those of the source, sorted.
    pub(crate) fn changed_tensors(settings: &PruneSettings) -> Vec<String> {
        let source = Checkpoint::open(&settings.model).unwrap();
        let found = Checkpoint::open(&settings.target).unwrap();
        let retained = settings.plan.retained();
        let mut changed = Vec::new();
        for view in source.weights().iter() {
            let Some(name) = source.outline().name_among(view.name(), &retained) else { continue };
            if found.tensor(&name).unwrap().bytes() != view.bytes() {
                changed.push(name);
            }
        }
        changed.sort();
        changed
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
            assert_eq!(found.outline().raw(), expected.outline().raw(), "{name}");
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
        settings.plan.density = 0.0.into();
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

        // A NaN in a donor's gradient, or a number whose square is beyond f32, found while the
        // checkpoint is being written.
        let broken = testkit::temporary_folder();
        let record = broken.path().join("record");
        let write = |value: f32| {
            testkit::copy_folder(&testkit::fixture("tiny_llama/record"), &record);
            let file = record.join("step-00002.safetensors");
            let mut bytes = fs_err::read(&file).unwrap();
            let (_, target) = testkit::tensor_bytes(&file, "layers.5.mlp.down_proj.lora_B");
            let at = bytes.windows(target.len()).position(|window| window == target).unwrap();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            fs_err::write(&file, bytes).unwrap();
        };
        write(1e30);
        let reason = "step 2, layer 5 mlp.down_proj cannot be scored: the gradients are too large";
        check(&PruneSettings { record: Some(record.clone()), ..good.clone() }, reason);
        write(f32::NAN);
        check(
            &PruneSettings { record: Some(record), ..good },
            "step 2, layer 5 mlp.down_proj cannot be scored: a gradient is not finite",
        );
    }

    /// Source and record in a folder of their own, to be broken.
    fn breakable(folder: &Path) -> PruneSettings {
        let mut settings = settings("tiny_llama", &folder.join("out"));
        let (model, record) = (folder.join("model"), folder.join("record"));
        testkit::copy_folder(&settings.model, &model);
        testkit::copy_folder(&testkit::fixture("tiny_llama/record"), &record);
        (settings.model, settings.record) = (model, Some(record));
        settings
    }

    #[test]
    fn a_source_that_changes_meanwhile_is_refused() {
        for changed in ["model/model.safetensors", "record/step-00003.safetensors"] {
            let folder = testkit::temporary_folder();
            let settings = breakable(folder.path());
            let file = folder.path().join(changed);
            let mut touched = false;
            let mut touch = |_, _| {
                if !std::mem::replace(&mut touched, true) {
                    // Longer, not shorter for a while: the file is mapped.
                    let mut file = fs_err::OpenOptions::new().append(true).open(&file).unwrap();
                    file.write_all(&[0]).unwrap();
                }
            };
            let error = apply(&settings, &mut touch).unwrap_err().to_string();
            assert!(error.contains("changed while it was read"), "{error}");
            assert!(!settings.target.exists() && !folder.path().join(".out.partial").exists());
        }
    }

    /// A copy of a record that lacks a module.
    fn without(record: &Record, module: Module, target: &Path) {
        let mut writer = RecordWriter::create(target, Dtype::F32).unwrap();
        let manifest = record.manifest().unwrap().clone();
        for (step, entry) in manifest.steps.iter().enumerate() {
            let pairs: Vec<_> = record
                .pairs()
                .filter(|(_, found)| *found != module)
                .map(|(layer, module)| {
                    let pair = record.gradients(step, layer, &module).unwrap();
                    let (a, b) = (pair.a.into_owned(), pair.b.into_owned());
                    ((layer, module), StepGradients { a, b })
                })
                .collect();
            writer.step(entry.report, &pairs).unwrap();
        }
        let name = String::new;
        let sources = (
            ModelSource { name: name(), config_sha256: name() },
            DataSource { path: name(), sha256: name(), rows: 0 },
        );
        writer.finish(manifest.num_layers, manifest.lora, 0, sources, None).unwrap();
    }

    #[test]
    fn a_record_without_a_donors_module_is_refused() {
        let folder = testkit::temporary_folder();
        let settings = breakable(folder.path());
        let whole = Record::open(&testkit::fixture("tiny_llama/record")).unwrap();
        let path = folder.path().join("part");
        without(&whole, Module::UpProj, &path);
        let settings = PruneSettings { record: Some(path), ..settings };
        let error = apply(&settings, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("no gradients of layer"), "{error}");
        assert!(error.contains("mlp.up_proj") && !settings.target.exists(), "{error}");
    }

    #[test]
    fn verifying_finds_a_changed_byte() {
        let folder = testkit::temporary_folder();
        let settings = breakable(folder.path());
        assert_eq!(apply(&settings, &mut |_, _| {}).unwrap().verified_tensors, Some(30));
        let (source, found) = (&settings.model, &settings.target);
        let source = Checkpoint::open(source).unwrap();
        let inputs = Inputs {
            plan: &settings.plan,
            source: &source,
            record: settings.record.as_ref(),
            fitted: None,
        };
        let repair = repairs::open(&inputs).unwrap();
        let work = Work::new(&source, &settings.plan, &*repair);
        let file = found.join("model.safetensors");
        let whole = fs_err::read(&file).unwrap();
        for name in ["model.norm.weight", "model.layers.2.mlp.down_proj.weight"] {
            let offset = Checkpoint::open(found).unwrap().tensor(name).unwrap().offset() as usize;
            let mut bytes = whole.clone();
            bytes[offset + 3] ^= 1;
            // Replaced, not written to: the file is mapped.
            fs_err::write(folder.path().join("changed"), bytes).unwrap();
            fs_err::rename(folder.path().join("changed"), &file).unwrap();
            let error = work.verify(&Checkpoint::open(found).unwrap(), &mut |_, _| {});
            assert!(error.unwrap_err().to_string().contains(name));
        }
    }

    /// Writes maps for a plan of `tiny_llama`'s, `T[k, i] = f(receiver, k, i)`.
    fn write_maps(target: &Path, plan: &Plan, element: &dyn Fn(usize, usize, usize) -> f32) {
        let config = ModelConfig::read(&testkit::fixture("tiny_llama/model")).unwrap();
        let name = String::new;
        let sources = (
            ModelSource { name: name(), config_sha256: name() },
            DataSource { path: name(), sha256: name(), rows: 0 },
        );
        let side = config.hidden_size;
        let header = MapsHeader::new(plan, side, 1e-3, sources);
        let mut writer = MapsWriter::create(target, plan, header).unwrap();
        for (receiver, run) in plan.runs() {
            let (receiver, first, last) = (receiver.unwrap(), *run.start(), *run.end());
            let matrix: Vec<f32> =
                (0..side * side).map(|at| element(receiver, at / side, at % side)).collect();
            let run = FittedRun { receiver, first, last, error_before: 1.0, error_after: 0.5 };
            writer.write(run, &matrix).unwrap();
        }
        writer.finish(7).unwrap();
    }

    /// Each run's map is folded into the weight before it, and nothing else changes.
    #[test]
    fn linear_maps_are_folded_in() {
        let folder = testkit::temporary_folder();
        let maps = folder.path().join("maps");
        let plan = Plan::new(6, vec![2, 3, 5], vec![], 0.2).with_repair(Repair::LinearMap).unwrap();
        let element = |receiver: usize, k: usize, i: usize| {
            ((receiver * 31 + k * 7 + i * 3) as f32).sin() + f32::from(u8::from(k == i))
        };
        write_maps(&maps, &plan, &element);
        let good = PruneSettings {
            plan: plan.clone(),
            record: None,
            fitted: Some(maps),
            ..settings("tiny_llama", &folder.path().join("mapped"))
        };
        assert_eq!(apply(&good, &mut |_, _| {}).unwrap().repair, Repair::LinearMap);
        let dropped = PruneSettings {
            plan: Plan::new(6, plan.pruned.clone(), vec![], 0.2),
            fitted: None,
            target: folder.path().join("dropped"),
            ..good.clone()
        };
        apply(&dropped, &mut |_, _| {}).unwrap();
        let source = Checkpoint::open(&good.model).unwrap();
        let (found, dropped) =
            (Checkpoint::open(&good.target).unwrap(), Checkpoint::open(&dropped.target).unwrap());
        // Layers 1 and 4 of the source are 1 and 2 of the result.
        let changed = [(1, 1), (4, 2)].map(|(receiver, position)| {
            let name = |layer| checkpoint::tensor_name(layer, Module::DownProj);
            let weight = source.tensor(&name(receiver)).unwrap();
            let &[rows, columns] = weight.shape() else { panic!("two dimensions") };
            let values = weight.to_f32().unwrap();
            let mut expected = Vec::new();
            for i in 0..rows {
                for j in 0..columns {
                    let mut sum = 0.0;
                    for k in 0..rows {
                        let (map, value) = (element(receiver, k, i), values[k * columns + j]);
                        sum += f64::from(map) * f64::from(value);
                    }
                    expected.push(sum as f32);
                }
            }
            let found = found.tensor(&name(position)).unwrap().to_f32().unwrap();
            let expected = checkpoint::narrow(&expected, weight.dtype().unwrap());
            assert_eq!(found, checkpoint::widen(&expected, weight.dtype().unwrap()));
            name(position)
        });
        for view in dropped.weights().iter().filter(|view| !changed.contains(&view.name().into())) {
            assert_eq!(found.tensor(view.name()).unwrap().bytes(), view.bytes(), "{}", view.name());
        }
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        let plan = Plan::new(6, vec![2, 3, 5], vec![], 0.2).with_repair(Repair::LinearMap).unwrap();
        write_maps(&at("maps"), &plan, &|_, _, _| 1.0);
        let check = |plan: &Plan, maps: Option<PathBuf>, reason: &str| {
            let base = settings("tiny_llama", &at("out"));
            let settings = PruneSettings { plan: plan.clone(), record: None, fitted: maps, ..base };
            let error = apply(&settings, &mut |_, _| {}).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!at("out").exists());
        };
        check(&plan, None, "add `--train`, or take `--repair drop`");
        let other = Plan::new(6, vec![2, 5], vec![], 0.2).with_repair(Repair::LinearMap).unwrap();
        check(&other, Some(at("maps")), "it is for [2, 3, 5] pruned, the plan prunes [2, 5]");
        check(&plan, Some(at("none")), "maps.json");
        write_maps(&at("wild"), &plan, &|_, k, _| if k == 3 { f32::NAN } else { 0.0 });
        check(&plan, Some(at("wild")), "`layers.1.map` is not finite");
        let text = fs_err::read_to_string(at("maps/maps.json")).unwrap();
        fs_err::write(at("maps/maps.json"), text.replace("\"last\": 3", "\"last\": 4")).unwrap();
        check(&plan, Some(at("maps")), "its runs are not those of the pruned layers");
    }
}
