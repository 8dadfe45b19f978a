//! How the loss answers to each layer: gradients of the model without adapters, formed a weight at a time.

use std::collections::BTreeMap;

use checkpoint::{ModelConfig, Module};
use dataset::Example;
use evidence::{LayerSensitivity, Sensitivity, WeightSensitivity};
use tch::{Kind, Tensor};

use crate::bridge::number;
use crate::decoder::Keep;
use crate::observer::{Observer, StateGradient, WeightPass};
use crate::stop;
use crate::train::{Passes, backward};
use crate::{FinetuneError, Model, Result};

/// Bytes of a weight's gradient, in f64, that are formed at a time.
const PART_BYTES: i64 = 8 << 20;

/// How gradients are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SensitivitySettings {
    /// Rows of a batch, which is one pass: as many as a pass of a collected step has.
    pub batch_rows: usize,
    /// Keep each layer's input alone for the backward pass and compute the rest again there: less
    /// memory, more time, the same gradients.
    pub remat: bool,
}

/// Takes the gradients of batches of rows, and reduces each to numbers (method.md §3).
///
/// ```text
/// (1/b) Σ_i ‖∂L_i/∂W‖²_F,   (1/b) Σ_i Σ |W ∘ ∂L_i/∂W|,   ∂L/∂W = δᵀ·X
/// ```
///
/// of every linear weight of the model without adapters, and the mean over tokens of `‖∂L_i/∂x_{l+1}‖` of every layer's output, where `L_i` is the
/// mean token loss of batch `i` of `b`. A weight's gradient is formed some of its rows at a time and never held;
/// frozen weights stay where they are. Sums run in f64. A batch is one pass; batches in which nothing is
/// labelled are passed over.
///
/// # Errors
///
/// [`FinetuneError::Settings`] if a batch is of no rows, or nothing of the rows is labelled;
/// [`FinetuneError::NotANumber`] if a gradient overflows; if libtorch refuses.
pub fn sensitivity(
    model: &Model,
    rows: &[&Example],
    settings: &SensitivitySettings,
) -> Result<Sensitivity> {
    let SensitivitySettings { batch_rows, remat } = *settings;
    if batch_rows == 0 {
        return Err(FinetuneError::Settings("a batch needs one row or more".into()));
    }
    let is_labelled = |rows: &&[&Example]| rows.iter().any(|row| row.labelled.contains(&true));
    let model = model.bare();
    let keep = if remat { Keep::LayerInputs } else { Keep::Activations };
    let (mut meter, mut seen, mut batches) = (Meter::new(&model.config), 0, 0);
    for batch in rows.chunks(batch_rows).filter(is_labelled) {
        stop::check()?;
        backward(&model, batch, Passes { batch_rows, keep, lesson: None }, &mut meter)?;
        (seen, batches) = (seen + batch.len(), batches + 1);
    }
    if batches == 0 {
        let what = "the rows that sensitivities are computed on have no tokens to learn";
        return Err(FinetuneError::Settings(what.into()));
    }
    meter.finish(seen, batches)
}

/// Sums over batches.
struct Meter {
    /// Sums of norms over tokens, and how many tokens, by layer.
    states: Vec<(f64, usize)>,
    weights: Vec<BTreeMap<Module, WeightSensitivity>>,
}

impl Meter {
    fn new(config: &ModelConfig) -> Self {
        let num_layers = config.num_layers;
        let nothing = |&module: &Module| (module, WeightSensitivity::default());
        let weights: BTreeMap<_, _> = config.modules().iter().map(nothing).collect();
        Self { states: vec![(0.0, 0); num_layers], weights: vec![weights; num_layers] }
    }

