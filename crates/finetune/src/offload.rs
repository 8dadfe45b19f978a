//! Layers one after another, as a pass over the model wants them: those that are on the device as
//! they are, those that are not passing through it, the next one read while one computes.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::thread::{self, JoinHandle};

use checkpoint::Module;
use tch::{Device, Tensor};

use crate::decoder::Frozen;
use crate::layer::Layer;
use crate::{FinetuneError, Model, Result};

/// The layers of one pass, in the order it wants them.
pub(crate) struct Passage<'a> {
    model: &'a Model,
    waiting: Box<dyn Iterator<Item = usize> + 'a>,
    ahead: Option<(usize, JoinHandle<Result<Staged>>)>,
}

/// Frozen weights where the device can fetch them from without the CPU's help.
type Staged = BTreeMap<Module, Tensor>;

/// A layer whose turn it is.
pub(crate) enum Present<'a> {
    Resident(&'a Layer),
    /// Its frozen weights leave the device with it.
    Passing(Box<Layer>),
}

impl Deref for Present<'_> {
    type Target = Layer;

    fn deref(&self) -> &Layer {
        match self {
            Self::Resident(layer) => layer,
            Self::Passing(layer) => layer,
        }
    }
}

impl<'a> Passage<'a> {
    /// A pass over the layers `order`.
    pub(crate) fn new(model: &'a Model, order: impl Iterator<Item = usize> + 'a) -> Self {
        let mut passage = Self { model, waiting: Box::new(order), ahead: None };
        passage.read_ahead();
        passage
    }

    /// The next layer of the pass.
    pub(crate) fn next(&mut self) -> Result<Present<'a>> {
        let over = || FinetuneError::Settings("the pass over the layers is over".into());
        if self.model.frozen != Frozen::Passing {
            let number = self.waiting.next().ok_or_else(over)?;
            return Ok(Present::Resident(&self.model.layers[number]));
        }
        let (number, reading) = self.ahead.take().ok_or_else(over)?;
        let staged = reading.join().map_err(|_| {
            FinetuneError::Settings(format!("the weights of layer {number} could not be read"))
        })??;
        self.read_ahead();
        let weights = staged
            .into_iter()
            .map(|(module, weight)| {
                // Not in one step with the type, which would be changed on the CPU.
                let here = weight.f_to_device_(self.model.device, weight.f_kind()?, true, false)?;
                Ok((module, here.f_to_kind(self.model.kind)?))
            })
            .collect::<Result<_>>()?;
        Ok(Present::Passing(Box::new(self.model.layers[number].with_frozen(weights))))
    }

    fn read_ahead(&mut self) {
        if self.model.frozen != Frozen::Passing {
            return;
        }
        self.ahead = self.waiting.next().map(|number| {
            let weights = self.model.layers[number].frozen();
            // The thread reads mapped files, which must stay.
            let (files, device) = (self.model.files.clone(), self.model.device);
            let read = move || {
                let staged = weights
                    .into_iter()
                    .map(|(module, weight)| Ok((module, stage(&weight, device)?)))
                    .collect();
                drop(files);
                staged
            };
            (number, thread::spawn(read))
        });
    }
}

/// Copies a mapped weight, reading it from the disk if need be, to where `device` takes it from.
fn stage(weight: &Tensor, device: Device) -> Result<Tensor> {
    Ok(match device {
        Device::Cpu => weight.f_detach_copy()?,
        _ => fused::pin_memory(weight)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::values;
    use crate::decoder::{Keep, Trainable};
    use crate::loss::{CrossEntropy, Objective};
    use crate::observer::Nobody;
    use crate::pack::Packed;
    use crate::train::tests::{golden_model, rows};
    use crate::{ComputeType, DeviceChoice};

    /// Losses and gradients do not depend on where the frozen weights are between passes.
    #[test]
    fn passing_layers_compute_what_resident_ones_do() {
        let name = "tiny_qwen2";
        let examples = rows(name).examples;
        let batch = Packed::examples(&examples.iter().collect::<Vec<_>>(), Device::Cpu).unwrap();
        for lora in [true, false] {
            for keep in [Keep::Activations, Keep::LayerInputs] {
                let found = [false, true].map(|offloaded| {
                    let mut model = golden_model(name);
                    if offloaded {
                        let folder = model.folder().to_owned();
                        model = Model::load_offloaded(&folder, DeviceChoice::Cpu, ComputeType::F32)
                            .unwrap();
                    }
                    match crate::train::tests::lora() {
                        crate::Method::Lora(settings) if lora => {
                            model.add_lora(&settings, 3).unwrap();
                        }
                        _ => model.make_trainable(Trainable::HeadAndLast(2)).unwrap(),
                    }
                    let objective =
                        Objective { tokens: &CrossEntropy { scale: 1.0 }, states: None };
                    let loss =
                        model.loss_and_gradients(&batch, &objective, keep, &mut Nobody).unwrap();
                    let gradients: Vec<_> = model
                        .trained()
                        .iter()
                        .map(|(_, x)| values(x.gradient.as_ref().unwrap()).unwrap())
                        .collect();
                    let likelihoods = values(&model.log_likelihoods(&batch).unwrap()).unwrap();
                    let reply = crate::generate(&model, &[3, 4, 5], 4, &mut |_| {}).unwrap().tokens;
                    (loss, gradients, likelihoods, reply)
                });
                assert!(found[0] == found[1], "lora {lora}, {keep:?}");
            }
        }
    }
}
