//! Every setting of a run, as `run.toml` holds them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use checkpoint::{ModelConfig, Module};
use finetune::{
    AdamWSettings, ComputeChoice, ComputeType, Decay, DeviceChoice, DistilSettings, EvalSettings,
    FinetuneError, Group, LoraSettings, Method, ProductRates, Rounding, Schedule, TrainSettings,
    num_threads, product_rates,
};
use selection::{Criterion, Density, Keep, PlanSettings, Refine, Repair, RepairNeed, Share};
use serde::{Deserialize, Serialize};
use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::stage::{ValidationSettings, require_foldable, require_judged};
use crate::{Choice, Choosing, HeldOut, LoraLayers, MaxDrop, PipelineError, Result};

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
    /// How much may be lost: as many layers go as that allows, `prune` at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_drop: Option<MaxDrop>,
    /// Which layers are never pruned.
    pub keep: Keep,
    /// What decides which layers go.
    pub criterion: Choosing,
    /// What is done to the choice before it is carried out.
    pub refine: Refine,
    /// How many training rows layers are chosen by, if they are chosen by losses; those are not trained on.
    pub choose: HeldOut,
    /// Hold these rows out of training even where nothing is chosen by them, as where runs are compared with one that does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold_out: bool,
    /// What is done to the retained layers before they are fine-tuned.
    pub repair: Repair,
    /// How many of the pruned layers to merge.
    pub merge: usize,
    /// Which of each donor's elements are merged.
    pub density: Density,
    /// Keep the repair even where more is lost with it.
    #[serde(default)]
    pub repair_always: bool,
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
        let TrainingSettings { lora_targets, lora_layers, dora, .. } = &self.training;
        // DoRA's gradients are those of another function of the adapters.
        let everywhere = lora_targets.is_all() && lora_layers.is_none() && !dora;
        !self.restart && self.finetune == FinetuneMethod::Lora && everywhere
    }

    /// The same run by the paper's rules (arXiv 2601.19503): the lowest layers by `igia` go, whichever they are; three of them
    /// are merged, the best fifth of their elements where signs agree, whatever is lost; and the collected steps are
    /// thrown away. How long it trains stays.
    #[must_use]
    pub fn in_the_papers_form(self) -> Self {
        Self {
            criterion: Choosing::By(Criterion::IGIA),
            keep: Keep::NONE,
            refine: Refine::None,
            repair: Repair::SameSign,
            merge: 3,
            density: Density::Share(0.2),
            repair_always: true,
            restart: true,
            ..self
        }
    }

    /// Which layers one criterion is asked for.
    pub fn choice_by(&self, criterion: Criterion) -> Choice {
        let Self { prune, keep, refine, seed, .. } = *self;
        Choice { criterion, prune, keep, refine, seed }
    }

    /// Which layers are asked for; of more than one choice the best is taken.
    pub fn choices(&self) -> Vec<Choice> {
        self.criterion.criteria().into_iter().map(|criterion| self.choice_by(criterion)).collect()
    }

    /// The same run with so many layers to go.
    #[must_use]
    pub(crate) fn pruning(&self, layers: usize) -> Self {
        Self { prune: Share::Layers(layers), ..self.clone() }
    }

    /// Whether the dense model is fine-tuned alike.
    pub(crate) fn tunes_dense(&self) -> bool {
        self.with_dense || self.max_drop.is_some()
    }

    /// What of the training rows is held out.
    pub fn held_out(&self) -> Option<HeldOut> {
        let wanted = self.hold_out
            || self.max_drop.is_some()
            || self.training.validation.is_some()
            || self.criterion.compares()
            || self.choices().iter().any(Choice::needs_losses)
            || self.repair.needs(RepairNeed::Losses);
        wanted.then_some(self.choose)
    }

    /// Checks what is asked for against a model's number of layers.
    ///
    /// # Errors
    ///
    /// If no criterion can choose so many layers, or the repair cannot be applied to them.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        let num_layers = config.num_layers;
        require_foldable(self.repair, config)?;
        require_judged(&self.criterion, config)?;
        let requests = self.choices().into_iter().map(|choice| choice.request(num_layers));
        let mut count = self.prune.layers_of(num_layers)?;
        for request in requests {
            count = request?.count;
        }
        if self.max_drop.is_some() && self.finetune == FinetuneMethod::None {
            let what = "--max-drop judges fine-tuned models, and --finetune none tunes none; say how much to --prune";
            return Err(PipelineError::Settings(what.into()));
        }
        if self.training.validation.is_some() && self.finetune == FinetuneMethod::None {
            let what = "--eval-every looks at trainings, and --finetune none trains nothing; leave one of them out";
            return Err(PipelineError::Settings(what.into()));
        }
        if self.training.validation.is_some() && self.max_drop.is_some() {
            let what = "--max-drop compares trainings at their end, where --eval-every would keep an earlier state; leave one of \
                        them out";
            return Err(PipelineError::Settings(what.into()));
        }
        if self.criterion.races() && self.finetune == FinetuneMethod::None {
            return Err(PipelineError::Settings(format!(
                "`{}` compares fine-tuned models, and --finetune none tunes none; name one criterion",
                self.criterion
            )));
        }
        self.training.check()?;
        self.training.require_adapters(self.finetune)?;
        self.require_trained(num_layers.saturating_sub(count))?;
        self.require_frozen_weights()?;
        Ok(self.planning().check(count)?)
    }

    /// Refuses what is asked of a training that the pruned model, with so many layers, cannot have.
    fn require_trained(&self, kept: usize) -> Result<()> {
        let Self { finetune, training, .. } = self;
        let fail = |what: String| Err(PipelineError::Settings(what));
        if *finetune == FinetuneMethod::None {
            let asked = [
                ("--with-dense", self.with_dense),
                ("--save-merged", self.save_merged),
                ("--distil", training.distil.is_some()),
            ];
            return match asked.into_iter().find(|(_, asked)| *asked) {
                Some((name, _)) => fail(format!(
                    "{name} applies to fine-tuning, and `--finetune none` does none; leave one of them out"
                )),
                None => Ok(()),
            };
        }
        if self.save_merged && finetune.trains_weights() {
            return fail(format!(
                "--save-merged merges an adapter, and `{finetune}` already writes a whole checkpoint; leave it out"
            ));
        }
        let asked = match (finetune, &training.lora_layers) {
            (FinetuneMethod::HeadAndLast(count), _) if *count > kept => {
                format!("`{finetune}` asks for {count}")
            }
            (_, Some(LoraLayers::These(layers))) => match layers.iter().max() {
                Some(last) if *last >= kept => {
                    format!("--lora-layers names layer {last}; they are numbered as after pruning")
                }
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
        let last = kept.saturating_sub(1);
        fail(format!("the pruned model has {kept} layers, 0 to {last}, and {asked}"))
    }

    /// Refuses to train weights that are rounded to fewer bits.
    fn require_frozen_weights(&self) -> Result<()> {
        let Self { compute, finetune, repair, .. } = self;
        if compute.rounding() != Rounding::NONE
            && (finetune.trains_weights() || *repair == Repair::Reconstruct)
        {
            let what = "--load-in-4bit rounds the weights to four bits, which do not train; take --finetune lora, and a repair other than reconstruct";
            return Err(PipelineError::Settings(what.into()));
        }
        Ok(())
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
            settings.training = TrainingSettings { validation: None, ..self.training.untaught() };
        }
        settings
    }
}

