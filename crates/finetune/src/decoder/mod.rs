//! The decoder that Llama, Mistral and Qwen share.

mod backward;
mod cache;
#[cfg(test)]
mod tests;
mod trains;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Checkpoint, MappedFile, ModelConfig, Module, tensor_name};
use tch::{Device, Kind, Tensor};

use crate::attention::Attention;
use crate::bridge::{kind as stored_kind, load};
use crate::head::Head;
use crate::layer::Layer;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::observer::{LayerPass, Nobody, Observer};
use crate::offload::Passage;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::rope::Rotation;
use crate::{ComputeType, DeviceChoice, FinetuneError, Result};

pub(crate) use backward::Keep;
pub use cache::KvCache;
pub(crate) use trains::Trainable;

/// A decoder with its weights, and the adapters on them, if any.
#[derive(Debug)]
pub struct Model {
    folder: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) device: Device,
    pub(crate) kind: Kind,
    pub(crate) embedding: Parameter,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    /// `None` if the head is the embedding.
    pub(crate) head: Option<Parameter>,
    /// Whether the layers' frozen weights are on the device only while a pass is at them.
    pub(crate) offloaded: bool,
    /// Weights read from mapped files must not outlive the mappings.
    pub(crate) files: Arc<[Arc<MappedFile>]>,
}

impl Model {
    /// Loads a checkpoint folder.
    ///
    /// # Errors
    ///
    /// Whatever [`Checkpoint::open`] refuses, or if the device cannot be used.
    pub fn load(folder: &Path, device: DeviceChoice, compute: ComputeType) -> Result<Self> {
        Self::load_to(folder, device.resolve()?, compute, false)
    }

    /// As [`Model::load`], but the layers' frozen linear weights stay mapped from the file and pass
    /// through the device, the next layer's read while one computes.
    ///
    /// # Errors
    ///
    /// As [`Model::load`].
    pub fn load_offloaded(
        folder: &Path,
        device: DeviceChoice,
        compute: ComputeType,
    ) -> Result<Self> {
        Self::load_to(folder, device.resolve()?, compute, true)
    }

    fn load_to(
        folder: &Path,
        device: Device,
        compute: ComputeType,
        offloaded: bool,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let kind = compute.kind();
        let files = RefCell::new(Vec::new());
        let place = |name: &str, stays: bool| -> Result<Parameter> {
            let view = checkpoint.tensor(name)?;
            let loaded = match stays {
                true => load(&view, Device::Cpu, stored_kind(view.dtype()?))?,
                false => load(&view, device, kind)?,
            };
            files.borrow_mut().extend(loaded.file);
            Ok(Parameter::frozen(loaded.tensor))
        };
        let tensor = |name: &str| place(name, false);
        let config = checkpoint.config()?.clone();
        let norm = |weight: Parameter| Norm { weight, epsilon: config.rms_norm_eps };
        let embedding = tensor("model.embed_tokens.weight")?;
        let mut layers = Vec::new();
        for layer in 0..config.num_layers {
            let of_layer = |rest: &str| tensor(&format!("model.layers.{layer}.{rest}"));
            let input_norm = norm(of_layer("input_layernorm.weight")?);
            let post_norm = norm(of_layer("post_attention_layernorm.weight")?);
            let qk_norms = match config.qk_norm {
                true => Some((
                    norm(of_layer("self_attn.q_norm.weight")?),
                    norm(of_layer("self_attn.k_norm.weight")?),
                )),
                false => None,
            };
            let mut linears = BTreeMap::new();
            for module in Module::ALL {
                let weight = place(&tensor_name(layer, module), offloaded)?;
                let bias = match config.has_bias(module) {
                    true => Some(tensor(&format!("model.layers.{layer}.{module}.bias"))?),
                    false => None,
                };
                linears.insert(module, Linear { weight, bias, lora: None });
            }
            let head_dim = config.head_dim as i64;
            layers.push(Layer { input_norm, post_norm, qk_norms, linears, head_dim });
        }
        let norm = norm(tensor("model.norm.weight")?);
        let head = match config.tied_head {
            true => None,
            false => Some(tensor("lm_head.weight")?),
        };
        let folder = folder.to_owned();
        let files = files.into_inner().into();
        Ok(Self { folder, config, device, kind, embedding, layers, norm, head, offloaded, files })
    }

