//! The decoder that Llama, Mistral and Qwen share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Adapter, Checkpoint, MappedFile, ModelConfig, Module, tensor_name};
use tch::{Device, Kind, Tensor};

use crate::attention::{attend, attend_cached};
use crate::bridge::load;
use crate::lora::Lora;
use crate::pack::Packed;
use crate::rope::Rotation;
use crate::{ComputeType, DeviceChoice, FinetuneError, LoraSettings, Result};

/// A decoder with its weights, and the adapters on them, if any.
#[derive(Debug)]
pub struct Model {
    folder: PathBuf,
    config: ModelConfig,
    pub(crate) device: Device,
    pub(crate) kind: Kind,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// `None` if the head is the embedding.
    pub(crate) head: Option<Tensor>,
    // Weights read from mapped files must not outlive the mappings.
    _files: Vec<Arc<MappedFile>>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Tensor,
    pub(crate) post_norm: Tensor,
    /// Norms of queries and keys, by head (Qwen3).
    pub(crate) qk_norms: Option<(Tensor, Tensor)>,
    pub(crate) linears: BTreeMap<Module, Linear>,
}

#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) lora: Option<Lora>,
}

/// Keys and values of the tokens so far, for one row.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| keys.size().first().map_or(0, |&n| n as usize))
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

impl Model {
    /// Loads a checkpoint folder.
    ///
    /// # Errors
    ///
    /// Whatever [`Checkpoint::open`] refuses, or if the device cannot be used.
    pub fn load(folder: &Path, device: DeviceChoice, compute: ComputeType) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let (device, kind) = (device.resolve()?, compute.kind());
        let mut files = Vec::new();
        let mut tensor = |name: &str| -> Result<Tensor> {
            let loaded = load(&checkpoint.tensor(name)?, device, kind)?;
            files.extend(loaded.file);
            Ok(loaded.tensor)
        };
        let config = checkpoint.config().clone();
        let embedding = tensor("model.embed_tokens.weight")?;
        let mut layers = Vec::new();
        for layer in 0..config.num_layers {
            let mut of_layer = |rest: &str| tensor(&format!("model.layers.{layer}.{rest}"));
            let input_norm = of_layer("input_layernorm.weight")?;
            let post_norm = of_layer("post_attention_layernorm.weight")?;
            let qk_norms = match config.qk_norm {
                true => Some((
                    of_layer("self_attn.q_norm.weight")?,
                    of_layer("self_attn.k_norm.weight")?,
                )),
                false => None,
            };
            let mut linears = BTreeMap::new();
            for module in Module::ALL {
                let weight = tensor(&tensor_name(layer, module))?;
                let bias = match config.has_bias(module) {
                    true => Some(tensor(&format!("model.layers.{layer}.{module}.bias"))?),
                    false => None,
                };
                linears.insert(module, Linear { weight, bias, lora: None });
            }
            layers.push(Layer { input_norm, post_norm, qk_norms, linears });
        }
        let norm = tensor("model.norm.weight")?;
        let head = match config.tied_head {
            true => None,
            false => Some(tensor("lm_head.weight")?),
        };
        let folder = folder.to_owned();
        Ok(Self { folder, config, device, kind, embedding, layers, norm, head, _files: files })
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

