//! DoRA (Liu et al., arXiv 2402.09353): every row of an adapted weight has a norm that trains by itself.

use tch::{Kind, Tensor, no_grad_guard};

use crate::Result;
use crate::lora::Lora;
use crate::parameter::Parameter;
use crate::product;
use crate::weight::Weight;

/// The norms `m` of an adapted weight's rows, and those that the rows have without them:
///
/// ```text
/// y = (m / ‖W + s·B A‖) ⊙ (W + s·B A) x + b
/// ```
///
/// The backward pass takes the norm for a constant, as the paper does (section 4.3) and PEFT.
#[derive(Debug)]
pub(crate) struct Magnitude {
    /// `m`, `[out]`.
    pub(crate) value: Parameter,
    /// `‖W‖²` of each row, `[out]`, f32.
    squares: Tensor,
    /// `‖W + s·B A‖` of each row, `[out]`, f32, as of the last [`Magnitude::renew`]. All handles see it.
    norm: Tensor,
}

impl Magnitude {
    /// Given magnitudes, or those that leave the adapted weight as it is, which train.
    pub(crate) fn new(weight: &Weight, lora: &Lora, value: Option<&Tensor>) -> Result<Self> {
        let device = lora.a.value.device();
        let squares = product::row_squares(weight.factor())?.f_to_device(device)?;
        let norm = norms(weight, lora, &squares)?;
        let value = match value {
            Some(value) => value.f_to_device(device)?,
            None => norm.shallow_clone(),
        };
        Ok(Self { value: Parameter::trained(&value)?, squares, norm })
    }

    /// Brings the norm up to date after the adapter changed.
    pub(crate) fn renew(&self, weight: &Weight, lora: &Lora) -> Result<()> {
        let _guard = no_grad_guard();
        self.norm.shallow_clone().f_copy_(&norms(weight, lora, &self.squares)?)?;
        Ok(())
    }

    /// `m / ‖W + s·B A‖ ⊙ x`, of `x` `[n, out]` in its type. The factor is near one, where bfloat16 has steps of 0.4 and 0.8 %: what it
    /// differs from one by is multiplied and added.
    pub(crate) fn scale(&self, x: &Tensor) -> Result<Tensor> {
        let beyond = directed(&self.value.value, &self.norm)?.f_sub_scalar(1.0)?;
        Ok(x.f_addcmul(x, &beyond.f_to_kind(x.f_kind()?)?)?)
    }

    /// Gathers the gradient of `m` from that of `y`, `[n, out]`, and `(W + s·B A) x`.
    pub(crate) fn gather(&self, gradient: &Tensor, product: &Tensor) -> Result<()> {
        self.value.gather(|| {
            let sum = gradient.f_mul(product)?.f_sum_dim_intlist(0_i64, false, Kind::Float)?;
            Ok(sum.f_div(&self.norm)?.f_masked_fill(&self.norm.f_eq(0.0)?, 0.0)?)
        })
    }

    /// `W + s·B A` with its rows' norms set to `m`; all `[out, in]`, f32.
    pub(crate) fn apply(&self, adapted: &Tensor) -> Result<Tensor> {
        let norm = adapted.f_square()?.f_sum_dim_intlist(1_i64, false, Kind::Float)?.f_sqrt()?;
        Ok(adapted.f_mul(&directed(&self.value.value, &norm)?.f_unsqueeze(1)?)?)
    }

    /// Another handle on the same vectors.
    pub(crate) fn share(&self) -> Self {
        self.with(self.value.share())
    }

    /// Another handle on the same vectors, which do not train.
    pub(crate) fn untrained(&self) -> Self {
        self.with(self.value.untrained())
    }

    fn with(&self, value: Parameter) -> Self {
        Self { value, squares: self.squares.shallow_clone(), norm: self.norm.shallow_clone() }
    }
}

/// `‖W + s·B A‖` of each row, `[out]`, without the product `B A`:
///
/// ```text
/// ‖w + s·b A‖² = ‖w‖² + 2s·b·(A w) + s²·b·(A Aᵀ b)
/// ```
///
/// for each row `w` of `W`, whose `‖w‖²` are given, and `b` of `B`.
fn norms(weight: &Weight, lora: &Lora, squares: &Tensor) -> Result<Tensor> {
    let (a, b) = (&lora.a.value, &lora.b.value);
    // A frozen weight of a GPU's model may be in the computer's memory.
    let at_weight = a.f_to_device(weight.device())?;
    let crossed = product::linear(&at_weight, weight.factor(), None)?.f_numpy_t()?;
    let crossed = crossed.f_to_device(a.device())?;
    let squared = b.f_mm(&a.f_mm(&a.f_numpy_t()?)?)?.f_mul_scalar_(lora.scale * lora.scale)?;
    let sum = crossed.f_mul_scalar(2.0 * lora.scale)?.f_add_(&squared)?.f_mul_(b)?;
    let mut sum = sum.f_sum_dim_intlist(1_i64, false, Kind::Float)?.f_add_(squares)?;
    // Rounding may leave a little less than nothing.
    Ok(sum.f_clamp_min_(0.0)?.f_sqrt()?)
}

