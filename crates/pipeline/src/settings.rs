//! Every setting of a run, as `run.toml` holds them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use checkpoint::{Module, Staging};
use finetune::{
    AdamWSettings, ComputeChoice, ComputeType, Decay, DeviceChoice, EvalSettings, LoraSettings,
    Method, ProductRates, Schedule, TrainSettings, num_threads, product_rates,
};
use selection::{Criterion, Keep, PlanSettings, Refine, Repair, Share};
use serde::{Deserialize, Serialize};

use crate::{Choice, HeldOut, PipelineError, Result};

/// What a run does, and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// The model: a folder or a hub name.
    pub model: String,
    /// The rows to train on.
    pub train: PathBuf,
    /// Rows never trained on, to evaluate on.
    pub eval: Option<PathBuf>,
    /// Fields of rows to skip.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore_fields: Vec<String>,
    /// How many layers to prune: a number, or a share such as `40%`.
    pub prune: Share,
    /// Which layers are never pruned.
    pub keep: Keep,
    /// What makes a layer important.
    pub criterion: Criterion,
    /// What is done to the choice before it is carried out.
    pub refine: Refine,
    /// How many training rows layers are chosen by, if they are chosen by losses; those are not trained on.
    pub choose: HeldOut,
    /// What is done to the retained layers before they are fine-tuned.
    pub repair: Repair,
    /// How many of the pruned layers to merge.
    pub merge: usize,
    /// The share of each donor's elements that is merged.
    pub density: f64,
    /// How the pruned model is fine-tuned.
    pub finetune: FinetuneMethod,
    /// Throw the collected steps away and fine-tune the pruned model from the start, as the paper's
    /// authors do.
    pub restart: bool,
    /// Fine-tune the dense model alike, for comparison.
    pub with_dense: bool,
    /// Write the tuned adapters merged into their weights.
    pub save_merged: bool,
    /// Write event files for `TensorBoard`.
    pub tensorboard: bool,
    /// Decides the rows' order and the initial adapters.
    pub seed: u64,
    /// Most bytes of tensors in one file.
    pub shard_bytes: u64,
    /// Where and in what type to compute.
    pub compute: ComputeSettings,
    /// The steps whose gradients are collected.
    pub collect: CollectSettings,
    /// The linear maps, if the repair is them.
    pub linear_map: LinearMapSettings,
    /// The fine-tuning.
    pub training: TrainingSettings,
    /// The evaluation.
    pub evaluation: EvaluationSettings,
}

impl RunSettings {
    /// Whether the collected steps are the fine-tuning's own first steps: it must put adapters on
    /// all the weights that are scored.
    pub fn goes_on(&self) -> bool {
        let TrainingSettings { lora_targets, lora_layers, .. } = &self.training;
        let everywhere = lora_targets.iter().any(|name| name == "all") && lora_layers.is_none();
        !self.restart && self.finetune == FinetuneMethod::Lora && everywhere
    }

    /// Which layers are asked for.
    pub fn choice(&self) -> Choice {
        let Self { criterion, prune, keep, refine, seed, .. } = *self;
        Choice { criterion, prune, keep, refine, seed }
    }

    /// What of the training rows is held out.
    pub fn held_out(&self) -> Option<HeldOut> {
        self.choice().needs_losses().then_some(self.choose)
    }

    /// What becomes of the layers that are chosen.
    pub fn planning(&self) -> PlanSettings {
        let Self { repair, merge, density, .. } = *self;
        PlanSettings { repair, merge, density }
    }

    /// The collected steps' settings in force.
    pub fn collecting(&self) -> CollectSettings {
        let mut settings = self.collect.clone();
        if self.goes_on() {
            settings.training = self.training.clone();
        }
        settings
    }
}

/// How the pruned model is fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum FinetuneMethod {
    /// Adapters.
    Lora,
    /// Every weight.
    Full,
    /// The head, the norm before it and so many of the last layers.
    HeadAndLast(usize),
    /// Not at all.
    None,
}

impl FinetuneMethod {
    /// Whether it trains weights of the checkpoint, and so leaves a checkpoint.
    pub fn trains_weights(self) -> bool {
        matches!(self, Self::Full | Self::HeadAndLast(_))
    }
}

