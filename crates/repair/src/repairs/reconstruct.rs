//! `reconstruct`: the layer before each run is another one, trained to do what both did (`XMerge`, arXiv 2609.02083).

use checkpoint::{Checkpoint, TensorView, narrow};
use selection::Plan;

use super::{BLOCK, Edits, Inputs, Opened, Part, Place, read_f32};
use crate::{Reconstructed, RepairError, Result};

/// Needs the retrained layers.
pub(super) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    let repair = inputs.plan.repair();
    let layers = Reconstructed::open(inputs.fitted.ok_or(RepairError::NoFit { repair })?)?;
    layers.require_fit(inputs.plan, inputs.source.config()?)?;
    Ok(Box::new(layers))
}

impl Opened for Reconstructed {
    fn edits<'a>(&'a self, _: &'a Checkpoint, _: &'a Plan) -> Box<dyn Edits + 'a> {
        Box::new(Replaced { layers: self })
    }

    fn require_unchanged(&self) -> Result<()> {
        self.weights_unchanged()
    }
}

/// The receivers' linear weights are the retrained ones, rounded to the stored type. Norms and biases stay.
struct Replaced<'a> {
    layers: &'a Reconstructed,
}

impl Edits for Replaced<'_> {
    fn change(&self, Place { layer, module, part }: &Place) -> bool {
        module.known().is_some()
            && *part == Part::Weight
            && self.layers.receivers().any(|receiver| receiver == *layer)
    }

    fn write(
        &mut self,
        tensor: &TensorView<'_>,
        Place { layer, module, .. }: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(module) = module.known() else { return Ok(()) };
        let retrained = self.layers.weight(*layer, module)?;
        let (dtype, size) = (tensor.dtype()?, tensor.shape().iter().product::<usize>());
        for first in (0..size).step_by(BLOCK) {
            let part = read_f32(&retrained, first, BLOCK.min(size - first))?;
            if part.iter().any(|value| !value.is_finite()) {
                return Err(self.layers.fail(format!("`{}` is not finite", retrained.name())));
            }
            take((first * dtype.size()) as u64, &narrow(&part, dtype))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use checkpoint::{DataSource, ModelConfig, ModelSource, Module, tensor_name, widen};
    use selection::Repair;

    use crate::apply::tests::{changed_tensors, settings};
    use crate::{
        FittedRun, PruneSettings, ReconstructedHeader, ReconstructedWriter, Retraining, apply,
    };

    use super::*;

    fn plan(pruned: &[usize]) -> Plan {
        Plan::new(6, pruned.to_vec(), vec![], 0.2).with_repair(Repair::Reconstruct).unwrap()
    }

    fn element(receiver: usize, module: Module, at: usize) -> f32 {
        ((receiver * 31 + module as usize * 7 + at) as f32).sin() / 7.0
    }

    fn write(target: &Path, plan: &Plan, element: &dyn Fn(usize, Module, usize) -> f32) {
        let config = ModelConfig::read(&testkit::fixture("tiny_qwen2/model")).unwrap();
        let name = String::new;
        let by = Retraining {
            steps: 3,
            rate: 1e-3,
            model: ModelSource { name: name(), config_sha256: name() },
            data: DataSource { path: name(), sha256: name(), rows: 0 },
        };
        let header = ReconstructedHeader::new(plan, config.hidden_size, by);
        let mut writer = ReconstructedWriter::create(target, plan, &config, header).unwrap();
        for (receiver, run) in plan.runs() {
            let (receiver, first, last) = (receiver.unwrap(), *run.start(), *run.end());
            let weights: BTreeMap<Module, Vec<f32>> = Module::SPLIT
                .into_iter()
                .map(|module| {
                    let (out, inner) = config.linear_shape(module);
                    (module, (0..out * inner).map(|at| element(receiver, module, at)).collect())
                })
                .collect();
            let run = FittedRun { receiver, first, last, error_before: 1.0, error_after: 0.5 };
            writer.write(run, &weights).unwrap();
        }
        writer.finish(7).unwrap();
    }

    /// All linear weights of the layers before a run, in their stored type, and nothing else.
    #[test]
    fn receivers_are_replaced() {
        let folder = testkit::temporary_folder();
        let fitted = folder.path().join("layers");
        let plan = plan(&[2, 3, 5]);
        write(&fitted, &plan, &element);
        let base = settings("tiny_qwen2", &folder.path().join("out"));
        let settings = PruneSettings { plan, record: None, fitted: Some(fitted), ..base };
        apply(&settings, &mut |_, _| {}).unwrap();
        let found = Checkpoint::open(&settings.target).unwrap();
        let mut names = Vec::new();
        for (receiver, position) in [(1, 1), (4, 2)] {
            for module in Module::SPLIT {
                let name = tensor_name(position, module);
                let view = found.tensor(&name).unwrap();
                let dtype = view.dtype().unwrap();
                let size = view.shape().iter().product();
                let wide: Vec<f32> = (0..size).map(|at| element(receiver, module, at)).collect();
                assert_eq!(view.to_f32().unwrap(), widen(&narrow(&wide, dtype), dtype), "{name}");
                names.push(name);
            }
        }
        names.sort();
        assert_eq!(changed_tensors(&settings), names);
    }

    #[test]
    fn layers_that_do_not_fit_are_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        let good = plan(&[2, 3, 5]);
        write(&at("layers"), &good, &element);
        let check = |plan: &Plan, fitted: Option<PathBuf>, reason: &str| {
            let base = settings("tiny_qwen2", &at("out"));
            let settings = PruneSettings { plan: plan.clone(), record: None, fitted, ..base };
            let error = apply(&settings, &mut |_, _| {}).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!at("out").exists());
        };
        check(&good, None, "the plan repairs by `reconstruct`, which is fitted on rows");
        let reason = "it is for [2, 3, 5] pruned, the plan prunes [2, 5]";
        check(&plan(&[2, 5]), Some(at("layers")), reason);
        check(&good, Some(at("none")), "reconstructed.json");
        let wild = |receiver, _, _| if receiver == 4 { f32::NAN } else { 0.0 };
        write(&at("wild"), &good, &wild);
        check(&good, Some(at("wild")), "proj.weight` is not finite");
        let header = at("layers/reconstructed.json");
        let text = fs_err::read_to_string(&header).unwrap();
        fs_err::write(&header, text.replace("\"last\": 3", "\"last\": 4")).unwrap();
        check(&good, Some(at("layers")), "its runs are not those of the pruned layers");
    }
}
