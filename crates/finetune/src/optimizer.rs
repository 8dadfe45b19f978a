//! AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), and clipping.

use tch::{Kind, Tensor, no_grad_guard};

use crate::Result;
use crate::bridge::number;
use crate::parameter::Parameter;

/// `AdamW`'s constants.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the fields are the paper's symbols, spelt out")]
pub struct AdamWSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

/// `AdamW` over a list of f32 tensors.
#[derive(Debug)]
pub(crate) struct AdamW {
    settings: AdamWSettings,
    /// How many updates were made.
    pub(crate) updates: usize,
    pub(crate) slots: Vec<Slot>,
}

/// One trained tensor and the running means of its gradient and of its gradient's square.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) gradient: Tensor,
    pub(crate) mean: Tensor,
    pub(crate) square: Tensor,
}

impl AdamW {
    pub(crate) fn new(trained: Vec<(String, &Parameter)>, settings: AdamWSettings) -> Result<Self> {
        let slots = trained
            .into_iter()
            .filter_map(|(name, parameter)| {
                let gradient = parameter.gradient.as_ref()?.shallow_clone();
                Some((name, parameter.value.shallow_clone(), gradient))
            })
            .map(|(name, tensor, gradient)| {
                let (mean, square) = (tensor.f_zeros_like()?, tensor.f_zeros_like()?);
                Ok(Slot { name, tensor, gradient, mean, square })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { settings, updates: 0, slots })
    }

    /// The norm of all gradients together.
    pub(crate) fn grad_norm(&self) -> Result<f64> {
        let _guard = no_grad_guard();
        let norms = self
            .slots
            .iter()
            .map(|slot| Ok(slot.gradient.f_norm()?.f_to_kind(Kind::Double)?))
            .collect::<Result<Vec<_>>>()?;
        number(&Tensor::f_stack(&norms, 0)?.f_norm()?)
    }

    /// Scales all gradients so that their norm together is at most `max_norm`.
    pub(crate) fn clip(&self, norm: f64, max_norm: f64) -> Result<()> {
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            let _guard = no_grad_guard();
            for slot in &self.slots {
                let _ = slot.gradient.shallow_clone().f_mul_scalar_(factor)?;
            }
        }
        Ok(())
    }

    /// One update of every tensor from its gradient:
    ///
    /// ```text
    /// p ← p − lr·λ·p,   m ← β₁m + (1−β₁)g,   v ← β₂v + (1−β₂)g²
    /// p ← p − lr · m/(1−β₁ᵗ) / ( √(v/(1−β₂ᵗ)) + ε )
    /// ```
    pub(crate) fn update(&mut self, rate: f64) -> Result<()> {
        let _guard = no_grad_guard();
        self.updates += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let count = self.updates as i32;
        let (scale1, scale2) = (1.0 - beta1.powi(count), 1.0 - beta2.powi(count));
        for Slot { tensor, gradient, mean, square, .. } in &mut self.slots {
            let _ = tensor.f_mul_scalar_(1.0 - rate * weight_decay)?;
            let _ = mean.f_lerp_(gradient, 1.0 - beta1)?;
            let _ = square.f_mul_scalar_(beta2)?;
            let _ = square.f_addcmul_(&gradient.f_mul_scalar(1.0 - beta2)?, gradient)?;
            let mut step = square.f_sqrt()?;
            let _ = step.f_div_scalar_(scale2.sqrt())?.f_add_scalar_(epsilon)?;
            let step = mean.f_div(&step)?.f_mul_scalar(rate / scale1)?;
            let _ = tensor.f_sub_(&step)?;
        }
        Ok(())
    }

    /// Forgets all gradients.
    pub(crate) fn zero_gradients(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            let _ = slot.gradient.f_zero_()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::values;

    /// The golden states of `AdamW`, fed the record's own gradients.
    #[test]
    fn golden_updates() {
        for name in testkit::GOLDEN {
            let at = |file: String| testkit::fixture(&format!("{name}/{file}"));
            let expected = testkit::json(&at("expected.json".into()));
            let rates = expected["settings"]["learning_rates"].as_array().unwrap().clone();
            let tensor = |file: &std::path::Path, tensor: &str| {
                let (shape, values) = testkit::tensor_f32(file, tensor);
                let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
                Tensor::from_slice(&values).view(shape.as_slice())
            };
            let first = at("lora_before_step1.safetensors".into());
            let names = testkit::tensor_names(&first);
            let leaves: Vec<_> = names
                .iter()
                .map(|name| (name.clone(), Parameter::trained(&tensor(&first, name)).unwrap()))
                .collect();
            let leaves = leaves.iter().map(|(name, parameter)| (name.clone(), parameter));
            let settings =
                AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
            let mut adamw = AdamW::new(leaves.collect(), settings).unwrap();
            for (step, rate) in rates.iter().enumerate() {
                let record = at(format!("record/step-{:05}.safetensors", step + 1));
                for slot in &mut adamw.slots {
                    slot.gradient.copy_(&tensor(&record, &slot.name));
                }
                adamw.update(rate.as_f64().unwrap()).unwrap();
                adamw.zero_gradients().unwrap();
                let after = at(format!("lora_before_step{}.safetensors", step + 2));
                for slot in &adamw.slots {
                    let (_, expected) = testkit::tensor_f32(&after, &slot.name);
                    let found = values(&slot.tensor).unwrap();
                    let apart = found.iter().zip(&expected).map(|(x, y)| (x - y).abs());
                    let apart = apart.fold(0.0_f32, f32::max);
                    // The golden states are f64 rounded once; these round at every operation.
                    assert!(apart <= 1e-7, "{name} {}: {apart}", slot.name);
                }
            }
        }
    }
}
