//! What a training will need, foretold from the configuration and the sizes of its batches.

use std::collections::BTreeSet;

use checkpoint::{Dtype, ModelConfig, Module, NF4_BLOCK, Norms};
use dataset::{Example, Sampler};
use serde::{Deserialize, Serialize};

use crate::head::LOGIT_BYTES;
use crate::pack::TOKEN_STEP;
use crate::product::MANY_TOKENS_BYTES;
use crate::weight::{Packed4, Rounding};
use crate::{ComputeType, LoraAndLayers, Method, TrainSettings};

/// Bytes of the program with libtorch's code, and of what oneDNN compiles and packs.
const PROGRAM: u64 = 224 << 20;
/// Blocks of scores that attention holds at a time, and small things.
const ATTENTION: u64 = 64 << 20;
/// Epochs looked through for the largest batch.
const EPOCHS_SEEN: usize = 3;

/// The sizes of one forward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BatchShape {
    /// Tokens of all its rows.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// Tokens to learn from.
    pub labelled: usize,
}

impl BatchShape {
    /// The largest there can be: every row as long as allowed, every token learned from.
    pub fn largest(rows: usize, max_tokens: usize) -> Self {
        Self { tokens: rows * max_tokens, longest: max_tokens, labelled: rows * max_tokens }
    }

    fn of<'a>(rows: impl Iterator<Item = &'a Example>) -> Self {
        rows.fold(Self::default(), |sum, row| Self {
            tokens: sum.tokens + row.tokens.len(),
            longest: sum.longest.max(row.tokens.len()),
            labelled: sum.labelled + row.labelled.iter().filter(|&&labelled| labelled).count(),
        })
    }
}

/// Bytes of memory, on a CPU, where the training needs most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// The program with libtorch.
    pub program: u64,
    /// Weights that are mapped from the checkpoint's files: the system may drop their pages.
    pub mapped: u64,
    /// Weights rounded to fewer bits.
    #[serde(default)]
    pub packed: u64,
    /// Weights converted to the products' type for the time of a product.
    pub converted: u64,
    /// What trains, its gradients, and the optimizer's two means.
    pub trained: u64,
    /// What the forward pass keeps for the backward pass.
    pub kept: u64,
    /// What comes and goes meanwhile.
    pub passing: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.mapped + self.unmapped()
    }

    /// What the system cannot take back.
    pub fn unmapped(&self) -> u64 {
        let Self { program, mapped: _, packed, converted, trained, kept, passing } = self;
        program + packed + converted + trained + kept + passing
    }
}

/// A training of one model.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// How it is trained.
    pub train: &'a TrainSettings,
    /// In what type.
    pub compute: ComputeType,
    /// Which of its frozen weights are rounded to fewer bits.
    pub rounding: Rounding,
}

