//! The layer before each run trained to do what both did (`XMerge`, arXiv 2609.02083).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use checkpoint::Module;
use dataset::Example;
use tch::{Kind, Tensor};

use crate::bridge::{number, values};
use crate::layer::{Descent, Layer};
use crate::observer::Nobody;
use crate::offload::Passage;
use crate::optimizer::AdamW;
use crate::parameter::Parameter;
use crate::stop;
use crate::walk::{Pack, Walk};
use crate::{AdamWSettings, FinetuneError, Model, Result};

/// What is trained, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconstructSettings {
    /// Runs of layers that go, ascending, each with the layer before it, which stays and is trained. The first run may have
    /// none; it goes without.
    pub runs: Vec<(Option<usize>, RangeInclusive<usize>)>,
    /// Steps for each.
    pub steps: usize,
    /// The learning rate of the first step; it falls to 0 along a line.
    pub rate: f64,
    /// Tokens of a step, and of a forward pass.
    pub batch_tokens: usize,
}

/// A layer that does what it and the run behind it did.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconstructedLayer {
    /// The layer before the run.
    pub receiver: usize,
    /// The layers it replaces.
    pub run: RangeInclusive<usize>,
    /// `‖x̂ − x‖² / ‖x‖²` of the run's output with the layer as it was.
    pub error_before: f64,
    /// The same as it is.
    pub error_after: f64,
    /// Its linear weights, `[out, in]`, row-major.
    pub weights: BTreeMap<Module, Vec<f32>>,
}

/// Adam's usual constants; gradients of a relative error are small, and so is the epsilon.
const ADAM: AdamWSettings =
    AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-12, weight_decay: 0.0 };

/// Trains, for each run of layers after a layer `r`, all linear weights of `r` so that its output comes close to the
/// run's:
///
/// ```text
/// min_W ‖f_W(x_r) − x‖² / ‖x‖²
/// ```
///
/// with `x_r` the input of `r` in the model as it is repaired so far and `x` the run's output in the dense model, over
/// all tokens but the first of each row. Adam in f32, `batch_tokens` tokens a step, pack after pack of the rows, so that
/// equal input gives equal weights. Norms, biases and adapters stay as they are. A layer that training makes no better
/// is handed on as it was.
///
/// All rows go through one layer at a time; held are two states of each token, two more within a run, and one layer's
/// weights, gradients and moments in f32. Returns how many tokens were trained on; `take` gets each layer when it is
/// done.
///
/// # Errors
///
/// [`FinetuneError::Settings`] if there are no tokens to train on or states are not finite; if libtorch refuses, or
/// `take` fails.
pub fn reconstruct<E: From<FinetuneError>>(
    model: &Model,
    rows: &[&Example],
    settings: &ReconstructSettings,
    take: &mut dyn FnMut(ReconstructedLayer) -> Result<(), E>,
) -> Result<usize, E> {
    let _guard = tch::no_grad_guard();
    let walk = Walk::new(model, rows, settings.batch_tokens)?;
    if walk.later_tokens() == 0 {
        let what = "there are no tokens to train layers on: rows of two tokens or more are needed";
        return Err(FinetuneError::Settings(what.into()).into());
    }
    let runs = &settings.runs;
    let copies = |states: &[Tensor]| states.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
    let mut dense = walk.embedded()?;
    // The repaired model's states, which are the dense one's until the first run.
    let begins = matches!(runs.first(), Some((None, _)));
    let mut repaired = begins.then(|| copies(&dense));
    let last = runs.last().map_or(0, |(_, run)| run.end() + 1);
    let mut passage = Passage::new(model, 0..last);
    let mut student: Option<Student> = None;
    for number in 0..last {
        stop::check()?;
        let layer = passage.next()?;
        if runs.iter().any(|(receiver, _)| *receiver == Some(number)) {
            let inputs = repaired.as_deref().unwrap_or(&dense);
            student = Some(Student::new(&walk, number, &layer, copies(inputs))?);
        }
        let removed = runs.iter().find(|(_, run)| run.contains(&number));
        for (at, pack) in walk.packs.iter().enumerate() {
            // A student's output is that of the layer as it will be.
            if let Some(states) = &mut repaired
                && removed.is_none()
                && student.is_none()
            {
                states[at] = walk.through(pack, number, &layer, &states[at])?.0;
            }
            dense[at] = walk.through(pack, number, &layer, &dense[at])?.0;
        }
        if let Some((Some(receiver), run)) = removed
            && *run.end() == number
            && let Some(student) = student.take()
        {
            let Taught { error_before, error_after, weights, outputs } =
                student.learn(&dense, settings)?;
            repaired = Some(outputs);
            let (receiver, run) = (*receiver, run.clone());
            take(ReconstructedLayer { receiver, run, error_before, error_after, weights })?;
        }
    }
    Ok(walk.later_tokens())
}