    fn finish(self, rows: usize, batches: usize) -> Result<Sensitivity> {
        let mean = |sum: f64| match sum.is_finite() {
            true => Ok(sum / batches as f64),
            false => Err(FinetuneError::NotANumber),
        };
        let layers = self.states.into_iter().zip(self.weights).map(|((norms, tokens), sums)| {
            let modules = sums.into_iter().map(|(module, sum)| {
                let gradient_squared = mean(sum.gradient_squared)?;
                let weight_times_gradient = mean(sum.weight_times_gradient)?;
                Ok((module, WeightSensitivity { gradient_squared, weight_times_gradient }))
            });
            if !norms.is_finite() {
                return Err(FinetuneError::NotANumber);
            }
            let state_gradient = norms / tokens.max(1) as f64;
            Ok(LayerSensitivity { state_gradient, modules: modules.collect::<Result<_>>()? })
        });
        Ok(Sensitivity::new(rows, batches, layers.collect::<Result<_>>()?))
    }
}

impl Observer for Meter {
    fn wants_gradients(&self) -> bool {
        true
    }

    fn state_gradient(&mut self, seen: &StateGradient<'_>) -> Result<()> {
        let (norms, tokens) = &mut self.states[seen.layer];
        *norms += norm_sum(seen.gradient)?;
        *tokens += seen.gradient.size2()?.0 as usize;
        Ok(())
    }

    fn weight(&mut self, seen: &WeightPass<'_>) -> Result<()> {
        let (out, columns) = seen.weight.size2()?;
        let most = (PART_BYTES / (8 * columns)).max(1);
        let sums = self.weights[seen.layer].entry(seen.module).or_default();
        for first in (0..out).step_by(most as usize) {
            let rows = most.min(out - first);
            let own = seen.gradient.f_narrow(1, first, rows)?;
            let gradient = own.f_numpy_t()?.f_mm(seen.input)?.f_to_kind(Kind::Double)?;
            let weight = seen.weight.f_narrow(0, first, rows)?.f_to_kind(Kind::Double)?;
            sums.gradient_squared += number(&gradient.f_square()?.f_sum(Kind::Double)?)?;
            let products = weight.f_mul(&gradient)?.f_abs()?;
            sums.weight_times_gradient += number(&products.f_sum(Kind::Double)?)?;
        }
        Ok(())
    }
}