    /// Puts fresh adapters on the weights the settings name.
    ///
    /// # Errors
    ///
    /// If the settings name no weight, or a layer the model does not have.
    pub fn add_lora(&mut self, settings: &LoraSettings, seed: u64) -> Result<()> {
        let LoraSettings { rank, alpha, targets, layers } = settings;
        if *rank == 0 || targets.is_empty() {
            return Err(FinetuneError::Settings(
                "LoRA needs a rank and at least one target".into(),
            ));
        }
        if let Some(layer) = layers.iter().flatten().find(|&&layer| layer >= self.config.num_layers)
        {
            let what = format!("there is no layer {layer} of {}", self.config.num_layers);
            return Err(FinetuneError::Settings(what));
        }
        for (number, layer) in self.layers.iter_mut().enumerate() {
            if layers.as_ref().is_some_and(|chosen| !chosen.contains(&number)) {
                continue;
            }
            for (&module, linear) in &mut layer.linears {
                if targets.contains(&module) {
                    let shape = self.config.linear_shape(module);
                    let place = (seed, number, module);
                    linear.lora = Some(Lora::new(shape, (*rank, *alpha), place, self.device)?);
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
        let scale = adapter.config.lora_alpha / adapter.config.r as f64;
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
            let lora =
                Lora::from_tensors(&tensor(&pair.a)?, &tensor(&pair.b)?, scale, self.device)?;
            if let Some(linear) = self.layers[layer].linears.get_mut(&module) {
                linear.lora = Some(lora);
            }
        }
        Ok(())
    }

    /// Makes every weight an f32 leaf that trains; products still run in the compute type.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn make_trainable(&mut self) -> Result<()> {
        // A copy: the mapped file must not be written to.
        let leaf = |x: &mut Tensor| -> Result<()> {
            *x = x.f_to_kind(Kind::Float)?.f_detach_copy()?.f_set_requires_grad(true)?;
            Ok(())
        };
        for tensor in self.weights_mut() {
            leaf(tensor)?;
        }
        Ok(())
    }

    fn weights_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let linears = layer
                .linears
                .values_mut()
                .flat_map(|linear| [&mut linear.weight].into_iter().chain(&mut linear.bias));
            let norms = [&mut layer.input_norm, &mut layer.post_norm];
            let qk = layer.qk_norms.iter_mut().flat_map(|(q, k)| [q, k]);
            norms.into_iter().chain(qk).chain(linears)
        });
        [&mut self.embedding, &mut self.norm].into_iter().chain(&mut self.head).chain(layers)
    }

    /// Every trained tensor under a name of its own, in a fixed order.
    pub(crate) fn trained(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        let mut add = |name: String, tensor: &Tensor| {
            if tensor.requires_grad() {
                all.push((name, tensor.shallow_clone()));
            }
        };
        for (name, tensor) in self.named_weights() {
            add(name, tensor);
        }
        for (number, layer) in self.layers.iter().enumerate() {
            for (module, linear) in &layer.linears {
                if let Some(lora) = &linear.lora {
                    add(format!("layers.{number}.{module}.lora_A"), &lora.a);
                    add(format!("layers.{number}.{module}.lora_B"), &lora.b);
                }
            }
        }
        all
    }

    /// Every weight of the checkpoint under its name there.
    pub(crate) fn named_weights(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embedding)];
        for (number, layer) in self.layers.iter().enumerate() {
            let name = |rest: &str| format!("model.layers.{number}.{rest}");
            all.push((name("input_layernorm.weight"), &layer.input_norm));
            all.push((name("post_attention_layernorm.weight"), &layer.post_norm));
            if let Some((q, k)) = &layer.qk_norms {
                all.push((name("self_attn.q_norm.weight"), q));
                all.push((name("self_attn.k_norm.weight"), k));
            }
            for (module, linear) in &layer.linears {
                all.push((name(&format!("{module}.weight")), &linear.weight));
                if let Some(bias) = &linear.bias {
                    all.push((name(&format!("{module}.bias")), bias));
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), &self.norm));
        if let Some(head) = &self.head {
            all.push(("lm_head.weight".to_owned(), head));
        }
        all
    }

    /// The last layer's output of every token, before the final norm, `[n, hidden]`.
    ///
    /// `watch` sees each layer's number, input and output.
    ///
    /// # Errors
    ///
    /// If libtorch refuses, as when memory runs out.
    pub(crate) fn hidden(
        &self,
        batch: &Packed,
        watch: &mut dyn FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let rotation = Rotation::new(&self.config, &batch.positions, (self.kind, self.device))?;
        let lengths = batch.lengths();
        let mut masks: BTreeMap<Option<usize>, Vec<Option<Tensor>>> = BTreeMap::new();
        for &window in &self.config.windows {
            if let std::collections::btree_map::Entry::Vacant(entry) = masks.entry(window) {
                entry.insert(batch.masks(window)?);
            }
        }
        let mut x = self.embed(&batch.tokens)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let masks = &masks[&self.config.windows[number]];
            let attention = |queries: &Tensor, keys: &Tensor, values: &Tensor| {
                attend(queries, keys, values, &lengths, masks)
            };
            let out = self.layer(layer, &x, &rotation, attention)?;
            watch(number, &x, &out)?;
            x = out;
        }
        Ok(x)
    }

    /// As [`Model::hidden`] for tokens that follow those in `cache`, which then holds them too.
    pub(crate) fn hidden_cached(&self, batch: &Packed, cache: &mut KvCache) -> Result<Tensor> {
        let rotation = Rotation::new(&self.config, &batch.positions, (self.kind, self.device))?;
        let before = cache.len() as i64;
        let mut x = self.embed(&batch.tokens)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let mask = self.cached_mask(before, batch.num_tokens() as i64, number)?;
            let attention = |queries: &Tensor, keys: &Tensor, values: &Tensor| {
                let all = match cache.layers.get(number) {
                    Some((old_keys, old_values)) => (
                        Tensor::f_cat(&[old_keys, keys], 0)?,
                        Tensor::f_cat(&[old_values, values], 0)?,
                    ),
                    None => (keys.shallow_clone(), values.shallow_clone()),
                };
                let out = attend_cached(queries, &all.0, &all.1, mask.as_ref())?;
                match cache.layers.get_mut(number) {
                    Some(held) => *held = all,
                    None => cache.layers.push(all),
                }
                Ok(out)
            };
            x = self.layer(layer, &x, &rotation, attention)?;
        }
        Ok(x)
    }

    /// What `new` tokens after `before` cached ones see; nothing to say for one without a window.
    fn cached_mask(&self, before: i64, new: i64, layer: usize) -> Result<Option<Tensor>> {
        let window = self.config.windows[layer].map_or(i64::MAX, |window| window as i64);
        if new == 1 && before < window {
            return Ok(None);
        }
        let at = (Kind::Int64, self.device);
        let queries = Tensor::f_arange_start(before, before + new, at)?.f_unsqueeze(1)?;
        let distance = queries.f_sub(&Tensor::f_arange(before + new, at)?)?;
        Ok(Some(distance.f_ge(0)?.f_logical_and(&distance.f_lt(window)?)?))
    }

    fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let found = Tensor::f_embedding(&self.embedding, tokens, -1, false, false)?;
        Ok(found.f_to_kind(self.kind)?)
    }

    /// One decoder layer: attention and MLP, each on a normalised input, each added to it.
    fn layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        rotation: &Rotation,
        attention: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ModelConfig { head_dim, num_heads, num_kv_heads, .. } = self.config;
        let (tokens, _) = x.size2()?;
        let apply = |module: Module, x: &Tensor| layer.linears[&module].apply(x);
        let heads = |x: &Tensor, heads: usize| x.f_view([tokens, heads as i64, head_dim as i64]);

        let normed = self.rms_norm(x, &layer.input_norm)?;
        let mut queries = heads(&apply(Module::QProj, &normed)?, num_heads)?;
        let mut keys = heads(&apply(Module::KProj, &normed)?, num_kv_heads)?;
        let values = heads(&apply(Module::VProj, &normed)?, num_kv_heads)?;
        if let Some((q_norm, k_norm)) = &layer.qk_norms {
            queries = self.rms_norm(&queries, q_norm)?;
            keys = self.rms_norm(&keys, k_norm)?;
        }
        let (queries, keys) = (rotation.apply(&queries)?, rotation.apply(&keys)?);
        let attended = attention(&queries, &keys, &values)?;
        let x = x.f_add(&apply(Module::OProj, &attended)?)?;

        let normed = self.rms_norm(&x, &layer.post_norm)?;
        let gate = apply(Module::GateProj, &normed)?.f_silu()?;
        let inner = gate.f_mul(&apply(Module::UpProj, &normed)?)?;
        Ok(x.f_add(&apply(Module::DownProj, &inner)?)?)
    }

    /// `x / √(mean(x²) + ε) · weight` over the last dimension, in f32, rounded back before the
    /// weight as the families' reference code does.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let wide = x.f_to_kind(Kind::Float)?;
        let mean = wide.f_square()?.f_mean_dim([-1_i64].as_slice(), true, Kind::Float)?;
        let scale = mean.f_add_scalar(self.config.rms_norm_eps)?.f_rsqrt()?;
        Ok(wide.f_mul(&scale)?.f_to_kind(self.kind)?.f_mul(&weight.f_to_kind(self.kind)?)?)
    }

    /// Logits of given hidden states, `[m, vocabulary]`, in f32.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = self.rms_norm(hidden, &self.norm)?;
        let head = self.head.as_ref().unwrap_or(&self.embedding).f_to_kind(self.kind)?;
        let none: Option<&Tensor> = None;
        Ok(normed.f_linear(&head, none)?.f_to_kind(Kind::Float)?)
    }

    /// The sum of the negative log-likelihoods of a batch's labelled tokens.
    pub(crate) fn loss_sum(
        &self,
        batch: &Packed,
        watch: &mut dyn FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let hidden = self.hidden(batch, watch)?.f_index_select(0, &batch.predict)?;
        let none: Option<&Tensor> = None;
        let logits = self.logits(&hidden)?;
        Ok(logits.f_cross_entropy_loss(&batch.targets, none, tch::Reduction::Sum, -100, 0.0)?)
    }

    /// The log-likelihood of each labelled token of a batch, `[m]`, f32.
    pub(crate) fn log_likelihoods(&self, batch: &Packed) -> Result<Tensor> {
        let hidden = self.hidden(batch, &mut ignore)?.f_index_select(0, &batch.predict)?;
        let log_probabilities = self.logits(&hidden)?.f_log_softmax(-1, Kind::Float)?;
        let targets = batch.targets.f_unsqueeze(-1)?;
        Ok(log_probabilities.f_gather(-1, &targets, false)?.f_squeeze_dim(-1)?)
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
            .map(|tokens| dataset::Example {
                tokens: tokens.to_vec(),
                labelled: vec![false; tokens.len()],
            })
            .collect();
        let examples: Vec<_> = examples.iter().collect();
        let batch = Packed::examples(&examples, self.device)?;
        let _guard = tch::no_grad_guard();
        crate::bridge::values(&self.logits(&self.hidden(&batch, &mut ignore)?)?)
    }
}

/// For forward passes nobody watches.
#[expect(clippy::unnecessary_wraps, reason = "it stands where a watcher may fail")]
pub(crate) fn ignore(_: usize, _: &Tensor, _: &Tensor) -> Result<()> {
    Ok(())
}

impl Linear {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let bias = match &self.bias {
            Some(bias) => Some(bias.f_to_kind(kind)?),
            None => None,
        };
        let out = x.f_linear(&self.weight.f_to_kind(kind)?, bias.as_ref())?;
        match &self.lora {
            Some(lora) => Ok(out.f_add(&lora.apply(x)?)?),
            None => Ok(out),
        }
    }
}
