//! Flags that several commands share, with their defaults.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use finetune::{ComputeChoice, Decay, DeviceChoice, DistilSettings};
use pipeline::{
    Choosing, CollectSettings, ComputeSettings, EvaluationSettings, FinetuneMethod, HeldOut,
    LinearMapSettings, LoraLayers, LoraTargets, RunSettings, TeacherSettings, TrainingSettings,
    ValidationSettings,
};
use selection::{Criterion, Density, Keep, PlanSettings, Refine, Repair, Share};

/// The device and type of the computation.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Type of the matrix products; norms, losses and trained weights stay in f32
    ///
    /// auto: the type that this machine multiplies faster, measured in half a second
    #[arg(long, default_value = "auto", value_parser = one_of::<ComputeChoice>(&["auto", "bf16", "f32"]))]
    dtype: ComputeChoice,
    /// Memory limit, such as 8GB [default: the free memory]
    #[arg(long, value_parser = size)]
    memory: Option<u64>,
    /// Keep frozen layers in the computer's memory and stream them through the GPU; the CPU reads
    /// them from the mapped file anyway
    #[arg(long)]
    offload: bool,
    /// Round the layers' weights to four bits (NF4) when they are loaded, as QLoRA does; adapters train on them
    #[arg(long, conflicts_with = "offload")]
    load_in_4bit: bool,
    /// Round the embedding and the head to eight bits, too
    #[arg(long, requires = "load_in_4bit")]
    embedding_in_8bit: bool,
}

impl ComputeArgs {
    pub(crate) fn settings(self) -> ComputeSettings {
        let Self { device, dtype, memory, offload, load_in_4bit: in_4bit, embedding_in_8bit } =
            self;
        ComputeSettings { device, dtype, memory, offload, in_4bit, embedding_in_8bit }
    }
}

/// How to read the data.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArgs {
    /// Fields of rows and messages to skip, such as `rank,comment`; other unknown fields are an
    /// error
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    pub(crate) ignore_fields: Vec<String>,
}

/// The criterion for removing layers.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Choosing layers")]
pub(crate) struct ChoosingArgs {
    /// Criterion that selects the layers to remove
    #[arg(long, default_value = "igia", value_parser = criterion())]
    pub(crate) criterion: Criterion,
    /// Layers never to prune: guard (the first 12 % and the last), none, or counts such as first:4,last:1
    #[arg(long, default_value = "guard")]
    pub(crate) keep: Keep,
}

/// How layers are chosen besides the criterion.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Choosing layers")]
pub(crate) struct RefiningArgs {
    /// none, or swap: exchange pruned and kept layers as long as less is lost on held-out rows
    #[arg(long, default_value = "none")]
    pub(crate) refine: Refine,
    /// Training rows to hold out for judging layers, races and repairs, if needed: a number, or a share (128 rows at most)
    #[arg(long, default_value = "10%")]
    pub(crate) choose: HeldOut,
}

/// What runs, comparisons and estimates have in common.
#[derive(Debug, clap::Args)]
pub(crate) struct CellArgs {
    /// Discard the collected steps and fine-tune the pruned model from the start, as the paper's
    /// authors do; always the case unless LoRA trains all weights of all layers
    #[arg(long)]
    restart: bool,
    /// Keep the repair even if more is lost with it
    #[arg(long, help_heading = "Repairing")]
    repair_always: bool,
    /// Seed for the order of the rows and the initial adapters
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=u64::MAX - 100))]
    pub(crate) seed: u64,
    /// Maximum size of the tensors in one file
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// Layers never to prune: guard (the first 12 % and the last), none, or counts such as first:4,last:1
    #[arg(long, default_value = "guard", help_heading = "Choosing layers")]
    keep: Keep,
    /// Hold the rows of --choose out of training even if nothing is chosen by them, so that a run trains on the same rows
    /// as a comparison with another criterion
    #[arg(long, help_heading = "Choosing layers")]
    hold_out: bool,
    #[command(flatten)]
    pub(crate) reading: DataArgs,
    #[command(flatten)]
    refining: RefiningArgs,
    #[command(flatten)]
    maps: LinearMapArgs,
    #[command(flatten)]
    pub(crate) collecting: CollectingArgs,
    #[command(flatten)]
    pub(crate) training: TrainingArgs,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What is trained on what; the rest of a run's settings is in [`CellArgs`].