/// How the pruned model is fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum FinetuneMethod {
    /// Adapters.
    Lora,
    /// Every weight of the layers beside a cut, and adapters on the others.
    LoraAndCuts,
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
        matches!(self, Self::LoraAndCuts | Self::Full | Self::HeadAndLast(_))
    }

    /// Whether it trains adapters.
    pub fn has_adapters(self) -> bool {
        matches!(self, Self::Lora | Self::LoraAndCuts)
    }
}

impl std::fmt::Display for FinetuneMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lora => f.write_str("lora"),
            Self::LoraAndCuts => f.write_str("lora+cuts"),
            Self::Full => f.write_str("full"),
            Self::HeadAndLast(count) => write!(f, "head+last:{count}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl std::str::FromStr for FinetuneMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lora" => Ok(Self::Lora),
            "lora+cuts" => Ok(Self::LoraAndCuts),
            "full" => Ok(Self::Full),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("head+last:").map(str::parse) {
                Some(Ok(count)) => Ok(Self::HeadAndLast(count)),
                _ => {
                    Err(format!("`{text}` is none of lora, lora+cuts, full, head+last:3 and none"))
                }
            },
        }
    }
}

/// Where and in what type to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeSettings {
    /// The device.
    pub device: DeviceChoice,
    /// The type of the products.
    pub dtype: ComputeChoice,
    /// Bytes of memory to stay within; `None` for what is free.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Keep frozen layers in the computer's memory and stream them through the GPU.
    #[serde(default)]
    pub offload: bool,
    /// Keep the layers' linear weights in four bits (NF4), as QLoRA does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_4bit: bool,
    /// Keep the embedding and the head in eight bits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embedding_in_8bit: bool,
}

