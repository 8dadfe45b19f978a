//! What of a model trains: adapters, and weights of the checkpoint.

use std::collections::BTreeSet;
use std::path::Path;

use checkpoint::{Adapter, Checkpoint, Module};
use tch::{Device, Kind, Tensor};

use crate::bridge::load;
use crate::layer::{Layer, QkNorms};
use crate::lora::{FreshLora, Lora};
use crate::parameter::Parameter;
use crate::weight::Weight;
use crate::{FinetuneError, LoraSettings, Model, Result};

/// Which weights of a model train, besides adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trainable {
    All,
    /// The head, the norm before it, and so many of the last layers.
    HeadAndLast(usize),
}

impl Model {
    /// Puts fresh adapters on the weights the settings name.
    ///
    /// # Errors
    ///
    /// If the settings name no weight, or a layer the model does not have.
    pub fn add_lora(&mut self, settings: &LoraSettings, seed: u64) -> Result<()> {
        let LoraSettings { rank, alpha, targets, layers, dora } = settings;
        if *rank == 0 || targets.is_empty() {
            return Err(FinetuneError::Settings(
                "LoRA needs a rank and at least one target".into(),
            ));
        }
        if let Some(layers) = layers {
            self.require_layers(layers)?;
        }
        let side = |module: &Module| {
            let (out, inner) = self.config.linear_shape(*module);
            (out.min(inner), *module)
        };
        if let Some((most, module)) = targets.iter().map(side).min()
            && *rank > most
        {
            return Err(FinetuneError::Settings(format!(
                "a LoRA rank of {rank} is more than the smaller side of `{module}`, {most}"
            )));
        }
        for (number, layer) in self.layers.iter_mut().enumerate() {
            if layers.as_ref().is_some_and(|chosen| !chosen.contains(&number)) {
                continue;
            }
            for (&module, linear) in &mut layer.linears {
                if targets.contains(&module) {
                    let (out, columns) = self.config.linear_shape(module);
                    let (rank, alpha, layer) = (*rank, *alpha, number);
                    let fresh = FreshLora { out, columns, rank, alpha, seed, layer, module };
                    let lora = Lora::new(fresh, self.device)?;
                    linear.lora = Some(match dora {
                        true => lora.with_magnitude(&linear.weight, None)?,
                        false => lora,
                    });
                }
            }
        }
        Ok(())
    }

    /// Puts a trained adapter on the model.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::OtherModel`] if a matrix does not fit; `path` is for the message.
    pub fn add_adapter(&mut self, adapter: &Adapter, path: &Path) -> Result<()> {
        for (&(layer, module), pair) in &adapter.pairs {
            let found = (pair.b.nrows(), pair.a.ncols());
            if layer >= self.config.num_layers || found != self.config.linear_shape(module) {
                let what = format!("it has layer {layer} {module} of {found:?}");
                return Err(FinetuneError::OtherModel { path: path.to_owned(), what });
            }
            let tensor = |matrix: &ndarray::Array2<f32>| {
                let (rows, columns) = matrix.dim();
                let values: Vec<f32> = matrix.iter().copied().collect();
                Tensor::f_from_slice(&values)?.f_view([rows as i64, columns as i64])
            };
            let scale = adapter.config.scale(layer, module);
            let lora =
                Lora::from_tensors(&tensor(&pair.a)?, &tensor(&pair.b)?, scale, self.device)?;
            if let Some(linear) = self.layers[layer].linears.get_mut(&module) {
                linear.lora = Some(match &pair.magnitude {
                    Some(vector) => {
                        let vector = Tensor::f_from_slice(&vector.to_vec())?;
                        lora.with_magnitude(&linear.weight, Some(&vector))?
                    }
                    None => lora,
                });
            }
        }
        Ok(())
    }

    /// Brings what DoRA divides by up to date after adapters changed.
    pub(crate) fn renew_magnitudes(&self) -> Result<()> {
        for linear in self.layers.iter().flat_map(|layer| layer.linears.values()) {
            if let Some(lora) = &linear.lora
                && let Some(magnitude) = &lora.magnitude
            {
                magnitude.renew(&linear.weight, lora)?;
            }
        }
        Ok(())
    }

    /// Makes weights of the checkpoint train.
    ///
    /// # Errors
    ///
    /// If there are fewer layers than are to train, or memory runs out.
    pub(crate) fn make_trainable(&mut self, what: Trainable) -> Result<()> {
        let Self { layers, embedding, head, norm, device, .. } = self;
        let first = match what {
            Trainable::All => 0,
            Trainable::HeadAndLast(count) => layers.len().checked_sub(count).ok_or_else(|| {
                let what = format!("the model has {} layers, not {count}", layers.len());
                FinetuneError::Settings(what)
            })?,
        };
        norm.weight.train()?;
        match (what, head) {
            // A head that is the embedding trains as both.
            (Trainable::HeadAndLast(_), Some(head)) => head.parameter_mut()?.train()?,
            (Trainable::HeadAndLast(_), None) => embedding.parameter_mut()?.train()?,
            (Trainable::All, head) => {
                embedding.parameter_mut()?.train()?;
                if let Some(head) = head {
                    head.parameter_mut()?.train()?;
                }
            }
        }
        layers[first..].iter_mut().try_for_each(|layer| layer.train(*device))?;
        self.reread_on_gpu()
    }