/// A layer that is trained, and the inputs it sees.
struct Student<'a> {
    walk: &'a Walk<'a>,
    number: usize,
    layer: Layer,
    /// Of each pack, `[n, hidden]`.
    inputs: Vec<Tensor>,
}

/// What a layer learnt.
struct Taught {
    error_before: f64,
    error_after: f64,
    weights: BTreeMap<Module, Vec<f32>>,
    /// Of each pack, what it gives.
    outputs: Vec<Tensor>,
}

impl<'a> Student<'a> {
    fn new(walk: &'a Walk<'a>, number: usize, layer: &Layer, inputs: Vec<Tensor>) -> Result<Self> {
        let layer = layer.with_trained_weights()?;
        // There loaded weights are rounded to the type of the products, and every linear weight is written to the result, so
        // training begins from the stored values.
        if walk.model.device.is_cuda() {
            walk.model.reread_layer(number, &layer)?;
        }
        Ok(Self { walk, number, layer, inputs })
    }

    /// Trains it to give some outputs.
    fn learn(mut self, targets: &[Tensor], settings: &ReconstructSettings) -> Result<Taught> {
        let sizes = self
            .walk
            .packs
            .iter()
            .zip(targets)
            .map(|(pack, target)| norm_squared(&later(pack, target)?))
            .collect::<Result<Vec<_>>>()?;
        let (error_before, first_outputs) = self.error(targets, &sizes)?;
        if !error_before.is_finite() {
            let what = "hidden states are not finite, so no layer can be trained; compute in f32";
            return Err(FinetuneError::Settings(what.into()));
        }
        let first_weights = self.weights()?;
        self.train(targets, &sizes, settings)?;
        let (error_after, outputs) = self.error(targets, &sizes)?;
        // What is not a number is not less.
        if error_after < error_before {
            let weights = self.weights()?;
            return Ok(Taught { error_before, error_after, weights, outputs });
        }
        let (weights, outputs) = (first_weights, first_outputs);
        Ok(Taught { error_before, error_after: error_before, weights, outputs })
    }

    fn train(
        &mut self,
        targets: &[Tensor],
        sizes: &[f64],
        settings: &ReconstructSettings,
    ) -> Result<()> {
        let linears = self.layer.linears.iter();
        let trained: Vec<(String, &Parameter)> = linears
            .filter_map(|(module, linear)| Some((module.to_string(), linear.weight.parameter()?)))
            .collect();
        let mut adam = AdamW::new(trained, ADAM)?;
        let packs: Vec<usize> = (0..sizes.len()).filter(|&at| sizes[at] > 0.0).collect();
        for step in 0..settings.steps {
            stop::check()?;
            let Some(&at) = packs.get(step % packs.len().max(1)) else { break };
            self.gather(at, &targets[at], sizes[at])?;
            let left = 1.0 - step as f64 / settings.steps as f64;
            adam.update(settings.rate * left)?;
            adam.zero_gradients()?;
        }
        Ok(())
    }

    /// Adds the gradients of one pack's error, `‖f_W(x) − target‖² / size`, to those of the weights:
    ///
    /// ```text
    /// ∇output = 2 · (f_W(x) − target) / size,  0 at first tokens
    /// ```
    fn gather(&self, at: usize, target: &Tensor, size: f64) -> Result<()> {
        let (pack, input) = (&self.walk.packs[at], &self.inputs[at]);
        let (output, saved) = self.walk.through(pack, self.number, &self.layer, input)?;
        let gap = later(pack, &output)?.f_sub(&later(pack, target)?)?.f_mul_scalar(2.0 / size)?;
        let mut gradient = output.f_zeros_like()?.f_to_kind(Kind::Float)?;
        let gradient = gradient.f_index_add_(0, &pack.later, &gap)?.f_to_kind(output.f_kind()?)?;
        let descent = Descent {
            number: self.number,
            input,
            saved: &saved,
            rotation: self.walk.rotation(pack, self.number),
            attention: self.walk.attention(pack, self.number),
            gradient: &gradient,
            below: false,
        };
        self.layer.backward(&descent, &mut Nobody).map(|_| ())
    }