/// `Σ ‖x‖` over the rows of a matrix, in f64.
pub(crate) fn norm_sum(x: &Tensor) -> Result<f64> {
    let norms = x.f_to_kind(Kind::Double)?.f_norm_scalaropt_dim(2.0, [-1_i64].as_slice(), false)?;
    number(&norms.f_sum(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use checkpoint::Record;
    use tch::Device;

    use super::*;
    use crate::Trainer;
    use crate::bridge::{matrix, values};
    use crate::observer::tests::Outputs;
    use crate::pack::Packed;
    use crate::train::tests::{golden_model, lora, rows, settings};

    const SETTINGS: SensitivitySettings = SensitivitySettings { batch_rows: 3, remat: false };

    fn wide(x: &Tensor) -> Vec<f64> {
        values(x).unwrap().into_iter().map(f64::from).collect()
    }

    fn close(found: f64, expected: f64, what: &str) {
        // Gradients in f32 by two orders of summation.
        assert!((found / expected - 1.0).abs() < 1e-4, "{what}: {found} is not {expected}");
    }

    /// Against libtorch's automatic gradients, reduced by plain loops in f64.
    #[test]
    fn sensitivities_are_those_of_automatic_gradients() {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let model = golden_model(name);
            let data = rows(name);
            let examples: Vec<&Example> = data.examples.iter().collect();
            let found = sensitivity(&model, &examples, &SETTINGS).unwrap();
            assert_eq!((found.rows, found.batches), (examples.len(), examples.len().div_ceil(3)));

            let weights: Vec<Tensor> = model
                .layers
                .iter()
                .flat_map(|layer| layer.linears.values())
                .map(|linear| linear.weight.value().set_requires_grad(true))
                .collect();
            let mut expected = vec![[0.0; 2]; weights.len()];
            let mut states = vec![(0.0, 0); model.layers.len()];
            for batch in examples.chunks(3) {
                let batch = Packed::examples(batch, Device::Cpu).unwrap();
                let mut outputs = Outputs::default();
                let hidden = model.hidden(&batch, &mut outputs).unwrap();
                let logits = model.head().logits(&hidden.index_select(0, &batch.predict)).unwrap();
                let loss = logits.cross_entropy_for_logits(&batch.targets);
                let leaves: Vec<&Tensor> = weights.iter().chain(&outputs.0).collect();
                let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
                let (of_weights, of_states) = gradients.split_at(weights.len());
                for ((gradient, weight), sums) in of_weights.iter().zip(&weights).zip(&mut expected)
                {
                    for (g, w) in wide(gradient).into_iter().zip(wide(weight)) {
                        sums[0] += g * g;
                        sums[1] += (g * w).abs();
                    }
                }
                for (gradient, (norms, tokens)) in of_states.iter().zip(&mut states) {
                    for token in wide(gradient).chunks(model.config.hidden_size) {
                        *norms += token.iter().map(|g| g * g).sum::<f64>().sqrt();
                        *tokens += 1;
                    }
                }
            }
            let batches = found.batches as f64;
            for (((layer, module), found), sums) in found.weights().zip(expected) {
                let what = format!("{name} layer {layer} {module}");
                close(found.gradient_squared, sums[0] / batches, &what);
                close(found.weight_times_gradient, sums[1] / batches, &what);
            }
            for (layer, (norms, tokens)) in found.layers.iter().zip(states) {
                close(layer.state_gradient, norms / f64::from(tokens), name);
            }
            let remat = SensitivitySettings { remat: true, ..SETTINGS };
            // A frozen leaf again, so that no graph is recorded.
            for weight in &weights {
                let _ = weight.set_requires_grad(false);
            }
            assert_eq!(sensitivity(&model, &examples, &remat).unwrap(), found);
        }
    }

    /// Forms the gradients that the golden record is made of: with `B = 0`, `∇B = (alpha / r) · ∂L/∂W · Aᵀ`.
    struct Golden<'a> {
        name: &'static str,
        record: &'a Record,
        settings: &'a serde_json::Value,
        clipped: f64,
        seen: usize,
    }

    impl Observer for Golden<'_> {
        fn wants_gradients(&self) -> bool {
            true
        }

        fn weight(&mut self, seen: &WeightPass<'_>) -> Result<()> {
            let WeightPass { layer, module, .. } = *seen;
            let (x, delta) = (matrix(seen.input)?, matrix(seen.gradient)?);
            let file = testkit::fixture(&format!("{}/lora_before_step1.safetensors", self.name));
            let (shape, a) = testkit::tensor_f32(&file, &format!("layers.{layer}.{module}.lora_A"));
            let scale = self.clipped * self.settings["lora_alpha"].as_f64().unwrap()
                / self.settings["lora_rank"].as_f64().unwrap();
            let expected = self.record.gradients(0, layer, &module.into()).unwrap().b;
            let (mut found, mut reference) = (Vec::new(), Vec::new());
            for out in 0..delta.ncols() {
                // A row of δᵀX, in f64.
                let row: Vec<f64> = (0..x.ncols())
                    .map(|n| {
                        let terms = (0..x.nrows())
                            .map(|t| f64::from(delta[[t, out]]) * f64::from(x[[t, n]]));
                        terms.sum()
                    })
                    .collect();
                for (r, a) in a.chunks(shape[1]).enumerate() {
                    let sum: f64 = row.iter().zip(a).map(|(g, &a)| g * f64::from(a)).sum();
                    found.push((scale * sum) as f32);
                    reference.push(expected[[out, r]]);
                }
            }
            let apart = testkit::relative_deviation(&found, &reference);
            assert!(apart < 1e-5, "{} layer {layer} {module}: {apart}", self.name);
            self.seen += 1;
            Ok(())
        }
    }

    #[test]
    fn weights_are_shown_what_the_golden_gradients_are_made_of() {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let model = golden_model(name);
            let expected = testkit::json(&testkit::fixture(&format!("{name}/expected.json")));
            let settings = &expected["settings"];
            let norm = expected["grad_norms_before_clipping"][0].as_f64().unwrap();
            let most = settings["max_grad_norm"].as_f64().unwrap();
            let record = Record::open(&testkit::fixture(&format!("{name}/record"))).unwrap();
            let clipped = (most / (norm + 1e-6)).min(1.0);
            let mut golden = Golden { name, record: &record, settings, clipped, seen: 0 };
            let batch = crate::train::tests::golden_batch(name, 1);
            let batch: Vec<&Example> = batch.iter().collect();
            let passes = Passes { batch_rows: batch.len(), keep: Keep::Activations, lesson: None };
            backward(&model, &batch, passes, &mut golden).unwrap();
            assert_eq!(golden.seen, 6 * Module::SPLIT.len());
        }
    }

    /// A weight that is taken in parts, against plain loops in f64.
    #[test]
    fn parts_of_a_weight_add_up() {
        tch::manual_seed(5);
        // A row is more than half a part.
        let (tokens, out, columns) = (2, 3, PART_BYTES / 16 + 1);
        let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let (x, delta) = (random([tokens, columns]), random([tokens, out]));
        let weight = random([out, columns]).to_kind(Kind::BFloat16);
        let module = Module::VProj;
        let mut meter = Meter::new(&golden_model("tiny_llama").config);
        let pass = WeightPass { layer: 1, module, weight: &weight, input: &x, gradient: &delta };
        meter.weight(&pass).unwrap();
        let (x, delta, weight) = (wide(&x), wide(&delta), wide(&weight));
        let (mut squares, mut magnitudes) = (0.0, 0.0);
        let columns = columns as usize;
        for o in 0..3 {
            for n in 0..columns {
                let gradient = delta[o] * x[n] + delta[3 + o] * x[columns + n];
                squares += gradient * gradient;
                magnitudes += (gradient * weight[o * columns + n]).abs();
            }
        }
        let found = meter.weights[1][&module];
        assert!((found.gradient_squared / squares - 1.0).abs() < 1e-6);
        assert!((found.weight_times_gradient / magnitudes - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let refused = |model: &Model, rows: &[&Example], settings| {
            sensitivity(model, rows, &settings).unwrap_err().to_string()
        };
        let model = golden_model("tiny_llama");
        let silent = Example::whole(vec![1, 2, 3], vec![false; 3]);
        assert!(refused(&model, &[&silent, &silent], SETTINGS).contains("no tokens to learn"));
        let none = SensitivitySettings { batch_rows: 0, ..SETTINGS };
        assert!(refused(&model, &examples, none).contains("one row or more"));
        // Batches of silent rows alone count for nothing.
        let one = SensitivitySettings { batch_rows: 1, ..SETTINGS };
        let found = sensitivity(&model, &[examples[0], &silent], &one).unwrap();
        assert_eq!(found, sensitivity(&model, &examples[..1], &one).unwrap());
    }

    /// Adapters are left out, and gather nothing.
    #[test]
    fn a_model_with_adapters_is_seen_without_them() {
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let plain = sensitivity(&golden_model("tiny_llama"), &examples, &SETTINGS).unwrap();
        let training = settings(lora());
        let mut trainer =
            Trainer::new(golden_model("tiny_llama"), training, rows("tiny_llama")).unwrap();
        trainer.run(None, None, &mut |_| {}).unwrap();
        let model = trainer.into_model();
        assert_eq!(sensitivity(&model, &examples, &SETTINGS).unwrap(), plain);
        for (name, weight) in model.trained() {
            let gradient = values(weight.gradient.as_ref().unwrap()).unwrap();
            assert!(gradient.iter().all(|&x| x == 0.0), "{name}");
        }
    }
}