impl Workload<'_> {
    /// How many parameters train.
    pub fn trained_parameters(&self) -> u64 {
        let Self { config, train, .. } = self;
        match &train.method {
            Method::Full => config.parameters(),
            Method::Lora(_) => self.adapter_parameters(),
            Method::LoraAndLayers(both) => {
                let layers = self.parameters_of(&|_| false, &|layer| both.full.contains(&layer));
                self.adapter_parameters() + layers
            }
            Method::HeadAndLast(count) => {
                let first = config.num_layers.saturating_sub(*count);
                let head = if config.tied_head { "model.embed_tokens" } else { "lm_head" };
                let top = |name: &str| name.starts_with(head) || name.starts_with("model.norm");
                self.parameters_of(&top, &|layer| layer >= first)
            }
        }
    }

    /// Those of adapters.
    fn adapter_parameters(&self) -> u64 {
        let config = self.config;
        let Some(lora) = self.train.method.adapters(config.num_layers) else { return 0 };
        let layers = lora.layers.as_ref().map_or(config.num_layers, BTreeSet::len);
        let of_weight = |&module: &Module| {
            let (rows, columns) = config.linear_shape(module);
            lora.rank * (rows + columns) + if lora.dora { rows } else { 0 }
        };
        let of_layer: usize = lora.targets.iter().map(of_weight).sum();
        (layers * of_layer) as u64
    }

    /// Those of some tensors outside layers and of some layers.
    fn parameters_of(&self, top: &dyn Fn(&str) -> bool, layer: &dyn Fn(usize) -> bool) -> u64 {
        let chosen = |name: &str| {
            let number = name.strip_prefix("model.layers.").and_then(|rest| {
                rest.split('.').next().and_then(|number| number.parse::<usize>().ok())
            });
            number.map_or_else(|| top(name), layer)
        };
        let all = self.config.tensors();
        let some = all.iter().filter(|(name, _)| chosen(name));
        some.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// The memory of a step whose largest forward pass is `batch`, on a CPU.
    pub fn memory(&self, batch: BatchShape) -> MemoryEstimate {
        let Self { config, train, compute, rounding } = self;
        let size = compute.kind().elt_size_in_bytes() as u64;
        let stored = config.dtype.unwrap_or(Dtype::BF16).size() as u64;
        let packable = config.modules().iter().map(|&module| config.linear_shape(module));
        let packable =
            packable.filter(|&(_, columns)| rounding.layers_in_4bit && Packed4::takes(columns));
        let packed: usize = packable.map(|(out, columns)| out * columns * config.num_layers).sum();
        let packed = packed as u64;
        let tables = if config.tied_head { 1 } else { 2 };
        let of_tokens = match rounding.embedding_in_8bit {
            true => (tables * config.vocab_size * config.hidden_size) as u64,
            false => 0,
        };
        let tokens = batch.tokens.next_multiple_of(TOKEN_STEP) as u64;
        let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        // Of a layer's weights in another type than the products', so many bytes are converted at a
        // time; the head's are when the layers keep less.
        let linears = config.modules().iter().map(|&module| config.linear_shape(module));
        let widest = linears.map(|(out, inner)| out * inner).max().unwrap_or(0) as u64;
        let at_a_time = (widest * size).min(MANY_TOKENS_BYTES as u64);
        let converted = match packed + of_tokens {
            0 if stored == size => 0,
            0 => at_a_time,
            // By way of f32, twice.
            _ => at_a_time / size * (size + 8),
        };
        let layers = self.layers_in_backward();
        let of_layer = tokens * self.saved_by_a_layer() * size;
        let kept = match train.remat {
            false => layers * of_layer,
            true => layers * tokens * hidden * size + of_layer,
        };
        // A layer's backward pass: gradients of the MLP's inner values and their factors, and the
        // norm's wide copies.
        let backward = tokens * (6 * inner * size + 6 * hidden * 4);
        let weights = match train.method {
            Method::Lora(_) => 0,
            Method::LoraAndLayers(_) => widest * (4 + 4 + size),
            // The widest trained weight's gradient, and the weight in the compute type.
            _ => self.widest() * (4 + 4 + size),
        };
        // Adapters are copied once more to be written.
        let copied = 4 * self.adapter_parameters();
        // The allocator still holds some of what the head gave back when the layers take theirs.
        let head = self.head_memory(batch) * 13 / 10;
        MemoryEstimate {
            program: PROGRAM,
            mapped: (config.parameters() - packed - of_tokens) * stored,
            packed: packed / 2 + packed / NF4_BLOCK as u64 * 4 + of_tokens,
            converted,
            trained: self.trained_parameters() * 16 + copied,
            kept,
            passing: head + backward + weights + ATTENTION,
        }
    }

    /// Logits in the compute type, in f32, and their softmax, a chunk at a time; and the hidden
    /// states they come from.
    fn head_memory(&self, batch: BatchShape) -> u64 {
        let size = self.compute.kind().elt_size_in_bytes() as u64;
        let (vocabulary, labelled) = (self.config.vocab_size as u64, batch.labelled as u64);
        let chunk = (LOGIT_BYTES as u64 / (4 * vocabulary)).max(1).min(labelled);
        chunk * vocabulary * (8 + size)
            + labelled * self.config.hidden_size as u64 * (4 * 2 + 3 * size)
    }

    /// The memory of evaluating with forward passes like `batch`, on a CPU.
    pub fn evaluation_memory(&self, batch: BatchShape) -> MemoryEstimate {
        let training = self.memory(batch);
        let size = self.compute.kind().elt_size_in_bytes() as u64;
        // An adapter comes with room to train; one beside trained weights is merged.
        let trained = match self.train.method {
            Method::Lora(_) => self.trained_parameters() * 8,
            _ => 0,
        };
        let layer = batch.tokens as u64 * self.saved_by_a_layer() * size;
        let passing = (layer + ATTENTION).max(self.head_memory(batch));
        MemoryEstimate { trained, kept: 0, passing, ..training }
    }

    /// Numbers that a layer's forward pass saves for each token, its input among them.
    fn saved_by_a_layer(&self) -> u64 {
        let ModelConfig {
            hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, ..
        } = self.config;
        let (queries, keys) = (num_heads * head_dim, num_kv_heads * head_dim);
        let design = &self.config.design;
        let unnormed = if design.qk_norm.is_some() { queries + keys } else { 0 };
        // What is normalised before it is added is kept as it was.
        let given = if design.norms == Norms::Before { 0 } else { 2 * hidden_size };
        let adapters = match &self.train.method {
            Method::Lora(lora) | Method::LoraAndLayers(LoraAndLayers { lora, .. }) => {
                // DoRA keeps what it gives another norm.
                let outputs = lora.targets.iter().map(|module| self.config.linear_shape(*module).0);
                lora.rank * lora.targets.len() + if lora.dora { outputs.sum() } else { 0 }
            }
            _ => 0,
        };
        let heads = 2 * queries + 2 * keys + unnormed + given;
        (2 * hidden_size + heads + 2 * intermediate_size + adapters) as u64
    }

    /// How many layers take part in the backward pass.
    fn layers_in_backward(&self) -> u64 {
        let all = self.config.num_layers;
        let count = match &self.train.method {
            Method::Full => all,
            method @ (Method::Lora(_) | Method::LoraAndLayers(_)) => {
                let adapters = method.adapters(all).and_then(|lora| lora.layers);
                let lowest = adapters.map_or(Some(0), |some| some.first().copied());
                let full = match method {
                    Method::LoraAndLayers(both) => both.full.first().copied(),
                    _ => None,
                };
                all.saturating_sub(lowest.into_iter().chain(full).min().unwrap_or(0))
            }
            // A tied head is the embedding, which takes the gradient down to it.
            Method::HeadAndLast(_) if self.config.tied_head => all,
            Method::HeadAndLast(count) => (*count).min(all),
        };
        count as u64
    }

    fn widest(&self) -> u64 {
        let shapes = self.config.tensors();
        shapes.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).max().unwrap_or(0)
    }

    /// Floating-point operations of the forward pass over rows of such lengths, `labelled` of whose
    /// tokens are learned from: two for each weight and token; attention counts whole rows.
    pub fn forward_flops(&self, lengths: &[usize], labelled: usize) -> f64 {
        let head = self.head_flops(labelled);
        let (linears, attention) = self.layer_flops(lengths);
        self.config.num_layers as f64 * (linears + attention) + head
    }

    /// As [`Workload::forward_flops`], of the forward and the backward pass.
    pub fn flops(&self, lengths: &[usize], labelled: usize) -> f64 {
        let (linears, attention) = self.layer_flops(lengths);
        let layers = self.layers_in_backward() as f64;
        let again = if self.train.remat { layers * (linears + attention) } else { 0.0 };
        // Attention's backward pass forms the scores again, and four products more.
        let backward = layers * (linears + 2.5 * attention);
        let head = self.head_flops(labelled);
        // An adapter's two small products run forward, and twice backward; a weight's gradient is
        // one product more.
        let tokens = lengths.iter().sum::<usize>() as f64;
        let adapters = self.adapter_parameters();
        let weights = self.trained_parameters() - adapters;
        let trained = (6 * adapters + 2 * weights) as f64 * tokens;
        self.forward_flops(lengths, labelled) + again + backward + head + trained
    }

    fn head_flops(&self, labelled: usize) -> f64 {
        2.0 * (self.config.vocab_size * self.config.hidden_size) as f64 * labelled as f64
    }

    /// Of one layer's linears and attention.
    fn layer_flops(&self, lengths: &[usize]) -> (f64, f64) {
        let config = self.config;
        let squares: f64 = lengths.iter().map(|&length| (length as f64).powi(2)).sum();
        let shapes = config.modules().iter().map(|&module| config.linear_shape(module));
        let weights: usize = shapes.map(|(rows, columns)| rows * columns).sum();
        let tokens: usize = lengths.iter().sum();
        let attention = 4.0 * (config.num_heads * config.head_dim) as f64 * squares;
        (2.0 * weights as f64 * tokens as f64, attention)
    }
}

