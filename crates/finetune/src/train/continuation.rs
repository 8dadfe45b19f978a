//! What a training goes on from: a state that a deeper model's training left.

use std::path::PathBuf;

use checkpoint::Module;

use crate::state::Source;
use crate::{Origin, RunScale};

/// A state that a training of a deeper model left, to go on from with some of its layers.
///
/// Where the cuts were repaired by scales, the stream at a layer is smaller by `a`, the product of the `α` of all cuts before
/// it, and what `o_proj` and `down_proj` add is divided by it, as their weights are:
///
/// ```text
/// B' = B / a,   m' = a·m,   v' = a²·v
/// ```
///
/// with `m` and `v` the running means of `B`'s gradient and of its square: the stream's gradient is `a` times as large where
/// the stream is smaller, so `∂L/∂B' = a · ∂L/∂B`, while `A`'s gradient, through `B'`, stays as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    /// The folder it was left in.
    pub folder: PathBuf,
    /// How many layers that model had.
    pub num_layers: usize,
    /// Each layer's number in that model.
    pub origin: Vec<usize>,
    /// By how much the stream is smaller behind each run of layers that is gone, if that was repaired by scales, else none.
    pub scales: Vec<RunScale>,
}

impl Continuation {
    pub(super) fn cuts(&self) -> Origin<'_> {
        Origin { layers: &self.origin, scales: &self.scales }
    }

    /// Where the state of a trained tensor lies there.
    pub(super) fn source(&self, name: &str) -> Source {
        let place = name.strip_prefix("layers.").and_then(|rest| {
            let (number, rest) = rest.split_once('.')?;
            Some((*self.origin.get(number.parse::<usize>().ok()?)?, rest))
        });
        let Some((layer, rest)) = place else { return Source::of(name) };
        let module = rest.strip_suffix(".lora_B").and_then(|name| name.parse::<Module>().ok());
        let divisor = module.map_or(1.0, |module| self.cuts().divisor(layer, module));
        Source { name: format!("layers.{layer}.{rest}"), divisor }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dataset::Example;
    use selection::{Plan, Repair};

    use super::*;
    use crate::bridge::values;
    use crate::decoder::Keep;
    use crate::measure_scales;
    use crate::observer::Nobody;
    use crate::scale::tests::repaired;
    use crate::train::tests::{golden_model, lora, rows, settings};
    use crate::train::{Passes, backward};
    use crate::{ComputeType, DeviceChoice, FinetuneError, Model, ScaleSettings, Trainer};

    /// The model that a training goes on with is the one that its repair was judged by, and its moments are those of
    /// the gradients that it has there.
    #[test]
    fn a_scaled_model_goes_on_as_it_was_judged() {
        let name = "tiny_llama";
        let folder = testkit::temporary_folder();
        let state = folder.path().join("state");
        let data = rows(name);
        let examples: Vec<&Example> = data.examples.iter().collect();
        let mut collected = Trainer::new(golden_model(name), settings(lora()), rows(name)).unwrap();
        collected.run_until(12, Some(&state), &mut |_| {}).unwrap();
        let old: BTreeMap<String, [Vec<f32>; 3]> = collected
            .adamw
            .slots
            .iter()
            .map(|slot| {
                let all = [&slot.tensor, &slot.mean, &slot.square];
                (slot.name.clone(), all.map(|tensor| values(tensor).unwrap()))
            })
            .collect();
        let dense = collected.into_model();

        let plan = Plan::new(6, vec![1, 4], vec![], 0.2).with_repair(Repair::Scale).unwrap();
        let runs = plan.runs().into_iter().map(|(_, run)| run).collect();
        let of = ScaleSettings { runs, batch_tokens: 64 };
        let measured = measure_scales(&dense, &examples, &of).unwrap();
        let source = testkit::fixture(&format!("{name}/model"));
        let mut judged = repaired(folder.path(), &source, (&plan, &measured));
        let layers = plan.retained();
        Origin { layers: &layers, scales: &measured.runs }.share_adapters(&dense, &mut judged);

        let trainer = |scales: Vec<RunScale>| {
            let scaled = folder.path().join("scaled");
            let scaled = Model::load(&scaled, DeviceChoice::Cpu, ComputeType::F32).unwrap();
            let mut trainer = Trainer::new(scaled, settings(lora()), rows(name)).unwrap();
            let (folder, origin) = (state.clone(), layers.clone());
            let from = Continuation { folder, num_layers: 6, origin, scales };
            trainer.go_on(&from).map(|()| trainer)
        };
        let restored = trainer(measured.runs.clone()).unwrap();
        let tokens: Vec<&Vec<u32>> = examples.iter().map(|row| &row.tokens).collect();
        let logits = |model: &Model| {
            let one = |tokens: &&Vec<u32>| model.all_logits(&[tokens]).unwrap();
            tokens.iter().flat_map(one).collect::<Vec<f32>>()
        };
        let expected = logits(&judged);
        let apart = testkit::relative_deviation(&logits(restored.model()), &expected);
        // `B / a` is rounded once more.
        assert!(apart < 1e-6, "{apart}");
        let other = trainer(vec![]).unwrap();
        assert!(testkit::relative_deviation(&logits(other.model()), &expected) > 1e-4);

        // By plain loops: two cuts, after the first and before the last of the layers that stay.
        let (first, second) = (measured.runs[0].factor, measured.runs[1].factor);
        let smaller = [1.0, first, first, first * second];
        let passes = || Passes { batch_rows: 8, keep: Keep::Activations, lesson: None };
        backward(&judged, &examples, passes(), &mut Nobody).unwrap();
        backward(restored.model(), &examples, passes(), &mut Nobody).unwrap();
        let of_judged = judged.trained();
        for (slot, (name, judged)) in restored.adamw.slots.iter().zip(&of_judged) {
            let (number, rest) = slot.name["layers.".len()..].split_once('.').unwrap();
            let layer: usize = number.parse().unwrap();
            let is_behind = rest == "self_attn.o_proj.lora_B" || rest == "mlp.down_proj.lora_B";
            let a = if is_behind { smaller[layer] } else { 1.0 };
            let old = &old[&format!("layers.{}.{rest}", layers[layer])];
            let found = [&slot.tensor, &slot.mean, &slot.square].map(|x| values(x).unwrap());
            for ((old, found), times) in old.iter().zip(&found).zip([1.0 / a, a, a * a]) {
                for (old, found) in old.iter().zip(found) {
                    let expected = f64::from(*old) * times;
                    let apart = (f64::from(*found) - expected).abs();
                    // Two roundings of f32.
                    assert!(apart <= expected.abs() * 1.5e-7, "{name}: {found}, {expected}");
                }
            }
            let of_judged = judged.gradient.as_ref().unwrap();
            let expected: Vec<f32> =
                values(of_judged).unwrap().iter().map(|x| (f64::from(*x) * a) as f32).collect();
            let apart = testkit::relative_deviation(&values(&slot.gradient).unwrap(), &expected);
            assert!(apart < 1e-4, "{name}: {apart}");
        }

        let refused = trainer(vec![RunScale { run: 1..=2, factor: 1.5 }]).unwrap_err();
        assert!(matches!(refused, FinetuneError::Settings(_)), "{refused}");
        assert!(refused.to_string().contains("the scale 1.5 of layers 1..=2"), "{refused}");
    }
}