/// `m / norm`, and one where the norm is zero.
fn directed(magnitude: &Tensor, norm: &Tensor) -> Result<Tensor> {
    let is_zero = norm.f_eq(0.0)?;
    Ok(magnitude.f_div(norm)?.f_masked_fill(&is_zero, 1.0)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use checkpoint::{Adapter, Module};

    use super::*;
    use crate::bridge::values;
    use crate::decoder::Keep;
    use crate::observer::Nobody;
    use crate::optimizer::AdamW;
    use crate::train::tests::{golden_batch, golden_model, lora, rows, settings, weights_of};
    use crate::train::{Passes, backward};
    use crate::{
        AdamWSettings, ComputeType, DeviceChoice, LoraSettings, Method, Model, Rounding, Trainer,
    };
    use crate::{save_checkpoint, trained_adapter};

    fn fixture(name: &str) -> PathBuf {
        testkit::fixture(&format!("dora/{name}"))
    }

    fn with_adapter(name: &str) -> Model {
        let mut model = golden_model("tiny_qwen2");
        let path = fixture(name);
        model.add_adapter(&Adapter::read(&path).unwrap(), &path).unwrap();
        model
    }

    fn gradients_of_batch(model: &Model, step: usize) -> f64 {
        let examples = golden_batch("tiny_qwen2", step);
        let examples: Vec<_> = examples.iter().collect();
        // A row at a time, so that accumulation is tested too.
        let passes = Passes { batch_rows: 1, keep: Keep::Activations, lesson: None };
        backward(model, &examples, passes, &mut Nobody).unwrap().loss
    }

    /// Three steps from PEFT's adapter end at PEFT's adapter; there losses, gradients and logits are its own.
    #[test]
    fn steps_are_those_of_peft() {
        let expected = fixture("expected.safetensors");
        let of = |name: &str| testkit::tensor_f32(&expected, name).1;
        let losses = of("losses");
        let close = |found: &[f32], expected: &[f32], what: &str| {
            let apart = testkit::relative_deviation(found, expected);
            assert!(apart < 1e-5, "{what}: {apart}");
        };
        let mut model = with_adapter("start");
        let constants =
            AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        let mut adamw = AdamW::new(model.trained(), constants).unwrap();
        for step in 1..=3 {
            close(&[gradients_of_batch(&model, step) as f32], &losses[step - 1..step], "loss");
            adamw.clip(adamw.grad_norm().unwrap(), 1.0).unwrap();
            adamw.update(0.02).unwrap();
            model.renew_magnitudes().unwrap();
            adamw.zero_gradients().unwrap();
        }
        let (found, end) = (trained_adapter(&model, "tiny_qwen2").unwrap(), fixture("end"));
        let end = Adapter::read(&end).unwrap();
        assert!(found.config.use_dora && found.pairs.len() == 8);
        for (place, pair) in &end.pairs {
            let own = &found.pairs[place];
            let flat = |of: &checkpoint::AdapterPair| -> [Vec<f32>; 3] {
                let norms = of.magnitude.as_ref().unwrap().to_vec();
                [of.a.iter().copied().collect(), of.b.iter().copied().collect(), norms]
            };
            for (found, expected) in flat(own).iter().zip(&flat(pair)) {
                // Adam divides small gradients by their own size: roundings grow.
                let apart = testkit::relative_deviation(found, expected);
                assert!(apart < 2e-4, "{place:?}: {apart}");
            }
        }
        model = with_adapter("end");
        close(&[gradients_of_batch(&model, 1) as f32], &losses[3..], "loss");
        let mut seen = 0;
        for (name, parameter) in model.trained() {
            let found = values(parameter.gradient.as_ref().unwrap()).unwrap();
            close(&found, &of(&name), &name);
            seen += 1;
        }
        assert_eq!(seen, 24);
        let (_, tokens) = testkit::tensor_i64(&expected, "tokens");
        let tokens: Vec<u32> = tokens.into_iter().map(|token| token as u32).collect();
        close(&model.all_logits(&[&tokens]).unwrap(), &of("logits"), "logits");
    }

    /// In bfloat16 a factor between two of its numbers is kept in the mean of many outputs.
    #[test]
    fn small_factors_outlive_bfloat16() {
        tch::manual_seed(2);
        let mean = |x: &Tensor| x.to_kind(Kind::Double).abs().mean(None).double_value(&[]);
        let norm = Tensor::full([64], 3.0, (Kind::Float, tch::Device::Cpu));
        let x = Tensor::randn([500, 64], (Kind::Float, tch::Device::Cpu)).to_kind(Kind::BFloat16);
        for factor in [0.997, 1.0, 1.003, 1.005] {
            let (value, squares) = (Parameter::frozen(&norm * factor), norm.square());
            let magnitude = Magnitude { value, squares, norm: norm.shallow_clone() };
            let found = mean(&magnitude.scale(&x).unwrap()) / mean(&x);
            assert!((found - factor).abs() < 0.001, "{factor}: {found}");
        }
    }

    fn dora() -> Method {
        let Method::Lora(lora) = lora() else { panic!("it is LoRA") };
        Method::Lora(LoraSettings { dora: true, ..lora })
    }

    /// The norm without the product is the merged weight's, of whole weights and of those in four bits; a checkpoint with
    /// the adapter merged in computes what the model does.
    #[test]
    fn merged_weights_have_the_magnitudes() {
        let folder = testkit::temporary_folder();
        let path = testkit::fixture("tiny_llama/model");
        let load = |in_4bit: bool| match in_4bit {
            true => {
                let rounding = Rounding { layers_in_4bit: true, embedding_in_8bit: true };
                Model::load_rounded(&path, DeviceChoice::Cpu, ComputeType::F32, rounding).unwrap()
            }
            false => golden_model("tiny_llama"),
        };
        for in_4bit in [false, true] {
            let mut trainer =
                Trainer::new(load(in_4bit), settings(dora()), rows("tiny_llama")).unwrap();
            trainer.run(None, None, &mut |_| {}).unwrap();
            let tuned = trainer.into_model();
            let norm =
                |tensor: &Tensor| values(&tensor.square().sum_dim_intlist(1, false, None).sqrt());
            for (module, linear) in &tuned.layers[2].linears {
                let lora = linear.lora.as_ref().unwrap();
                let magnitude = lora.magnitude.as_ref().unwrap();
                let weight = linear.weight.tensor().unwrap();
                let adapted = &weight + lora.b.value.matmul(&lora.a.value) * lora.scale;
                let apart = testkit::relative_deviation(
                    &values(&magnitude.norm).unwrap(),
                    &norm(&adapted).unwrap(),
                );
                assert!(apart < 1e-5, "{module}: {apart}");
                let moved =
                    testkit::relative_deviation(&norm(&adapted).unwrap(), &norm(&weight).unwrap());
                assert!(moved > 1e-5, "{module}: {moved}");
                let merged = norm(&lora.merged(&weight).unwrap()).unwrap();
                let apart =
                    testkit::relative_deviation(&merged, &values(&magnitude.value.value).unwrap());
                assert!(apart < 1e-5, "{module}: {apart}");
            }
            if in_4bit {
                continue;
            }
            let target = folder.path().join("merged");
            save_checkpoint(&tuned, &target, u64::MAX).unwrap();
            let merged = Model::load(&target, DeviceChoice::Cpu, ComputeType::F32).unwrap();
            let logits = |model: &Model| model.all_logits(&[&[1, 5, 9, 3]]).unwrap();
            let apart = testkit::relative_deviation(&logits(&merged), &logits(&tuned));
            assert!(apart < 1e-5, "{apart}");
        }
    }

    /// A training that is taken up again ends at the same bits, and a row of zeros neither stops it nor stays one.
    #[test]
    fn a_resumed_training_ends_alike() {
        let folder = testkit::temporary_folder();
        let state = folder.path().join("state");
        let model = || {
            let mut model = golden_model("tiny_llama");
            let _guard = no_grad_guard();
            let up = model.layers[1].linears.get_mut(&Module::UpProj).unwrap();
            let zeroed = up.weight.value().copy();
            let _ = zeroed.get(3).zero_();
            *up.weight.value_mut() = zeroed;
            model
        };
        let trainer = || Trainer::new(model(), settings(dora()), rows("tiny_llama")).unwrap();
        let mut whole = trainer();
        whole.run(None, None, &mut |_| {}).unwrap();
        trainer().run_until(4, Some(&state), &mut |_| {}).unwrap();
        let mut resumed = trainer();
        resumed.run(None, Some(&state), &mut |_| {}).unwrap();
        assert_eq!(weights_of(resumed.model()), weights_of(whole.model()));
        let trained: BTreeMap<_, _> = whole.model().trained().into_iter().collect();
        let norms = &trained["layers.1.mlp.up_proj.lora_magnitude"].value;
        let b = &trained["layers.1.mlp.up_proj.lora_B"].value;
        assert!(
            norms.get(3).double_value(&[]) != 0.0
                && b.get(3).abs().sum(None).double_value(&[]) > 0.0
        );

        let plain = Trainer::new(model(), settings(lora()), rows("tiny_llama")).unwrap();
        let error = { plain }.run(None, Some(&state), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("lora_dora was true and is not set"), "{error}");
    }
}
