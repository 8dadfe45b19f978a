//! The decoder, built as its family describes it.

mod backward;
mod cache;
mod identity;
#[cfg(test)]
mod tests;
mod trains;

use std::cell::RefCell;
use std::collections::{BTreeMap, btree_map};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{
    Checkpoint, Design, LayerKind, MappedFile, ModelConfig, NF4_BLOCK, QkNorm, TensorView,
    tensor_name,
};
use tch::{Device, Kind, Tensor};

use crate::attention::{Attention, Scoring};
use crate::bridge::{kind as stored_kind, load};
use crate::head::Head;
use crate::layer::{Layer, LayerNorms, LayerShape, QkNorms};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::observer::{LayerPass, Nobody, Observer};
use crate::offload::Passage;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::rope::{Rotation, turns_after};
use crate::weight::{Packed4, Packed8, Rounding, Weight};
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
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    /// `None` if the head is the embedding.
    pub(crate) head: Option<Weight>,
    pub(crate) frozen: Frozen,
    /// Weights read from mapped files must not outlive the mappings.
    pub(crate) files: Arc<[Arc<MappedFile>]>,
}

/// How frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frozen {
    /// On the device, some of them rounded to fewer bits.
    Resident(Rounding),
    /// The layers' linear weights are on the device only while a pass is at them.
    Passing,
}

impl Frozen {
    pub(crate) fn rounding(self) -> Rounding {
        match self {
            Self::Resident(rounding) => rounding,
            Self::Passing => Rounding::NONE,
        }
    }
}

/// What layers share in a pass over one pack.
#[derive(Debug)]
pub(crate) struct Shared {
    rotations: Vec<Rotation>,
    /// By window.
    attention: BTreeMap<Option<usize>, Attention>,
}

impl Shared {
    /// How a layer's queries and keys are rotated, if they are.
    pub(crate) fn rotation(&self, kind: LayerKind) -> Option<&Rotation> {
        kind.rope.map(|rope| &self.rotations[rope])
    }

    /// How a layer's tokens attend.
    pub(crate) fn attention(&self, kind: LayerKind) -> &Attention {
        &self.attention[&kind.window]
    }
}

/// What of a model's layers is no weight.
fn shape_of(config: &ModelConfig) -> LayerShape {
    let width = |heads: usize| (heads * config.head_dim) as i64;
    let (queries, keys) = (width(config.num_heads), width(config.num_kv_heads));
    let Design { is_fused, activation, residual_scale, .. } = config.design;
    LayerShape {
        head_dim: config.head_dim as i64,
        qkv: [queries, keys, keys],
        gate_up: [config.intermediate_size as i64; 2],
        is_fused,
        activation,
        residual_scale,
    }
}

impl Model {
    /// Loads a checkpoint folder.
    ///
    /// # Errors
    ///
    /// Whatever [`Checkpoint::open`] refuses, or if the device cannot be used.
    pub fn load(folder: &Path, device: DeviceChoice, compute: ComputeType) -> Result<Self> {
        Self::load_rounded(folder, device, compute, Rounding::NONE)
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
        Self::load_to(folder, device.resolve()?, compute, Frozen::Passing)
    }

    /// As [`Model::load`], but with some weights rounded to fewer bits. They do not train; adapters on them do.
    ///
    /// # Errors
    ///
    /// As [`Model::load`], and [`FinetuneError::NotFiniteWeight`] if a weight to round is not finite.
    pub fn load_rounded(
        folder: &Path,
        device: DeviceChoice,
        compute: ComputeType,
        rounding: Rounding,
    ) -> Result<Self> {
        Self::load_to(folder, device.resolve()?, compute, Frozen::Resident(rounding))
    }