    /// Where it was loaded from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The model without adapters, by other handles on the same weights, none of which trains.
    pub(crate) fn bare(&self) -> Self {
        Self {
            folder: self.folder.clone(),
            config: self.config.clone(),
            embedding: self.embedding.untrained(),
            layers: self.layers.iter().map(Layer::bare).collect(),
            norm: self.norm.untrained(),
            head: self.head.as_ref().map(Parameter::untrained),
            files: Arc::clone(&self.files),
            ..*self
        }
    }

    /// The final norm and the head.
    pub(crate) fn head(&self) -> Head<'_> {
        Head { norm: &self.norm, weight: self.head.as_ref().unwrap_or(&self.embedding) }
    }

    /// What all layers share in a pass over one pack: rotations, and attention by window.
    pub(crate) fn prepare(
        &self,
        batch: &Packed,
    ) -> Result<(Rotation, BTreeMap<Option<usize>, Attention>)> {
        let rotation = Rotation::new(&self.config, &batch.positions, self.kind, self.device)?;
        let mut attention = BTreeMap::new();
        for &window in &self.config.windows {
            if let std::collections::btree_map::Entry::Vacant(entry) = attention.entry(window) {
                let heads = self.config.num_heads;
                entry.insert(Attention::new(batch, window, heads, self.device)?);
            }
        }
        Ok((rotation, attention))
    }

    /// The last layer's output of every token, before the final norm, `[n, hidden]`.
    ///
    /// `observer` sees each layer.
    ///
    /// # Errors
    ///
    /// If libtorch refuses, as when memory runs out.
    pub(crate) fn hidden(&self, batch: &Packed, observer: &mut dyn Observer) -> Result<Tensor> {
        let (rotation, attention) = self.prepare(batch)?;
        let mut x = self.embed(batch)?;
        let mut passage = Passage::new(self, 0..self.layers.len());
        for number in 0..self.layers.len() {
            let layer = passage.next()?;
            let attention = &attention[&self.config.windows[number]];
            let (out, _) = layer.forward(&x, &rotation, |heads| attention.forward(heads))?;
            let seen = LayerPass { rows: batch, layer: number, input: &x, output: &out };
            observer.layer(&seen)?;
            x = out;
        }
        Ok(x)
    }

    pub(crate) fn embed(&self, batch: &Packed) -> Result<Tensor> {
        let embedding = self.config.vocab_size;
        if batch.largest >= embedding as i64 {
            return Err(FinetuneError::Token { token: batch.largest, embedding });
        }
        let found = Tensor::f_embedding(&self.embedding.value, &batch.tokens, -1, false, false)?;
        Ok(found.f_to_kind(self.kind)?)
    }

    /// The log-likelihood of each labelled token of a batch, `[m]`, f32.
    pub(crate) fn log_likelihoods(&self, batch: &Packed) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.head().log_likelihoods(&self.hidden(batch, &mut Nobody)?, batch)
    }

    /// Logits of every token of rows given as token ids, `[n, vocabulary]` in f32, row after row.
    ///
    /// For checks and experiments; training never forms them.
    ///
    /// # Errors
    ///
    /// If libtorch refuses.
    pub fn all_logits(&self, rows: &[&[u32]]) -> Result<Vec<f32>> {
        let examples: Vec<_> = rows
            .iter()
            .map(|tokens| dataset::Example::whole(tokens.to_vec(), vec![false; tokens.len()]))
            .collect();
        let examples: Vec<_> = examples.iter().collect();
        let batch = Packed::examples(&examples, self.device)?;
        let _guard = tch::no_grad_guard();
        crate::bridge::values(&self.head().logits(&self.hidden(&batch, &mut Nobody)?)?)
    }
}