#[derive(Debug)]
pub(crate) struct CellInputs {
    pub(crate) model: String,
    pub(crate) train: PathBuf,
    pub(crate) eval: Option<PathBuf>,
    pub(crate) prune: Share,
    pub(crate) criterion: Choosing,
    pub(crate) planning: PlanSettings,
    pub(crate) finetune: FinetuneMethod,
}

impl CellArgs {
    /// The settings of a run that compares nothing and leaves no more than it must.
    pub(crate) fn settings(self, inputs: CellInputs) -> RunSettings {
        let Self {
            restart,
            repair_always,
            seed,
            shard_size,
            keep,
            hold_out,
            reading,
            refining,
            maps,
            collecting,
            training,
            evaluation,
            compute,
        } = self;
        let CellInputs { model, train, eval, prune, criterion, planning, finetune } = inputs;
        let PlanSettings { repair, merge, density } = planning;
        let max_tokens = training.max_tokens();
        RunSettings {
            model,
            train,
            eval,
            ignore_fields: reading.ignore_fields,
            prune,
            max_drop: None,
            keep,
            criterion,
            refine: refining.refine,
            choose: refining.choose,
            hold_out,
            repair,
            merge,
            density,
            repair_always,
            finetune,
            restart,
            with_dense: false,
            save_merged: false,
            tensorboard: false,
            seed,
            shard_bytes: shard_size,
            compute: compute.settings(),
            collect: collecting.settings(max_tokens),
            linear_map: maps.settings(),
            training: training.settings(finetune),
            evaluation: evaluation.settings(max_tokens),
        }
    }
}

/// The repair of the layers that stay.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Repairing")]
pub(crate) struct RepairArgs {
    /// Repair of the layers that stay [default: same-sign with --merge, else linear-map]
    #[arg(long, value_parser = repair())]
    repair: Option<Repair>,
    /// Number of pruned layers to merge into the layer before them
    #[arg(long, default_value_t = 0)]
    merge: usize,
    /// Share of a merged layer's elements to merge; auto: for each weight, the fewest that hold 80 % of its importance
    /// (auto:0.9 for 90 %)
    #[arg(long, default_value = "0.2")]
    density: Density,
}

impl RepairArgs {
    pub(crate) fn settings(self) -> PlanSettings {
        let Self { repair, merge, density } = self;
        let usual = if merge > 0 { Repair::SameSign } else { Repair::LinearMap };
        PlanSettings { repair: repair.unwrap_or(usual), merge, density }
    }
}

/// How linear maps are fitted.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Repairing")]
pub(crate) struct LinearMapArgs {
    /// Tokens of training rows for fitting the repair: linear maps, scales or retrained layers [default: ten times the
    /// model's hidden size]
    #[arg(long, value_parser = positive)]
    map_tokens: Option<usize>,
    /// Ridge penalty that pulls a linear map towards the identity, relative to the mean of the squared inputs
    #[arg(long, default_value_t = 1e-3, value_parser = scale)]
    map_ridge: f64,
}

impl LinearMapArgs {
    pub(crate) fn settings(self) -> LinearMapSettings {
        let Self { map_tokens, map_ridge } = self;
        LinearMapSettings { tokens: map_tokens, ridge: map_ridge }
    }
}

/// How to collect gradients; the defaults are the authors'.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Collecting")]
pub(crate) struct CollectingArgs {
    /// Number of steps whose gradients are collected; auto: until the layers to prune have settled,
    /// 100 at most
    #[arg(long, default_value = "40", value_parser = steps)]
    steps: Steps,
    /// Rows per collected step
    #[arg(long, default_value_t = 4, value_parser = positive)]
    collect_batch: usize,
    /// Learning rate of the collected steps
    #[arg(long, default_value_t = 1e-4, value_parser = learning_rate)]
    collect_lr: f64,
    /// LoRA rank of the collected gradients
    #[arg(long, default_value_t = 8, value_parser = rank)]
    collect_rank: usize,
    /// LoRA alpha of the collected gradients
    #[arg(long, default_value_t = 32.0, value_parser = scale)]
    collect_alpha: f64,
}

impl CollectingArgs {
    /// Whether the steps are as many as one criterion's choice takes to settle.
    pub(crate) fn is_auto(&self) -> bool {
        self.steps.auto
    }