impl ComputeSettings {
    /// Which frozen weights are rounded to fewer bits.
    pub fn rounding(&self) -> Rounding {
        Rounding { layers_in_4bit: self.in_4bit, embedding_in_8bit: self.embedding_in_8bit }
    }

    /// The type of the products that this comes to here; `auto` is what the device multiplies faster.
    ///
    /// # Errors
    ///
    /// If the device cannot be used.
    pub fn resolve(&self) -> Result<ComputeType> {
        self.device.is_cpu()?;
        Ok(self.dtype.resolve(self.device)?)
    }

    /// The same with the type decided, alike in all processes of a group: as the first of them has it.
    ///
    /// # Errors
    ///
    /// As [`ComputeSettings::resolve`], or if a process is gone.
    pub fn agreed(&self, group: &Group) -> Result<Self> {
        let own = self.resolve()?;
        let first = f64::from(u8::from(group.rank() == 0 && own == ComputeType::BF16));
        let sums = group.sum(vec![first]).map_err(FinetuneError::from)?;
        let is_bf16 = sums.first().is_some_and(|sum| *sum > 0.0);
        let compute = if is_bf16 { ComputeType::BF16 } else { ComputeType::F32 };
        Ok(Self { dtype: ComputeChoice::Fixed(compute), ..self.clone() })
    }

    /// Where and in what type this comes to compute here, and why.
    ///
    /// # Errors
    ///
    /// As [`ComputeSettings::resolve`].
    pub fn computing(&self) -> Result<Computing> {
        let compute = self.resolve()?;
        let rates = match self.dtype {
            ComputeChoice::Auto => Some(product_rates(self.device)?),
            ComputeChoice::Fixed(_) => None,
        };
        let device = if self.device.is_cpu()? { DeviceChoice::Cpu } else { self.device };
        Ok(Computing { device: device.to_string(), threads: num_threads(), compute, rates })
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
    /// How many tokens of training rows they are fitted on; `None` for ten times the model's hidden size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Weight of the map's distance from the identity, relative to the mean of the squared inputs.
    pub ridge: f64,
}

/// Tokens for each of a map's rows, which has as many unknowns as the state has elements.
const TOKENS_PER_UNKNOWN: usize = 10;

impl LinearMapSettings {
    /// How many tokens are taken of a model of this hidden size.
    pub fn tokens_for(&self, hidden_size: usize) -> usize {
        self.tokens.unwrap_or(TOKENS_PER_UNKNOWN * hidden_size)
    }
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
    pub decay: Decay,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub lora_rank: usize,
    pub lora_alpha: f64,
    /// Adapters are multiplied by `alpha / √rank` (rsLoRA) in place of `alpha / rank`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// The norms of the adapted weights' rows train by themselves (DoRA).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dora: bool,
    pub lora_targets: LoraTargets,
    pub lora_layers: Option<LoraLayers>,
    pub remat: bool,
    pub save_every: Option<usize>,
    /// The share of each tensor's elements that moves in a step; `None` for all.
    #[serde(default)]
    pub update_share: Option<f64>,
    /// When it looks at the rows held out, to keep the best weights and to stop early; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSettings>,
    /// How much a teacher counts, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distil: Option<DistilSettings>,
    /// The teacher; `None` for the dense model, fine-tuned alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherSettings>,
}

/// A model to learn from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSettings {
    /// A folder or a hub name.
    pub model: String,
    /// The adapter on it, if it has one.
    pub adapter: Option<PathBuf>,
}