/// The largest forward pass of a training on these rows, by tokens, in its first epochs.
pub fn largest_batch(examples: &[Example], train: &TrainSettings) -> BatchShape {
    let batch = (train.batch_rows * train.accumulate).max(1);
    let sampler = Sampler::new(examples.len().max(1), batch, train.seed);
    let epochs = (train.epochs.ceil() as usize).clamp(1, EPOCHS_SEEN);
    let mut steps = train.max_steps.unwrap_or(usize::MAX);
    let mut largest = BatchShape::default();
    for epoch in 0..epochs {
        for step in sampler.epoch(epoch).chunks(batch).take(steps) {
            for rows in step.chunks(train.batch_rows.max(1)) {
                let rows = rows.iter().filter_map(|&row| examples.get(row));
                largest = largest.max(BatchShape::of(rows));
            }
        }
        steps = steps.saturating_sub(sampler.steps_per_epoch());
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tests::{golden_model, lora, rows, settings};
    use crate::{ComputeType, Trainer};

    #[test]
    fn as_many_parameters_as_train() {
        for name in testkit::GOLDEN {
            let Method::Lora(some) = lora() else { panic!("it is LoRA") };
            let both = LoraAndLayers { lora: some, full: BTreeSet::from([1, 2]) };
            for method in
                [lora(), Method::LoraAndLayers(both), Method::Full, Method::HeadAndLast(1)]
            {
                let config = golden_model(name).config().clone();
                let train = settings(method);
                let work = Workload {
                    config: &config,
                    train: &train,
                    compute: ComputeType::F32,
                    rounding: Rounding::NONE,
                };
                let foretold = work.trained_parameters();
                let mut trainer =
                    Trainer::new(golden_model(name), train.clone(), rows(name)).unwrap();
                let found = trainer.run(None, None, &mut |_| {}).unwrap().trained_parameters;
                assert_eq!(foretold, found, "{name} {:?}", train.method);
            }
        }
    }

    #[test]
    fn forward_operations_are_the_configurations() {
        let config = golden_model("tiny_qwen2").config().clone();
        let train = settings(lora());
        let work = Workload {
            config: &config,
            train: &train,
            compute: ComputeType::F32,
            rounding: Rounding::NONE,
        };
        let expected = (config.flops_per_token(37) * 37) as f64;
        assert_eq!(work.forward_flops(&[37], 37), expected);
        assert_eq!(work.forward_flops(&[37, 37], 74), 2.0 * expected);
    }

    #[test]
    fn the_largest_batch_is_among_the_steps_taken() {
        let examples = rows("tiny_llama").examples;
        let train = TrainSettings { epochs: 1.0, ..settings(lora()) };
        let mut trainer =
            Trainer::new(golden_model("tiny_llama"), train.clone(), rows("tiny_llama")).unwrap();
        let mut most = 0;
        trainer.run(None, None, &mut |step| most = most.max(step.report.tokens)).unwrap();
        assert_eq!(largest_batch(&examples, &train).tokens, most);
        let all = TrainSettings { batch_rows: examples.len(), ..train };
        let sum: usize = examples.iter().map(|row| row.tokens.len()).sum();
        assert_eq!(largest_batch(&examples, &all).tokens, sum);
    }
}