impl std::fmt::Display for FinetuneMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lora => f.write_str("lora"),
            Self::Full => f.write_str("full"),
            Self::HeadAndLast(count) => write!(f, "head+last:{count}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl From<FinetuneMethod> for String {
    fn from(method: FinetuneMethod) -> Self {
        method.to_string()
    }
}

impl TryFrom<String> for FinetuneMethod {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for FinetuneMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lora" => Ok(Self::Lora),
            "full" => Ok(Self::Full),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("head+last:").map(str::parse) {
                Some(Ok(count)) => Ok(Self::HeadAndLast(count)),
                _ => Err(format!("`{text}` is none of lora, full, head+last:3 and none")),
            },
        }
    }
}

/// Where and in what type to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeSettings {
    /// `auto`, `cpu`, `cuda` or `cuda:1`.
    pub device: String,
    /// `auto`, `f32` or `bf16`.
    pub dtype: String,
    /// Bytes of memory to stay within; `None` for what is free.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Keep frozen layers in the computer's memory and stream them through the GPU.
    #[serde(default)]
    pub offload: bool,
}

impl ComputeSettings {
    /// What the texts mean; `auto` is what the device multiplies faster.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Settings`] if a text means nothing, or if the device cannot be used.
    pub fn parse(&self) -> Result<(DeviceChoice, ComputeType)> {
        let device = self.device.parse().map_err(PipelineError::Settings)?;
        Ok((device, self.choice()?.resolve(device)?))
    }

    /// Where and in what type this comes to compute here, and why.
    ///
    /// # Errors
    ///
    /// As [`ComputeSettings::parse`].
    pub fn computing(&self) -> Result<Computing> {
        let (device, compute) = self.parse()?;
        let rates = match self.choice()? {
            ComputeChoice::Auto => Some(product_rates(device)?),
            ComputeChoice::Fixed(_) => None,
        };
        let device = if device.is_cpu()? { DeviceChoice::Cpu } else { device };
        Ok(Computing { device: device.to_string(), threads: num_threads(), compute, rates })
    }

    fn choice(&self) -> Result<ComputeChoice> {
        self.dtype.parse().map_err(PipelineError::Settings)
    }
}

/// Where and in what type something is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Computing {
    /// The device.
    pub device: String,
    /// On a CPU, how many threads compute.
    pub threads: usize,
    /// The type of the products.
    pub compute: ComputeType,
    /// The rates by which it was chosen; `None` if it was asked for.
    pub rates: Option<ProductRates>,
}

/// The steps whose gradients are collected, and the fine-tune they are the first steps of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectSettings {
    /// How many steps, `t`, at most.
    pub steps: usize,
    /// Stop when the layers to prune have settled.
    pub auto: bool,
    /// The fine-tune.
    pub training: TrainingSettings,
}

/// How linear maps are fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearMapSettings {
    /// How many tokens of training rows they are fitted on.
    pub tokens: usize,
    /// Weight of the map's distance from the identity, relative to the mean of the squared inputs.
    pub ridge: f64,
}

/// A fine-tuning's settings, LoRA's among them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct TrainingSettings {
    pub epochs: f64,
    pub max_steps: Option<usize>,
    pub batch_rows: usize,
    pub accumulate: usize,
    pub max_tokens: usize,
    pub learning_rate: f64,
    pub warmup: f64,
    pub decay: String,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub lora_rank: usize,
    pub lora_alpha: f64,
    pub lora_targets: Vec<String>,
    pub lora_layers: Option<Vec<usize>>,
    pub remat: bool,
    pub save_every: Option<usize>,
}

impl TrainingSettings {
    /// The settings as the engine takes them.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Settings`] if a text means nothing.
    pub fn parse(&self, method: FinetuneMethod, seed: u64) -> Result<TrainSettings> {
        let method = match method {
            FinetuneMethod::Full => Method::Full,
            FinetuneMethod::HeadAndLast(count) => Method::HeadAndLast(count),
            FinetuneMethod::Lora => Method::Lora(self.lora()?),
            FinetuneMethod::None => {
                return Err(PipelineError::Settings("`none` trains nothing".into()));
            }
        };
        let decay: Decay = self.decay.parse().map_err(PipelineError::Settings)?;
        Ok(TrainSettings {
            method,
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_rows: self.batch_rows,
            accumulate: self.accumulate,
            adamw: AdamWSettings {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: self.weight_decay,
            },
            schedule: Schedule { peak: self.learning_rate, warmup: self.warmup, decay },
            max_grad_norm: self.max_grad_norm,
            seed,
            remat: self.remat,
            save_every: self.save_every,
        })
    }