impl TrainingSettings {
    /// The same training without a teacher: what the dense model and the collected steps have.
    #[must_use]
    pub fn untaught(&self) -> Self {
        Self { distil: None, teacher: None, ..self.clone() }
    }

    /// Checks what can be checked before anything is trained.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Settings`] if the teacher's part cannot be used.
    fn check(&self) -> Result<()> {
        if let Some(distil) = &self.distil {
            distil.check()?;
        }
        Ok(())
    }

    /// The same with nothing said of adapters.
    #[must_use]
    pub fn without_adapters(self) -> Self {
        let lora_targets = LoraTargets::all();
        Self { lora_targets, lora_layers: None, rslora: false, dora: false, ..self }
    }

    /// Refuses what is said of adapters where there are none.
    fn require_adapters(&self, method: FinetuneMethod) -> Result<()> {
        let flags = [
            ("--dora", self.dora),
            ("--rslora", self.rslora),
            ("--targets", !self.lora_targets.is_all()),
            ("--lora-layers", self.lora_layers.is_some()),
        ];
        for (name, given) in flags {
            if given && !method.has_adapters() {
                let what = format!(
                    "{name} applies to adapters, and `{method}` trains none; leave it out, or train by lora"
                );
                return Err(PipelineError::Settings(what));
            }
        }
        Ok(())
    }

    /// Whether the dense model, fine-tuned alike, teaches.
    pub(crate) fn learns_from_dense(&self) -> bool {
        self.distil.is_some() && self.teacher.is_none()
    }

    /// The settings as the engine takes them.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Settings`] if nothing trains, adapters are spoken of and there are none, or the layers that get them are
    /// left to scores.
    pub fn parse(&self, method: FinetuneMethod, seed: u64) -> Result<TrainSettings> {
        self.require_adapters(method)?;
        let method = match method {
            FinetuneMethod::Full => Method::Full,
            FinetuneMethod::HeadAndLast(count) => Method::HeadAndLast(count),
            // Which layers are beside a cut is known once it is made.
            FinetuneMethod::Lora | FinetuneMethod::LoraAndCuts => Method::Lora(self.lora()?),
            FinetuneMethod::None => {
                return Err(PipelineError::Settings("`none` trains nothing".into()));
            }
        };
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
            schedule: Schedule { peak: self.learning_rate, warmup: self.warmup, decay: self.decay },
            max_grad_norm: self.max_grad_norm,
            update_share: self.update_share,
            seed,
            remat: self.remat,
            save_every: self.save_every,
        })
    }

    fn lora(&self) -> Result<LoraSettings> {
        let layers = match &self.lora_layers {
            None => None,
            Some(LoraLayers::These(layers)) => Some(layers.iter().copied().collect()),
            Some(LoraLayers::Auto) => {
                let what = "--lora-layers auto goes by the scores that layers are pruned by, which only a run has; name \
                            the layers, such as --lora-layers 0,1,2";
                return Err(PipelineError::Settings(what.into()));
            }
        };
        let (rank, targets) = (self.lora_rank, self.lora_targets.0.clone());
        // `alpha·√r / r = alpha / √r`: what PEFT reads needs to know of no other rule.
        let stabilised = if self.rslora { (rank as f64).sqrt() } else { 1.0 };
        let alpha = self.lora_alpha * stabilised;
        Ok(LoraSettings { rank, alpha, targets, layers, dora: self.dora })
    }
}

/// The linear weights of a layer that get adapters; written `["all"]`, or by their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<String>", try_from = "Vec<String>")]
pub struct LoraTargets(pub BTreeSet<Module>);

impl LoraTargets {
    /// All of them.
    pub fn all() -> Self {
        Self(Module::ALL.into())
    }

    /// Whether it is all of them.
    pub fn is_all(&self) -> bool {
        self.0.len() == Module::ALL.len()
    }
}

impl From<LoraTargets> for Vec<String> {
    fn from(targets: LoraTargets) -> Self {
        match targets.is_all() {
            true => vec!["all".into()],
            false => targets.0.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<Vec<String>> for LoraTargets {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        match names.as_slice() {
            [all] if all == "all" => Ok(Self::all()),
            names => names.iter().map(|name| name.parse()).collect::<Result<_, _>>().map(Self),
        }
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