    pub(crate) fn settings(self, max_tokens: usize) -> CollectSettings {
        let Self { steps, collect_batch, collect_lr, collect_rank, collect_alpha } = self;
        let training = TrainingSettings {
            epochs: 3.0,
            max_steps: None,
            batch_rows: collect_batch,
            accumulate: 1,
            max_tokens,
            learning_rate: collect_lr,
            warmup: 0.03,
            decay: Decay::Linear,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            lora_rank: collect_rank,
            lora_alpha: collect_alpha,
            rslora: false,
            dora: false,
            lora_targets: LoraTargets::all(),
            lora_layers: None,
            remat: false,
            save_every: None,
            update_share: None,
            validation: None,
            distil: None,
            teacher: None,
        };
        let Steps { most, auto } = steps;
        CollectSettings { steps: most, auto, training }
    }
}

/// How to fine-tune.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Fine-tuning")]
pub(crate) struct TrainingArgs {
    /// Number of passes over the training rows
    #[arg(long, default_value_t = 3.0, value_parser = epochs)]
    epochs: f64,
    /// Stop after this many steps
    #[arg(long, value_parser = positive)]
    max_steps: Option<usize>,
    /// Rows per forward pass
    #[arg(long, default_value_t = 4, value_parser = positive)]
    batch: usize,
    /// Forward passes per step
    #[arg(long, default_value_t = 4, value_parser = positive)]
    accumulate: usize,
    /// Maximum tokens per row; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length)]
    max_length: usize,
    /// Peak learning rate [default: 2e-4 for LoRA, 1e-4 for lora+cuts, else 2e-5]
    #[arg(long, value_parser = learning_rate)]
    lr: Option<f64>,
    /// Share of the steps during which the learning rate rises
    #[arg(long, default_value_t = 0.03, value_parser = share)]
    warmup: f64,
    /// Decay schedule of the learning rate
    #[arg(long, default_value = "cosine", value_parser = one_of::<Decay>(&["constant", "linear", "cosine"]))]
    decay: Decay,
    /// Weight decay
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    weight_decay: f64,
    /// Maximum norm of the gradients
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    max_grad_norm: f64,
    /// LoRA rank
    #[arg(long, default_value_t = 16, value_parser = rank)]
    rank: usize,
    /// LoRA alpha [default: twice the rank]
    #[arg(long, value_parser = scale)]
    alpha: Option<f64>,
    /// Multiply adapters by alpha/√rank in place of alpha/rank (rsLoRA); the adapter is written with the alpha that comes to
    /// the same
    #[arg(long)]
    rslora: bool,
    /// Also train the norm of each row of the adapted weights (DoRA); a run then fine-tunes from the start
    #[arg(long)]
    dora: bool,
    /// Weights that get adapters: `all`, or names such as `q_proj,v_proj`
    #[arg(long, default_value = "all", value_parser = targets)]
    targets: LoraTargets,
    /// Layers that get adapters, counted from 0; auto: in a run, the half with the highest scores [default: all]
    #[arg(long = "lora-layers", visible_alias = "layers", value_name = "LAYERS")]
    layers: Option<LoraLayers>,
    /// Keep only each layer's input for the backward pass and recompute the rest: less memory, more
    /// time, the same result
    #[arg(long)]
    remat: bool,
    /// Steps between saved states for resuming [default: one state per minute]
    #[arg(long, value_parser = positive)]
    save_every: Option<usize>,
    /// Look at the rows held out by --choose every so many steps, and keep the weights with the smallest loss there
    #[arg(long, value_name = "STEPS", value_parser = positive)]
    eval_every: Option<usize>,
    /// Stop after so many looks in a row without a smaller loss [default: take all steps]
    #[arg(long, value_name = "LOOKS", value_parser = positive, requires = "eval_every")]
    patience: Option<usize>,
    /// Update only this share of each tensor's elements per step, those with the largest gradients [default: all]
    #[arg(long, value_name = "SHARE", value_parser = some_share)]
    update_share: Option<f64>,
    /// Also learn from a teacher, with this share of the loss; the rest comes from the labels [with no number: 0.5]
    ///
    /// In a run the teacher is the dense model, which is fine-tuned the same way first
    #[arg(long, value_name = "SHARE", num_args = 0..=1, default_missing_value = "0.5", value_parser = share)]
    distil: Option<f64>,
    /// Temperature for comparing probabilities with the teacher's
    #[arg(long, value_name = "T", default_value_t = 2.0, value_parser = scale, requires = "distil")]
    distil_temperature: f64,
    /// Weight of the distance from the teacher's hidden states where layers were cut; it falls to 0 over the first
    /// half of the steps taken
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = weight, requires = "distil")]
    distil_hidden: f64,
    /// Model to learn from, with the same tokenizer: a folder or a hub name
    #[arg(long, value_name = "MODEL", requires = "distil")]
    teacher: Option<String>,
    /// Adapter for the teacher model
    #[arg(long, value_name = "DIR", requires = "teacher")]
    teacher_adapter: Option<PathBuf>,
}