    fn load_to(
        folder: &Path,
        device: Device,
        compute: ComputeType,
        frozen: Frozen,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let (kind, rounding) = (compute.kind(), frozen.rounding());
        let files = RefCell::new(Vec::new());
        let place = |view: &TensorView<'_>, device, kind| -> Result<Parameter> {
            let loaded = load(view, device, kind)?;
            files.borrow_mut().extend(loaded.file);
            Ok(Parameter::frozen(loaded.tensor))
        };
        let tensor = |name: &str| place(&checkpoint.tensor(name)?, device, kind);
        let linear = |name: &str| -> Result<Weight> {
            let view = checkpoint.tensor(name)?;
            let in_4bit = rounding.layers_in_4bit
                && Packed4::takes(view.shape().last().copied().unwrap_or(0));
            Ok(match frozen {
                _ if in_4bit => Weight::Nf4(Packed4::of(&view, device)?),
                Frozen::Passing => {
                    Weight::Whole(place(&view, Device::Cpu, stored_kind(view.dtype()?))?)
                }
                Frozen::Resident(_) => Weight::Whole(place(&view, device, kind)?),
            })
        };
        let of_tokens = |name: &str| -> Result<Weight> {
            Ok(match rounding.embedding_in_8bit {
                true => Weight::Int8(Packed8::of(&checkpoint.tensor(name)?, device)?),
                false => Weight::Whole(tensor(name)?),
            })
        };
        let config = checkpoint.config()?.clone();
        let (epsilon, offset) = (config.rms_norm_eps, config.design.norm_offset);
        let norm = |weight: Parameter| Norm { weight, epsilon, offset };
        let shape = shape_of(&config);
        let embedding = of_tokens("model.embed_tokens.weight")?;
        let mut layers = Vec::new();
        for layer in 0..config.num_layers {
            let of_layer = |rest: &str| tensor(&format!("model.layers.{layer}.{rest}"));
            let of_name = |name: Option<&str>| {
                let weight = name.map(|name| of_layer(&format!("{name}.weight"))).transpose()?;
                Ok::<_, FinetuneError>(weight.map(norm))
            };
            let names = config.design.norms.names();
            let norms = LayerNorms {
                before_attention: of_name(names.before_attention)?,
                after_attention: of_name(names.after_attention)?,
                before_mlp: of_name(names.before_mlp)?,
                after_mlp: of_name(names.after_mlp)?,
            };
            let qk_norms = match config.design.qk_norm {
                Some(kind) => Some(QkNorms {
                    queries: norm(of_layer("self_attn.q_norm.weight")?),
                    keys: norm(of_layer("self_attn.k_norm.weight")?),
                    is_by_head: kind == QkNorm::ByHead,
                }),
                None => None,
            };
            let mut linears = BTreeMap::new();
            for &module in config.modules() {
                let weight = linear(&tensor_name(layer, module))?;
                let bias = match config.has_bias(module) {
                    true => Some(tensor(&format!("model.layers.{layer}.{module}.bias"))?),
                    false => None,
                };
                linears.insert(module, Linear { weight, bias, lora: None });
            }
            layers.push(Layer { norms, qk_norms, linears, shape });
        }
        let norm = norm(tensor("model.norm.weight")?);
        let head = match config.tied_head {
            true => None,
            false => Some(of_tokens("lm_head.weight")?),
        };
        let linears = || layers.iter().flat_map(|layer| layer.linears.values());
        let whole = linears().filter(|linear| linear.weight.parameter().is_some()).count();
        if rounding.layers_in_4bit && whole > 0 {
            let all = linears().count();
            tracing::warn!(
                "{whole} of {all} linear weights are not put into four bits: their rows are no multiple of {NF4_BLOCK} elements"
            );
        }
        let folder = folder.to_owned();
        let files = files.into_inner().into();
        Ok(Self { folder, config, device, kind, embedding, layers, norm, head, frozen, files })
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
            head: self.head.as_ref().map(Weight::untrained),
            files: Arc::clone(&self.files),
            ..*self
        }
    }

    /// The type of its products.
    pub(crate) fn compute_type(&self) -> ComputeType {
        if self.kind == Kind::BFloat16 { ComputeType::BF16 } else { ComputeType::F32 }
    }

    /// The final norm and the head.
    pub(crate) fn head(&self) -> Head<'_> {
        let Design { logit_scale: scale, logit_cap: cap, .. } = self.config.design;
        Head { norm: &self.norm, weight: self.head.as_ref().unwrap_or(&self.embedding), scale, cap }
    }

    /// What layers share in a pass over one pack.
    pub(crate) fn prepare(&self, batch: &Packed) -> Result<Shared> {
        let rotations = self.rotations(batch)?;
        let scoring = Scoring::of(&self.config);
        let mut attention = BTreeMap::new();
        for &LayerKind { window, .. } in &self.config.layers {
            if let btree_map::Entry::Vacant(entry) = attention.entry(window) {
                entry.insert(Attention::new(batch, window, scoring, (self.kind, self.device))?);
            }
        }
        Ok(Shared { rotations, attention })
    }

    /// Each of the model's rotations of a pack's tokens.
    fn rotations(&self, batch: &Packed) -> Result<Vec<Rotation>> {
        let ropes = self.config.ropes.iter();
        ropes.map(|rope| Rotation::new(rope, batch, self.kind, self.device)).collect()
    }

    /// Whether rows are rotated otherwise from some length on.
    pub(crate) fn turns_somewhere(&self) -> bool {
        self.config.ropes.iter().any(|rope| turns_after(rope).is_some())
    }

    /// Whether a row that grows by a token, to so many, is rotated otherwise from its first token on.
    pub(crate) fn turns_at(&self, length: usize) -> bool {
        self.config
            .ropes
            .iter()
            .any(|rope| turns_after(rope).is_some_and(|longest| length == longest + 1))
    }

    /// The last layer's output of every token, before the final norm, `[n, hidden]`.
    ///
    /// `observer` sees each layer.
    ///
    /// # Errors
    ///
    /// If libtorch refuses, as when memory runs out.
    pub(crate) fn hidden(&self, batch: &Packed, observer: &mut dyn Observer) -> Result<Tensor> {
        let shared = self.prepare(batch)?;
        let mut x = self.embed(batch)?;
        let mut passage = Passage::new(self, 0..self.layers.len());
        for number in 0..self.layers.len() {
            let layer = passage.next()?;
            let kind = self.config.layers[number];
            let (out, _) = layer.forward(&x, shared.rotation(kind), |heads| {
                shared.attention(kind).forward(heads)
            })?;
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
        self.scaled_embedding(self.embedding.factor().select(&batch.tokens, self.kind)?)
    }

    /// Embeddings, or their gradients, times what the family multiplies them by.
    fn scaled_embedding(&self, x: Tensor) -> Result<Tensor> {
        match self.config.design.embedding_scale {
            1.0 => Ok(x),
            // Rounded as the reference code rounds it.
            scale => {
                let scale = Tensor::f_from_slice(&[scale])?.f_to_kind(self.kind)?;
                Ok(x.f_mul(&scale.f_to_device(self.device)?)?)
            }
        }
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