    /// Makes every weight of some layers train.
    ///
    /// # Errors
    ///
    /// If the model does not have one of them, or memory runs out.
    pub(crate) fn make_layers_trainable(&mut self, chosen: &BTreeSet<usize>) -> Result<()> {
        self.require_layers(chosen)?;
        for &number in chosen {
            self.layers[number].train(self.device)?;
        }
        self.reread_on_gpu()
    }

    /// On a GPU weights were rounded to the type of the products when they were loaded; those that train begin as stored.
    fn reread_on_gpu(&self) -> Result<()> {
        if self.device == Device::Cpu { Ok(()) } else { self.reread_trained() }
    }

    /// Gives every weight of the checkpoint that trains its stored values.
    pub(super) fn reread_trained(&self) -> Result<()> {
        self.reread(self.named_weights())
    }

    /// The same of the linear weights of a copy of one of the layers.
    pub(crate) fn reread_layer(&self, number: usize, layer: &Layer) -> Result<()> {
        let weights = layer.linears.iter().filter_map(|(&module, linear)| {
            Some((checkpoint::tensor_name(number, module), linear.weight.parameter()?))
        });
        self.reread(weights.collect())
    }

    fn reread(&self, weights: Vec<(String, &Parameter)>) -> Result<()> {
        let source = Checkpoint::open(self.folder())?;
        for (name, parameter) in weights {
            if parameter.trains() {
                let stored = load(&source.tensor(&name)?, Device::Cpu, Kind::Float)?;
                parameter.value.shallow_clone().f_copy_(&stored.tensor)?;
            }
        }
        Ok(())
    }

    fn require_layers(&self, chosen: &BTreeSet<usize>) -> Result<()> {
        let all = self.config.num_layers;
        match chosen.last() {
            Some(layer) if *layer >= all => {
                Err(FinetuneError::Settings(format!("there is no layer {layer} of {all}")))
            }
            _ => Ok(()),
        }
    }

    /// Everything that trains, under names of its own, in a fixed order.
    pub(crate) fn trained(&self) -> Vec<(String, &Parameter)> {
        let weights = self.named_weights().into_iter();
        let adapters = self.layers.iter().enumerate().flat_map(|(number, layer)| {
            layer.linears.iter().filter_map(move |(module, linear)| {
                let lora = linear.lora.as_ref()?;
                let name = |part: &str| format!("layers.{number}.{module}.lora_{part}");
                let vector = lora.magnitude.as_ref().map(|of| (name("magnitude"), &of.value));
                Some([(name("A"), &lora.a), (name("B"), &lora.b)].into_iter().chain(vector))
            })
        });
        weights.chain(adapters.flatten()).filter(|(_, parameter)| parameter.trains()).collect()
    }

    /// Those that are rounded to fewer bits, under their names in the checkpoint.
    pub(crate) fn rounded_weights(&self) -> Vec<(String, &Weight)> {
        let embedding = [("model.embed_tokens.weight".to_owned(), &self.embedding)];
        let head = self.head.as_ref().map(|head| ("lm_head.weight".to_owned(), head));
        let linears = self.layers.iter().enumerate().flat_map(|(number, layer)| {
            layer.linears.iter().map(move |(&module, linear)| {
                (checkpoint::tensor_name(number, module), &linear.weight)
            })
        });
        let all = embedding.into_iter().chain(head).chain(linears);
        all.filter(|(_, weight)| weight.parameter().is_none()).collect()
    }

    /// Every weight of the checkpoint under its name there, but for those that are rounded to fewer bits.
    pub(crate) fn named_weights(&self) -> Vec<(String, &Parameter)> {
        let mut all = Vec::new();
        if let Some(embedding) = self.embedding.parameter() {
            all.push(("model.embed_tokens.weight".to_owned(), embedding));
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let name = |rest: &str| format!("model.layers.{number}.{rest}");
            let names = self.config.design.norms.names().all();
            for (norm_name, norm) in names.zip(layer.norms.all()) {
                all.push((name(&format!("{norm_name}.weight")), &norm.weight));
            }
            if let Some(QkNorms { queries, keys, .. }) = &layer.qk_norms {
                all.push((name("self_attn.q_norm.weight"), &queries.weight));
                all.push((name("self_attn.k_norm.weight"), &keys.weight));
            }
            for (module, linear) in &layer.linears {
                if let Some(weight) = linear.weight.parameter() {
                    all.push((name(&format!("{module}.weight")), weight));
                }
                if let Some(bias) = &linear.bias {
                    all.push((name(&format!("{module}.bias")), bias));
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), &self.norm.weight));
        if let Some(head) = self.head.as_ref().and_then(Weight::parameter) {
            all.push(("lm_head.weight".to_owned(), head));
        }
        all
    }
}