    /// The relative squared error over all packs, and the outputs.
    fn error(&self, targets: &[Tensor], sizes: &[f64]) -> Result<(f64, Vec<Tensor>)> {
        let (mut apart, mut outputs) = (0.0, Vec::new());
        for ((pack, input), target) in self.walk.packs.iter().zip(&self.inputs).zip(targets) {
            let output = self.walk.through(pack, self.number, &self.layer, input)?.0;
            apart += norm_squared(&later(pack, &output)?.f_sub(&later(pack, target)?)?)?;
            outputs.push(output);
        }
        Ok((apart / sizes.iter().sum::<f64>(), outputs))
    }

    fn weights(&self) -> Result<BTreeMap<Module, Vec<f32>>> {
        let linears = self.layer.linears.iter();
        linears.map(|(&module, linear)| Ok((module, values(&linear.weight.tensor()?)?))).collect()
    }
}

/// The states of all tokens but the first of each row, f32.
fn later(pack: &Pack, states: &Tensor) -> Result<Tensor> {
    Ok(states.f_index_select(0, &pack.later)?.f_to_kind(Kind::Float)?)
}

fn norm_squared(x: &Tensor) -> Result<f64> {
    number(&x.f_square()?.f_sum(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tests::{golden_model, lora, rows, settings};
    use crate::{ComputeType, DeviceChoice, Trainer};

    fn settings_of(runs: &[(Option<usize>, RangeInclusive<usize>)]) -> ReconstructSettings {
        ReconstructSettings { runs: runs.to_vec(), steps: 60, rate: 3e-3, batch_tokens: 24 }
    }

    fn found(model: &Model, settings: &ReconstructSettings) -> Vec<ReconstructedLayer> {
        let rows = rows("tiny_llama");
        let rows: Vec<&Example> = rows.examples.iter().collect();
        let mut all = Vec::new();
        let mut take = |layer| {
            all.push(layer);
            Ok::<_, FinetuneError>(())
        };
        let tokens = reconstruct(model, &rows, settings, &mut take).unwrap();
        assert_eq!(tokens, rows.iter().map(|row| row.tokens.len() - 1).sum::<usize>());
        all
    }

    fn adapted() -> Model {
        let (model, data) = (golden_model("tiny_llama"), rows("tiny_llama"));
        let mut trainer = Trainer::new(model, settings(lora()), data).unwrap();
        trainer.run(None, None, &mut |_| {}).unwrap();
        trainer.into_model()
    }

    /// The error falls, is the one that a model with the weights has by plain loops, and every run gives the same bits,
    /// whether or not weights are streamed.
    #[test]
    fn layers_learn_what_the_run_did() {
        let model = golden_model("tiny_llama");
        let settings = settings_of(&[(Some(1), 2..=3), (Some(4), 5..=5)]);
        let all = found(&model, &settings);
        assert_eq!(all.iter().map(|layer| layer.receiver).collect::<Vec<_>>(), [1, 4]);
        for layer in &all {
            let (before, after) = (layer.error_before, layer.error_after);
            assert!(after < 0.9 * before, "{}: {before} to {after}", layer.receiver);
        }
        let folder = testkit::fixture("tiny_llama/model");
        let streamed = Model::load_offloaded(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
        assert_eq!(found(&streamed, &settings), all);

        // Both runs, in the dense model and in one with the new weights, row by row.
        let mut edited = golden_model("tiny_llama");
        for layer in &all {
            for (module, values) in &layer.weights {
                let weight =
                    &mut edited.layers[layer.receiver].linears.get_mut(module).unwrap().weight;
                *weight.value_mut() = Tensor::from_slice(values).view_as(weight.value());
            }
        }
        let _guard = tch::no_grad_guard();
        let (width, mut sums) = (model.config.hidden_size, [[0.0_f64; 2]; 2]);
        for row in &rows("tiny_llama").examples {
            let walk = Walk::new(&model, &[row], usize::MAX).unwrap();
            let through = |of: &Model, layers: &[usize]| {
                let mut x = walk.embedded().unwrap().remove(0);
                for &number in layers {
                    x = walk.through(&walk.packs[0], number, &of.layers[number], &x).unwrap().0;
                }
                values(&x).unwrap()
            };
            let pairs = [(&[0, 1][..], &[0, 1, 2, 3][..]), (&[0, 1, 4], &[0, 1, 2, 3, 4, 5])];
            for ((left, whole), sums) in pairs.into_iter().zip(&mut sums) {
                let (x, y) = (through(&edited, left), through(&model, whole));
                for (x, y) in x[width..].iter().zip(&y[width..]) {
                    sums[0] += (f64::from(*x) - f64::from(*y)).powi(2);
                    sums[1] += f64::from(*y).powi(2);
                }
            }
        }
        for (layer, [apart, size]) in all.iter().zip(sums) {
            let expected = apart / size;
            assert!((layer.error_after / expected - 1.0).abs() < 1e-4, "{expected}: {layer:?}");
        }
    }

    /// The written-out gradients of every linear weight against libtorch's automatic ones, with adapters on the layer,
    /// which get none.
    #[test]
    fn gradients_are_those_of_the_error() {
        for (name, model) in [("tiny_qwen2", golden_model("tiny_qwen2")), ("tiny_llama", adapted())]
        {
            let data = rows(name);
            let examples: Vec<&Example> = data.examples.iter().take(3).collect();
            let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
            let inputs = walk.embedded().unwrap();
            let target = inputs[0].cos();
            let student = Student::new(&walk, 2, &model.layers[2], inputs).unwrap();
            let pack = &walk.packs[0];
            let size = 3.5;
            {
                let _guard = tch::no_grad_guard();
                student.gather(0, &target, size).unwrap();
            }
            let leaves: BTreeMap<Module, Tensor> = student
                .layer
                .linears
                .iter()
                .map(|(&module, linear)| (module, linear.weight.value().set_requires_grad(true)))
                .collect();
            let (output, _) = walk.through(pack, 2, &student.layer, &student.inputs[0]).unwrap();
            let gap = later(pack, &output).unwrap() - later(pack, &target).unwrap();
            (gap.square().sum(Kind::Float) / size).backward();
            for (module, linear) in &student.layer.linears {
                let found =
                    values(linear.weight.parameter().unwrap().gradient.as_ref().unwrap()).unwrap();
                let expected = values(&leaves[module].grad()).unwrap();
                let apart = testkit::relative_deviation(&found, &expected);
                assert!(apart < 1e-5, "{module}: {apart}");
            }
            for linear in model.layers[2].linears.values() {
                let Some(lora) = &linear.lora else { continue };
                for side in [&lora.a, &lora.b] {
                    assert!(
                        values(side.gradient.as_ref().unwrap()).unwrap().iter().all(|&x| x == 0.0)
                    );
                }
            }
        }
    }

    /// Adapters stay, and a run without a layer before it is gone for those behind it.
    #[test]
    fn runs_come_one_after_another() {
        let adapted = adapted();
        let both = [(None, 0..=0), (Some(2), 3..=4)];
        let (alone, behind) =
            (found(&adapted, &settings_of(&both[1..])), found(&adapted, &settings_of(&both)));
        assert_eq!((alone.len(), behind.len()), (1, 1));
        assert!(behind[0].error_before > alone[0].error_before);
        assert_ne!(behind[0].weights, alone[0].weights);
        assert!(behind[0].error_after < behind[0].error_before);
    }

    /// What training does not make better stays to the bit.
    #[test]
    fn what_is_no_better_stays() {
        let model = golden_model("tiny_llama");
        let own = |layer: &ReconstructedLayer| {
            for (module, weight) in &layer.weights {
                let stored = model.layers[layer.receiver].linears[module].weight.value();
                assert_eq!(*weight, values(stored).unwrap(), "{module}");
            }
            assert_eq!(layer.error_after, layer.error_before);
        };
        let runs = [(Some(1), 2..=3)];
        own(&found(&model, &ReconstructSettings { steps: 0, ..settings_of(&runs) })[0]);
        own(&found(&model, &ReconstructSettings { rate: 1e6, ..settings_of(&runs) })[0]);
        let row = Example::whole(vec![3], vec![false]);
        let mut take = |_| Ok::<_, FinetuneError>(());
        let refused = reconstruct(&model, &[&row], &settings_of(&runs), &mut take);
        assert!(refused.unwrap_err().to_string().contains("rows of two tokens"));
    }
}
