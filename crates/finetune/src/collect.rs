//! The first steps of a LoRA fine-tune, for their gradients (method.md §1).

use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::Activations;
use dataset::Encoded;
use evidence::{Hidden, Sensitivity};
use tch::{Kind, Tensor};

use crate::bridge::number;
use crate::hidden::HiddenMeter;
use crate::observer::{LayerPass, Observer};
use crate::stop;
use crate::{
    FinetuneError, GradientSink, Method, Model, Result, SensitivitySettings, StepMetrics,
    TrainSettings, Trainer, sensitivity,
};

/// Rows that sensitivities are computed on. A row costs half as much again as in a collected step, so that they take
/// less than half of what 40 steps of four rows do.
pub const SENSITIVITY_ROWS: usize = 40;

/// How gradients are collected.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectSettings {
    /// How many steps, `t`, at most: fewer if the sink has enough.
    pub steps: usize,
    /// The fine-tune they are the first steps of; it must be LoRA.
    pub train: TrainSettings,
    /// Folder for the state after the last of them, if the fine-tune is to go on from there; then
    /// at most half its steps are collected.
    pub state: Option<PathBuf>,
}

/// What [`collect`] saw besides the gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Collected {
    /// The layers' block influence, from the forward passes of step 1.
    pub activations: Activations,
    /// How alike hidden states are, over the first rows.
    pub hidden: Hidden,
    /// How the loss answers to each layer without adapters, over the steps' first rows, 40 at most, in batches as
    /// large as a step's passes.
    pub sensitivity: Sensitivity,
    /// Every step.
    pub steps: Vec<StepMetrics>,
}

/// Who hears of the collected steps.
pub struct Listeners<'a> {
    /// Takes every step's gradients.
    pub sink: &'a mut dyn GradientSink,
    /// Takes every step's figures.
    pub observe: &'a mut dyn FnMut(&StepMetrics),
}

/// Runs the first steps of a LoRA fine-tune and hands their gradients on.
///
/// # Errors
///
/// If the settings are not LoRA, or training or the sink fails.
pub fn collect(
    model: Model,
    settings: &CollectSettings,
    data: impl Into<Arc<Encoded>>,
    listeners: Listeners<'_>,
) -> Result<Collected> {
    let Listeners { sink, observe } = listeners;
    if !matches!(settings.train.method, Method::Lora(_)) {
        return Err(FinetuneError::Settings("gradients are collected from LoRA".into()));
    }
    if settings.steps == 0 {
        return Err(FinetuneError::Settings("at least one step must be collected".into()));
    }
    let num_layers = model.config().num_layers;
    let mut seen = FirstPasses {
        is_first_step: true,
        influence: BlockInfluence::new(num_layers),
        hidden: HiddenMeter::new(num_layers),
    };
    let mut trainer = Trainer::new(model, settings.train.clone(), data)?;
    let all = trainer.total_steps();
    let most = if settings.state.is_some() { (all / 2).max(1) } else { all };
    if settings.state.is_some() && all == 1 {
        tracing::warn!(
            "the training has one step, and its gradients are collected: the pruned model takes none; train longer, or \
             begin anew by --restart"
        );
    }
    if most < settings.steps {
        tracing::warn!(
            "the training is short: gradients of {most} steps are collected, not of {}",
            settings.steps
        );
    }
    let mut steps = Vec::new();
    let most = most.min(settings.steps);
    for step in 0..most {
        let mut metrics = trainer.step(Some(sink), &mut seen)?;
        seen.is_first_step = false;
        metrics.total_steps = most;
        observe(&metrics);
        steps.push(metrics);
        if sink.enough() {
            break;
        }
        if step + 1 < most {
            stop::check()?;
        }
    }
    if let Some(folder) = &settings.state {
        trainer.save(folder)?;
    }
    let FirstPasses { influence, hidden, .. } = seen;
    let (activations, hidden) = (influence.finish(), hidden.finish()?);
    let sensitivity = first_sensitivity(&trainer, &settings.train, steps.len())?;
    Ok(Collected { activations, hidden, sensitivity, steps })
}

/// How the loss answers to the model without adapters on the first rows of so many steps.
fn first_sensitivity(
    trainer: &Trainer,
    train: &TrainSettings,
    steps: usize,
) -> Result<Sensitivity> {
    let TrainSettings { batch_rows, remat, .. } = *train;
    // Whole batches, unless one alone has more rows.
    let most = match SENSITIVITY_ROWS / batch_rows {
        0 => SENSITIVITY_ROWS,
        batches => batches * batch_rows,
    };
    let settings = SensitivitySettings { batch_rows, remat };
    sensitivity(trainer.model(), &trainer.first_rows(steps, most), &settings)
}

/// What is seen of the steps' forward passes.
struct FirstPasses {
    is_first_step: bool,
    influence: BlockInfluence,
    hidden: HiddenMeter,
}

impl Observer for FirstPasses {
    fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
        if self.is_first_step {
            self.influence.layer(seen)?;
        }
        self.hidden.layer(seen)
    }
}

/// Means over tokens of the cosine between each layer's input and output.
struct BlockInfluence {
    tokens: Vec<usize>,
    cosines: Vec<f64>,
}

impl BlockInfluence {
    fn new(num_layers: usize) -> Self {
        Self { tokens: vec![0; num_layers], cosines: vec![0.0; num_layers] }
    }

    fn finish(self) -> Activations {
        let tokens = self.tokens.first().copied().unwrap_or(0);
        let influence = self
            .cosines
            .iter()
            .zip(&self.tokens)
            .map(|(sum, &count)| 1.0 - sum / count.max(1) as f64)
            .collect();
        Activations::new(tokens, influence)
    }
}

impl Observer for BlockInfluence {
    fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
        let LayerPass { layer, input, output, .. } = *seen;
        let _guard = tch::no_grad_guard();
        let wide = |x: &Tensor| x.f_detach()?.f_to_kind(Kind::Float);
        let cosine = Tensor::f_cosine_similarity(&wide(input)?, &wide(output)?, -1, 1e-8)?;
        self.tokens[layer] += cosine.numel();
        self.cosines[layer] += number(&cosine.f_sum(Kind::Double)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Packed;
    use crate::{ComputeType, DeviceChoice};

    /// Against cosines of hidden states that transformers computed.
    #[test]
    fn golden_block_influence() {
        for name in ["qwen3", "mistral_window", "qwen2_window", "llama_linear_rope"] {
            let folder = testkit::fixture(&format!("families/{name}"));
            let file = folder.join("logits.safetensors");
            let (_, ids) = testkit::tensor_i64(&file, "input_ids");
            let (_, expected) = testkit::tensor_f32(&file, "block_influence");
            let model = Model::load(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
            let tokens: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
            let example = dataset::Example::whole(tokens.clone(), vec![false; tokens.len()]);
            let mut influence = BlockInfluence::new(expected.len());
            // The same row twice, in two batches: means are over all tokens.
            for _ in 0..2 {
                let batch = Packed::examples(&[&example], model.device).unwrap();
                let _ = model.hidden(&batch, &mut influence).unwrap();
            }
            let found = influence.finish();
            assert_eq!(found.tokens, 2 * example.tokens.len());
            for (found, expected) in found.block_influence.iter().zip(expected) {
                assert!(
                    (found - f64::from(expected)).abs() < 1e-5,
                    "{name}: {found} is not {expected}"
                );
            }
        }
    }
}
