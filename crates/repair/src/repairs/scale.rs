//! `scale`: what later layers add is made smaller, since the stream is (Prune&Comp, arXiv 2507.18212).

use checkpoint::{Checkpoint, Module, TensorView, narrow};
use merge::divide;
use selection::Plan;

use super::{BLOCK, Edits, Inputs, Opened, Place, read_f32};
use crate::{RepairError, Result, Scales};

/// Needs the scales.
pub(super) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    let repair = inputs.plan.repair();
    let folder = inputs.fitted.ok_or(RepairError::NoFit { repair })?;
    let scales = Scales::open(folder)?;
    scales.require_fit(folder, inputs.plan, inputs.source.config()?)?;
    Ok(Box::new(scales))
}

impl Opened for Scales {
    fn edits<'a>(&'a self, _: &'a Checkpoint, _: &'a Plan) -> Box<dyn Edits + 'a> {
        Box::new(Scale { scales: self })
    }

    /// They were read whole.
    fn require_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// Divides what a layer adds to the stream by the product `α` of the factors of all cuts before it:
///
/// ```text
/// x + f(n(x)) with x smaller by α:  x/α + f(n(x))/α,  so  W_o, b_o, W_down, b_down ← the same / α
/// ```
///
/// The norms `n` do not see the stream's size but for their epsilon.
struct Scale<'a> {
    scales: &'a Scales,
}

impl Edits for Scale<'_> {
    fn change(&self, Place { layer, module, .. }: &Place) -> bool {
        let adds = matches!(module.known(), Some(Module::OProj | Module::DownProj));
        adds && self.scales.before(*layer) != 1.0
    }

    fn write(
        &mut self,
        tensor: &TensorView<'_>,
        Place { layer, .. }: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let factor = self.scales.before(*layer);
        let (dtype, size) = (tensor.dtype()?, tensor.shape().iter().product::<usize>());
        for first in (0..size).step_by(BLOCK) {
            let mut part = read_f32(tensor, first, BLOCK.min(size - first))?;
            divide(&mut part, factor);
            take((first * dtype.size()) as u64, &narrow(&part, dtype))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use checkpoint::{DataSource, ModelConfig, ModelSource, widen};
    use selection::Repair;

    use crate::apply::tests::{changed_tensors, settings};
    use crate::{Cut, Measured, PruneSettings, apply};

    use super::*;

    fn scales(plan: &Plan, model: &str, factors: &[f64]) -> Result<Scales> {
        let config = ModelConfig::read(&testkit::fixture(model)).unwrap();
        let cut = |((_, run), &factor): ((_, std::ops::RangeInclusive<usize>), _)| Cut {
            first: *run.start(),
            last: *run.end(),
            factor,
        };
        let name = String::new;
        let measured = Measured {
            hidden_size: config.hidden_size,
            tokens: 7,
            model: ModelSource { name: name(), config_sha256: name() },
            data: DataSource { path: name(), sha256: name(), rows: 0 },
            cuts: plan.runs().into_iter().zip(factors).map(cut).collect(),
        };
        Scales::new(plan, measured)
    }

    /// Weights and biases of the layers behind a cut, and nothing else, with biases on every linear.
    #[test]
    fn outputs_of_later_layers_are_divided() {
        let model = "families/llama_linear_rope";
        let config = ModelConfig::read(&testkit::fixture(model)).unwrap();
        assert_eq!(config.num_layers, 3, "the plan below is for three");
        for (pruned, factors, expected) in [
            (vec![0], vec![1.5], vec![(1, 0, 1.5), (2, 1, 1.5)]),
            (vec![1], vec![3.0], vec![(2, 1, 3.0)]),
            (vec![0, 2], vec![0.75, 9.0], vec![(1, 0, 0.75)]),
            (vec![2], vec![9.0], vec![]),
        ] {
            let folder = testkit::temporary_folder();
            let plan = Plan::new(3, pruned, vec![], 0.2).with_repair(Repair::Scale).unwrap();
            let fitted = folder.path().join("scales");
            scales(&plan, model, &factors).unwrap().write(&fitted).unwrap();
            let base = settings("tiny_llama", &folder.path().join("out"));
            let model = testkit::fixture(model);
            let settings =
                PruneSettings { plan, model, record: None, fitted: Some(fitted), ..base };
            apply(&settings, &mut |_, _| {}).unwrap();
            let source = Checkpoint::open(&settings.model).unwrap();
            let found = Checkpoint::open(&settings.target).unwrap();
            let mut names = Vec::new();
            for (layer, position, factor) in expected {
                for rest in [
                    "self_attn.o_proj.weight",
                    "self_attn.o_proj.bias",
                    "mlp.down_proj.weight",
                    "mlp.down_proj.bias",
                ] {
                    let view = source.tensor(&format!("model.layers.{layer}.{rest}")).unwrap();
                    let dtype = view.dtype().unwrap();
                    let divided: Vec<f32> = view
                        .to_f32()
                        .unwrap()
                        .into_iter()
                        .map(|value| (f64::from(value) / factor) as f32)
                        .collect();
                    let name = format!("model.layers.{position}.{rest}");
                    let found = found.tensor(&name).unwrap().to_f32().unwrap();
                    assert_eq!(found, widen(&narrow(&divided, dtype), dtype), "{name}");
                    names.push(name);
                }
            }
            names.sort();
            assert_eq!(changed_tensors(&settings), names);
        }
    }

    #[test]
    fn scales_that_do_not_fit_are_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        let plan = |pruned: &[usize]| {
            Plan::new(6, pruned.to_vec(), vec![], 0.2).with_repair(Repair::Scale).unwrap()
        };
        let (good, model) = (plan(&[2, 3, 5]), "tiny_llama/model");
        scales(&good, model, &[2.0, 3.0]).unwrap().write(&at("scales")).unwrap();
        for (factors, reason) in [
            (&[2.0][..], "its cuts are not those of the pruned layers [2, 3, 5]"),
            (&[2.0, 0.0], "the factor at layer 5 is 0 and with those before it 0"),
            (&[-1.0, 2.0], "the factor at layer 2 is -1"),
            (&[f64::NAN, 2.0], "the factor at layer 2 is NaN"),
            (&[1e3, 1e3], "with those before it 1000000, not from 0.0001 to 10000"),
        ] {
            let error = scales(&good, model, factors).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let check = |plan: &Plan, fitted: Option<PathBuf>, reason: &str| {
            let base = settings("tiny_llama", &at("out"));
            let settings = PruneSettings { plan: plan.clone(), record: None, fitted, ..base };
            let error = apply(&settings, &mut |_, _| {}).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!at("out").exists());
        };
        check(&good, None, "the plan repairs by `scale`, which is fitted on rows; add `--train`");
        let reason = "it is for [2, 3, 5] pruned, the plan prunes [2, 5]";
        check(&plan(&[2, 5]), Some(at("scales")), reason);
        check(&good, Some(at("none")), "scales.json");
        let text = fs_err::read_to_string(at("scales/scales.json")).unwrap();
        let other = text.replace("gradpruner-scales", "gradpruner-linear-maps");
        fs_err::write(at("scales/scales.json"), other).unwrap();
        check(&good, Some(at("scales")), "not `gradpruner-scales` 1");
    }
}