    fn lora(&self) -> Result<LoraSettings> {
        let targets: BTreeSet<Module> = match self.lora_targets.as_slice() {
            [all] if all == "all" => BTreeSet::from(Module::ALL),
            names => names
                .iter()
                .map(|name| name.parse().map_err(PipelineError::Settings))
                .collect::<Result<_>>()?,
        };
        Ok(LoraSettings {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            targets,
            layers: self.lora_layers.as_ref().map(|layers| layers.iter().copied().collect()),
        })
    }
}

/// An evaluation's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct EvaluationSettings {
    pub batch_tokens: usize,
    pub max_tokens: usize,
    pub max_rows: Option<usize>,
    pub generate_rows: usize,
    pub max_new_tokens: usize,
}

impl EvaluationSettings {
    /// The settings as the engine takes them.
    pub fn parse(&self) -> EvalSettings {
        let Self { batch_tokens, max_tokens, max_rows: _, generate_rows, max_new_tokens } = *self;
        EvalSettings { batch_tokens, max_tokens, generate_rows, max_new_tokens }
    }
}

/// `run.toml`: the settings, and digests of what they were used on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunFile {
    format: String,
    version: u64,
    pub(crate) inputs: Inputs,
    pub(crate) settings: RunSettings,
}

/// Digests of what a run reads, so that a changed file is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "they are keys of run.toml")]
pub(crate) struct Inputs {
    pub(crate) model_config_sha256: String,
    pub(crate) train_sha256: String,
    pub(crate) eval_sha256: Option<String>,
}

impl RunFile {
    pub(crate) fn new(settings: RunSettings, inputs: Inputs) -> Self {
        Self { format: "gradpruner-run".into(), version: 1, inputs, settings }
    }

    /// The type of the products of the run that `path` describes, if there is one: what was chosen
    /// once holds for all of a run.
    pub(crate) fn dtype(path: &Path) -> Option<String> {
        let found: toml::Table = toml::from_str(&fs_err::read_to_string(path).ok()?).ok()?;
        Some(found.get("settings")?.get("compute")?.get("dtype")?.as_str()?.to_owned())
    }

    /// Writes `run.toml`, or checks that the one there says the same.
    pub(crate) fn claim(&self, path: &Path) -> Result<()> {
        let fail = |what: String| PipelineError::RunFile { path: path.to_owned(), what };
        let text = toml::to_string(self).map_err(|error| fail(error.to_string()))?;
        if !path.exists() {
            let head =
                "# Written by `gradpruner run`; the same command goes on where it stopped.\n\n";
            return Ok(Staging::write(path, format!("{head}{text}").as_bytes())?);
        }
        let found: toml::Table = toml::from_str(&fs_err::read_to_string(path)?)
            .map_err(|error| fail(error.message().to_owned()))?;
        let expected: toml::Table =
            toml::from_str(&text).map_err(|error| fail(error.message().to_owned()))?;
        let differing = differences(&found, &expected, "");
        if differing.is_empty() {
            return Ok(());
        }
        Err(PipelineError::OtherRun { path: path.to_owned(), differing: differing.join(", ") })
    }
}

/// What changes no result, and so may differ when a run goes on.
const FREE: [&str; 4] = [
    "settings.compute.memory",
    "settings.compute.offload",
    "settings.training.remat",
    "settings.training.save_every",
];

/// The keys two tables disagree on.
fn differences(found: &toml::Table, expected: &toml::Table, prefix: &str) -> Vec<String> {
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let mut differing = Vec::new();
    for key in keys {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (found.get(key), expected.get(key)) {
            (Some(toml::Value::Table(found)), Some(toml::Value::Table(expected))) => {
                differing.extend(differences(found, expected, &name));
            }
            (found, expected) if found != expected && !FREE.contains(&name.as_str()) => {
                let show = |value: Option<&toml::Value>| {
                    value.map_or_else(|| "nothing".to_owned(), ToString::to_string)
                };
                differing.push(format!("{name} was {} and is {}", show(found), show(expected)));
            }
            _ => {}
        }
    }
    differing
}