/// The teacher's largest probabilities that are compared one by one.
const TOP_K: usize = 64;

impl TrainingArgs {
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_length
    }

    pub(crate) fn settings(self, method: FinetuneMethod) -> TrainingSettings {
        let Self {
            epochs,
            max_steps,
            batch,
            accumulate,
            max_length,
            lr,
            warmup,
            decay,
            weight_decay,
            max_grad_norm,
            rank,
            alpha,
            rslora,
            dora,
            targets,
            layers,
            remat,
            save_every,
            eval_every,
            patience,
            update_share,
            distil,
            distil_temperature,
            distil_hidden,
            teacher,
            teacher_adapter,
        } = self;
        let usual = match method {
            FinetuneMethod::Lora | FinetuneMethod::None => 2e-4,
            FinetuneMethod::LoraAndCuts => 1e-4,
            FinetuneMethod::Full | FinetuneMethod::HeadAndLast(_) => 2e-5,
        };
        TrainingSettings {
            epochs,
            max_steps,
            batch_rows: batch,
            accumulate,
            max_tokens: max_length,
            learning_rate: lr.unwrap_or(usual),
            warmup,
            decay,
            weight_decay,
            max_grad_norm,
            lora_rank: rank,
            lora_alpha: alpha.unwrap_or(2.0 * rank as f64),
            rslora,
            dora,
            lora_targets: targets,
            lora_layers: layers,
            remat,
            save_every,
            update_share,
            validation: eval_every.map(|every| ValidationSettings { every, patience }),
            distil: distil.map(|weight| DistilSettings {
                weight,
                temperature: distil_temperature,
                top_k: TOP_K,
                hidden: distil_hidden,
            }),
            teacher: teacher.map(|model| TeacherSettings { model, adapter: teacher_adapter }),
        }
    }
}

/// How to evaluate.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Evaluating")]
pub(crate) struct EvaluationArgs {
    /// Tokens per forward pass
    #[arg(long, default_value_t = 2048, value_parser = positive)]
    eval_batch_tokens: usize,
    /// Evaluate on the first rows only
    #[arg(long, value_parser = positive)]
    eval_rows: Option<usize>,
    /// Number of rows without choices to generate replies for
    #[arg(long, default_value_t = 50)]
    generate_rows: usize,
    /// Maximum length of a generated reply, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
}

impl EvaluationArgs {
    pub(crate) fn settings(self, max_tokens: usize) -> EvaluationSettings {
        let Self { eval_batch_tokens, eval_rows, generate_rows, max_new_tokens } = self;
        EvaluationSettings {
            batch_tokens: eval_batch_tokens,
            max_tokens,
            max_rows: eval_rows,
            generate_rows,
            max_new_tokens,
        }
    }
}

/// What to fine-tune: `lora`, `full` or `head+last:3`.
pub(crate) fn method(text: &str) -> Result<FinetuneMethod, String> {
    match text.parse()? {
        FinetuneMethod::None => Err("`none` trains nothing".into()),
        FinetuneMethod::LoraAndCuts => {
            Err("only a run knows what was cut; take lora, full or head+last:3".into())
        }
        method => Ok(method),
    }
}

/// How many steps to collect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Steps {
    most: usize,
    /// Fewer if the layers to prune have settled before.
    auto: bool,
}

/// A number of things of which there must be at least one.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    at_most(text, 1_000_000)
}

/// A number of tokens of a row.
pub(crate) fn length(text: &str) -> Result<usize, String> {
    at_most(text, 1 << 20)
}

/// LoRA's inner dimension; that it is at most the weights' smaller side is seen with the model.
fn rank(text: &str) -> Result<usize, String> {
    at_most(text, 1 << 16)
}

fn at_most(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err(format!("it must be a whole number from 1 to {most}")),
    }
}

pub(crate) fn learning_rate(text: &str) -> Result<f64, String> {
    above_zero(text, 1.0)
}

fn epochs(text: &str) -> Result<f64, String> {
    above_zero(text, 10_000.0)
}

/// A factor or a norm.
fn scale(text: &str) -> Result<f64, String> {
    above_zero(text, 1e6)
}

