//! How a model is trained.

use std::collections::BTreeSet;

use checkpoint::ModelConfig;

use crate::decoder::Keep;
use crate::{AdamWSettings, FinetuneError, LoraSettings, Result, Schedule};

/// What trains.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Adapters alone.
    Lora(LoraSettings),
    /// Every weight of some layers, and adapters on the others, if there are others (CLP, for the layers beside a cut).
    LoraAndLayers(LoraAndLayers),
    /// Every weight.
    Full,
    /// The head, the norm before it and so many of the last layers (Lu et al., arXiv 2411.15558).
    ///
    /// A head that is the embedding too trains as both, which takes the gradient down to it.
    HeadAndLast(usize),
}

/// What trains where some layers train in full beside adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraAndLayers {
    /// The adapters; those that would be on a layer that trains in full are left out.
    pub lora: LoraSettings,
    /// The layers of which every weight trains, counted from 0; one at least.
    pub full: BTreeSet<usize>,
}

impl LoraAndLayers {
    /// The adapters in force on a model of so many layers.
    pub(crate) fn adapters(&self, num_layers: usize) -> LoraSettings {
        let wanted =
            |layer: &usize| self.lora.layers.as_ref().is_none_or(|some| some.contains(layer));
        let layers = (0..num_layers).filter(|layer| wanted(layer) && !self.full.contains(layer));
        LoraSettings { layers: Some(layers.collect()), ..self.lora.clone() }
    }
}

impl Method {
    /// Whether weights of the checkpoint train, so that what is left is a checkpoint, adapters merged.
    pub fn trains_weights(&self) -> bool {
        !matches!(self, Self::Lora(_))
    }

    /// The adapters in force on a model of so many layers, if there are any.
    pub(crate) fn adapters(&self, num_layers: usize) -> Option<LoraSettings> {
        match self {
            Self::Lora(lora) => Some(lora.clone()),
            Self::LoraAndLayers(both) => Some(both.adapters(num_layers)),
            Self::Full | Self::HeadAndLast(_) => None,
        }
    }
}

/// How a model is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// What trains.
    pub method: Method,
    /// How often every row is seen.
    pub epochs: f64,
    /// Stop after so many steps, if that is sooner; the schedule still spans all epochs.
    pub max_steps: Option<usize>,
    /// Rows of a forward pass.
    pub batch_rows: usize,
    /// Forward passes of a step.
    pub accumulate: usize,
    /// The optimizer's constants.
    pub adamw: AdamWSettings,
    /// The learning rate.
    pub schedule: Schedule,
    /// The largest norm of all gradients together.
    pub max_grad_norm: f64,
    /// The share of each tensor's elements that moves in a step, those with the largest gradients (GMT, arXiv
    /// 2406.15330), above 0; `None` for all.
    pub update_share: Option<f64>,
    /// Decides the rows' order and the initial adapters.
    pub seed: u64,
    /// Keep each layer's input alone for the backward pass and compute the rest again there: less
    /// memory, more time, the same gradients.
    pub remat: bool,
    /// Steps between two saved states; `None` for one a minute.
    pub save_every: Option<usize>,
}

impl TrainSettings {
    /// Leaves the adapters' targets that a model has.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if it has none of them.
    pub fn restrict_to(&mut self, config: &ModelConfig) -> Result<()> {
        let (Method::Lora(lora) | Method::LoraAndLayers(LoraAndLayers { lora, .. })) =
            &mut self.method
        else {
            return Ok(());
        };
        let wanted = !lora.targets.is_empty();
        lora.targets.retain(|target| config.modules().contains(target));
        if wanted && lora.targets.is_empty() {
            let names: Vec<&str> = config.modules().iter().map(|one| one.short_name()).collect();
            return Err(FinetuneError::Settings(format!(
                "the model has none of the weights that adapters are wanted on; it has {}",
                names.join(", ")
            )));
        }
        Ok(())
    }

    pub(super) fn keep(&self) -> Keep {
        if self.remat { Keep::LayerInputs } else { Keep::Activations }
    }
}
