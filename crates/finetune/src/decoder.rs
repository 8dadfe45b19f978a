//! The decoder that Llama, Mistral and Qwen share.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Adapter, Checkpoint, MappedFile, ModelConfig, Module, tensor_name};
use tch::{Device, Kind, Tensor};

use crate::attention::{Attention, Heads, attend_cached};
use crate::bridge::{kind as stored_kind, load};
use crate::head::Head;
use crate::layer::{Descent, Layer, Saved};
use crate::linear::Linear;
use crate::lora::Lora;
use crate::norm::Norm;
use crate::observer::{LayerPass, Nobody, Observer, StateGradient};
use crate::offload::Passage;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::rope::Rotation;
use crate::{ComputeType, DeviceChoice, FinetuneError, LoraSettings, Result};

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

/// Which weights of a model train, besides adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trainable {
    All,
    /// The head, the norm before it, and so many of the last layers.
    HeadAndLast(usize),
}

/// What a training's forward pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// All that the backward pass wants.
    Activations,
    /// Each layer's input; the rest is computed again, a layer at a time.
    LayerInputs,
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
        Self::load_to(folder, (device.resolve()?, compute), false)
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
        Self::load_to(folder, (device.resolve()?, compute), true)
    }

    fn load_to(
        folder: &Path,
        (device, compute): (Device, ComputeType),
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
        let config = checkpoint.config().clone();
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
                linear.lora = Some(lora);
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
                let what = format!("there are no {count} last layers, but {}", layers.len());
                FinetuneError::Settings(what)
            })?,
        };
        norm.weight.train()?;
        match (what, head) {
            // A head that is the embedding trains as both.
            (Trainable::HeadAndLast(_), Some(head)) => head.train()?,
            (Trainable::HeadAndLast(_), None) => embedding.train()?,
            (Trainable::All, head) => {
                embedding.train()?;
                if let Some(head) = head {
                    head.train()?;
                }
            }
        }
        for layer in &mut layers[first..] {
            layer.input_norm.weight.train()?;
            layer.post_norm.weight.train()?;
            if let Some((q, k)) = &mut layer.qk_norms {
                q.weight.train()?;
                k.weight.train()?;
            }
            for linear in layer.linears.values_mut() {
                linear.weight.train_on(*device)?;
                if let Some(bias) = &mut linear.bias {
                    bias.train()?;
                }
            }
        }
        Ok(())
    }

    /// Everything that trains, under names of its own, in a fixed order.
    pub(crate) fn trained(&self) -> Vec<(String, &Parameter)> {
        let weights = self.named_weights().into_iter();
        let adapters = self.layers.iter().enumerate().flat_map(|(number, layer)| {
            layer.linears.iter().filter_map(move |(module, linear)| {
                let lora = linear.lora.as_ref()?;
                let name = |side: &str| format!("layers.{number}.{module}.lora_{side}");
                Some([(name("A"), &lora.a), (name("B"), &lora.b)])
            })
        });
        weights.chain(adapters.flatten()).filter(|(_, parameter)| parameter.trains()).collect()
    }

    /// Every weight of the checkpoint under its name there.
    pub(crate) fn named_weights(&self) -> Vec<(String, &Parameter)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embedding)];
        for (number, layer) in self.layers.iter().enumerate() {
            let name = |rest: &str| format!("model.layers.{number}.{rest}");
            all.push((name("input_layernorm.weight"), &layer.input_norm.weight));
            all.push((name("post_attention_layernorm.weight"), &layer.post_norm.weight));
            if let Some((q, k)) = &layer.qk_norms {
                all.push((name("self_attn.q_norm.weight"), &q.weight));
                all.push((name("self_attn.k_norm.weight"), &k.weight));
            }
            for (module, linear) in &layer.linears {
                all.push((name(&format!("{module}.weight")), &linear.weight));
                if let Some(bias) = &linear.bias {
                    all.push((name(&format!("{module}.bias")), bias));
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), &self.norm.weight));
        if let Some(head) = &self.head {
            all.push(("lm_head.weight".to_owned(), head));
        }
        all
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

    /// The sum of the negative log-likelihoods of a batch's labelled tokens; the gradient of
    /// `scale` times it is added to what trains.
    ///
    /// `observer` sees each layer, and the gradients if it wants them. No graph is recorded: the passes are
    /// each other's mirror, written out.
    pub(crate) fn loss_and_gradients(
        &self,
        batch: &Packed,
        (scale, keep): (f64, Keep),
        observer: &mut dyn Observer,
    ) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let (rotation, attention) = self.prepare(batch)?;
        let attention = |layer: usize| &attention[&self.config.windows[layer]];
        let lowest = match self.embedding.trains() || observer.wants_gradients() {
            true => 0,
            false => self.layers.iter().position(Layer::trains).unwrap_or(self.layers.len()),
        };
        let mut x = self.embed(batch)?;
        let mut kept: Vec<(Tensor, Option<Saved>)> = Vec::new();
        let (up, down) = (0..self.layers.len(), (lowest..self.layers.len()).rev());
        let mut passage = Passage::new(self, up.clone().chain(down.clone()));
        for number in up {
            let layer = passage.next()?;
            let (out, saved) =
                layer.forward(&x, &rotation, |heads| attention(number).forward(heads))?;
            let real = batch.num_tokens() as i64;
            let (input, output) = (x.f_narrow(0, 0, real)?, out.f_narrow(0, 0, real)?);
            let seen = LayerPass { rows: batch, layer: number, input: &input, output: &output };
            observer.layer(&seen)?;
            if number >= lowest {
                kept.push((x, (keep == Keep::Activations).then_some(saved)));
            }
            x = out;
        }
        let (loss, gradient) = self.head().loss(&x, batch, scale)?;
        drop(x);
        let mut gradient = Some(gradient);
        for number in down {
            let (Some((x, saved)), Some(of_output)) = (kept.pop(), gradient.take()) else { break };
            let layer = passage.next()?;
            let saved = match saved {
                Some(saved) => saved,
                None => layer.forward(&x, &rotation, |heads| attention(number).forward(heads))?.1,
            };
            if observer.wants_gradients() {
                let of_rows = of_output.f_narrow(0, 0, batch.num_tokens() as i64)?;
                observer.state_gradient(&StateGradient { layer: number, gradient: &of_rows })?;
            }
            let descent = Descent {
                number,
                input: &x,
                saved: &saved,
                rotation: &rotation,
                attention: attention(number),
                gradient: &of_output,
                below: number > lowest || self.embedding.trains(),
            };
            gradient = layer.backward(&descent, observer)?;
        }
        if let Some(gradient) = gradient {
            self.embedding.gather(|| {
                let (vocabulary, _) = self.embedding.value.size2()?;
                let wide = gradient.f_to_kind(Kind::Float)?;
                let tokens = &batch.tokens;
                Ok(Tensor::f_embedding_dense_backward(&wide, tokens, vocabulary, -1, false)?)
            })?;
        }
        Ok(loss)
    }

    /// What all layers share in a pass over one pack: rotations, and attention by window.
    pub(crate) fn prepare(
        &self,
        batch: &Packed,
    ) -> Result<(Rotation, BTreeMap<Option<usize>, Attention>)> {
        let rotation = Rotation::new(&self.config, &batch.positions, (self.kind, self.device))?;
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

    /// As [`Model::hidden`] for tokens that follow those in `cache`, which then holds them too.
    pub(crate) fn hidden_cached(&self, batch: &Packed, cache: &mut KvCache) -> Result<Tensor> {
        let rotation = Rotation::new(&self.config, &batch.positions, (self.kind, self.device))?;
        let before = cache.len() as i64;
        let mut x = self.embed(batch)?;
        let mut passage = Passage::new(self, 0..self.layers.len());
        for number in 0..self.layers.len() {
            let layer = passage.next()?;
            let mask = self.cached_mask(before, batch.num_tokens() as i64, number)?;
            let attention = |heads: &Heads| {
                let Heads { queries, keys, values } = heads;
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
            x = layer.forward(&x, &rotation, attention)?.0;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dataset::Example;

    use super::*;
    use crate::bridge::values;

    #[test]
    fn tokens_beyond_the_embedding_are_refused_with_both_numbers() {
        let folder = testkit::fixture("tiny_llama/model");
        let model = Model::load(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
        assert!(model.all_logits(&[&[0, 255]]).is_ok());
        let error = model.all_logits(&[&[1, 2], &[256, 0]]).unwrap_err().to_string();
        assert!(error.contains("token 256, and the embedding has 256 tokens"), "{error}");
    }

    /// The written-out backward pass against libtorch's automatic one through the same forward
    /// pass: every trained weight, in every family, with and without computing layers again.
    #[test]
    fn gradients_are_those_of_the_forward_pass() {
        let rows = [(0..11_u32), (3..7), (5..14)].map(|tokens| {
            let labelled = tokens.clone().map(|token| token % 3 == 1).collect();
            Example::whole(tokens.map(|token| token + 1).collect(), labelled)
        });
        let lora = LoraSettings {
            rank: 3,
            alpha: 5.0,
            targets: BTreeSet::from(Module::ALL),
            layers: Some(BTreeSet::from([1, 2])),
        };
        let models = [
            "tiny_llama/model",
            "tiny_llama_tied/model",
            "tiny_qwen2/model",
            "families/qwen3",
            "families/mistral_window",
            "families/llama_linear_rope",
        ];
        for name in models {
            for trains in [None, Some(Trainable::All), Some(Trainable::HeadAndLast(2))] {
                let folder = testkit::fixture(name);
                let mut model = Model::load(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
                if let Some(trainable) = trains {
                    model.make_trainable(trainable).unwrap();
                } else {
                    model.add_lora(&lora, 1).unwrap();
                    for (_, weight) in model.trained() {
                        // `B` starts at zero, which would hide errors in `A`'s gradient.
                        let noise = weight.value.randn_like() * 0.1;
                        weight.value.shallow_clone().copy_(&(&weight.value + noise));
                    }
                }
                let batch = Packed::examples(&rows.each_ref(), Device::Cpu).unwrap();
                let leaves: Vec<Tensor> = model
                    .trained()
                    .iter()
                    .map(|(_, weight)| weight.value.set_requires_grad(true))
                    .collect();
                let hidden = model.hidden(&batch, &mut Nobody).unwrap();
                let logits = model.head().logits(&hidden.index_select(0, &batch.predict)).unwrap();
                let loss = logits.cross_entropy_for_logits(&batch.targets);
                loss.backward();
                let count = batch.num_predicted() as f64;
                for keep in [Keep::Activations, Keep::LayerInputs] {
                    for (_, weight) in model.trained() {
                        let _ = weight.gradient.as_ref().unwrap().shallow_clone().zero_();
                    }
                    let found =
                        model.loss_and_gradients(&batch, (1.0 / count, keep), &mut Nobody).unwrap();
                    let expected = loss.double_value(&[]);
                    assert!((found / count / expected - 1.0).abs() < 1e-5, "{name}");
                    for ((weight_name, weight), leaf) in model.trained().iter().zip(&leaves) {
                        let found = values(weight.gradient.as_ref().unwrap()).unwrap();
                        let expected = values(&leaf.grad()).unwrap();
                        let apart = testkit::relative_deviation(&found, &expected);
                        assert!(apart < 1e-5, "{name} {trains:?} {keep:?} {weight_name}: {apart}");
                    }
                }
            }
        }
    }
}