fn above_zero(text: &str, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= most => Ok(number),
        Ok(_) | Err(_) => Err(format!("it must be a number above 0, at most {most}")),
    }
}

fn steps(text: &str) -> Result<Steps, String> {
    match (text, positive(text)) {
        ("auto", _) => Ok(Steps { most: 100, auto: true }),
        (_, Ok(most)) => Ok(Steps { most, auto: false }),
        (_, Err(error)) => Err(format!("{error}, or auto")),
    }
}

/// One of some names.
fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|text| text.parse::<T>())
}

/// A weight that may be 0.
fn weight(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(0.0) => Ok(0.0),
        _ => above_zero(text, 1e6).map_err(|_| "it must be a number from 0 to 1000000".into()),
    }
}

/// A share above 0.
fn some_share(text: &str) -> Result<f64, String> {
    above_zero(text, 1.0)
}

/// Linear weights: `all`, or names between commas.
fn targets(text: &str) -> Result<LoraTargets, String> {
    text.split(',').map(ToOwned::to_owned).collect::<Vec<_>>().try_into()
}

/// The name of a criterion, or how several are compared.
pub(crate) fn choosing() -> impl TypedValueParser<Value = Choosing> {
    ChoosingParser
}

/// As [`criterion`], for what may also be several.
#[derive(Clone)]
struct ChoosingParser;

impl TypedValueParser for ChoosingParser {
    type Value = Choosing;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Choosing, clap::Error> {
        let parse = |text: &str| text.parse::<Choosing>();
        parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let one = Criterion::all().map(|one| PossibleValue::new(one.name()).help(one.about()));
        let several = [
            PossibleValue::new("best").help(
                "of the choices of igia and linear-fit the one that loses least right after the repair, on rows held out; \
                 best:igia+bi names others",
            ),
            PossibleValue::new("race").help(
                "the choices of several criteria, each fine-tuned for a few steps; race:igia+bi names them",
            ),
            PossibleValue::new("auto").help("a race of criteria that have proven themselves"),
        ];
        Some(Box::new(one.chain(several)))
    }
}

/// The name of a criterion.
pub(crate) fn criterion() -> impl TypedValueParser<Value = Criterion> {
    let known = |criterion: Criterion| PossibleValue::new(criterion.name()).help(criterion.about());
    PossibleValuesParser::new(Criterion::all().map(known)).try_map(|text| text.parse::<Criterion>())
}

/// The name of a repair.
pub(crate) fn repair() -> impl TypedValueParser<Value = Repair> {
    let known = |repair: Repair| PossibleValue::new(repair.name()).help(repair.about());
    PossibleValuesParser::new(Repair::ALL.map(known)).try_map(|text| text.parse::<Repair>())
}

/// A size such as `5GB`, in bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => return Err(format!("`{other}` is none of B, KB, MB and GB")),
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * unit) as u64),
        _ => Err(format!("`{text}` is not a size; write one like 5GB")),
    }
}

/// A time such as `30m`, in seconds.
pub(crate) fn duration(text: &str) -> Result<f64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{text}` is not a time; write one like 90s, 30m or 2h")),
    };
    above_zero(digits.trim(), 1e6).map(|number| number * unit)
}

/// A share between 0 and 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a share; write a number from 0 to 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods() {
        assert_eq!(method("head+last:3"), Ok(FinetuneMethod::HeadAndLast(3)));
        assert!(method("none").is_err() && method("head+last").is_err());
    }

    #[test]
    fn numbers_of_steps() {
        assert_eq!(steps("7"), Ok(Steps { most: 7, auto: false }));
        assert_eq!(steps("auto"), Ok(Steps { most: 100, auto: true }));
        assert!(steps("many").is_err());
    }

    #[test]
    fn times() {
        assert_eq!(
            [duration("90s"), duration("1.5m"), duration("2h")],
            [Ok(90.0), Ok(90.0), Ok(7200.0)]
        );
        assert!(duration("30").is_err() && duration("-1m").is_err() && duration("m").is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("1.5MB"), Ok(1_500_000));
        for wrong in ["nan", "inf", "-1e-3", "0", "1.5", "x"] {
            assert!(learning_rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(learning_rate("1e-3"), Ok(1e-3));
        assert!(rank("18446744073709551615").is_err() && rank("0").is_err());
        assert!(size("0").is_err() && size("5GiB").is_err() && size("x").is_err());
    }
}
