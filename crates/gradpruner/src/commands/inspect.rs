//! `gradpruner inspect`.

use std::path::Path;

use anyhow::{Context, bail};
use checkpoint::gguf::GgufFile;
use checkpoint::{Adapter, Checkpoint, ModelConfig, Record, locate, read_json};
use repair::{LinearMaps, Reconstructed, Scales, Size};
use selection::{Plan, Scores};
use serde_json::{Value, json};

use crate::arguments::{DataArgs, length, positive};
use crate::commands::inspect_rows::RowsView;
use crate::commands::ranking_text;
use crate::printer::Outcome;
use crate::stages::layer_strip;
use crate::texts::{fitted_text, reconstructed_text, scaled_text};

/// Weights of a layer that are named.
const SHOWN_WEIGHTS: usize = 12;

/// Show the contents of a model, record, adapter, scores, plan, GGUF or data file.
///
/// With --model, rows are shown as the model's chat template renders them, with the learned tokens
/// marked: coloured on a terminal, otherwise between `[[` and `]]`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  gradpruner inspect SmolLM2-135M
  gradpruner inspect run/plan.json
  gradpruner inspect train.jsonl --model SmolLM2-135M --row 3")]
pub(crate) struct InspectArgs {
    /// A model (folder or hub name), the folder of a record, adapter or linear maps, scores.json, plan.json, a GGUF
    /// file, or, with --model, rows
    what: String,
    /// Model whose tokenizer and chat template render the rows
    #[arg(long)]
    model: Option<String>,
    /// Row to show, counted from 1 [default: counts of all rows, and the first row]
    #[arg(long, value_parser = positive, requires = "model")]
    row: Option<usize>,
    /// Maximum tokens per row; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length, requires = "model")]
    max_length: usize,
    #[command(flatten)]
    reading: DataArgs,
}

pub(crate) fn run(args: InspectArgs) -> anyhow::Result<Outcome> {
    let InspectArgs { what, model, row, max_length, reading } = args;
    let context = || format!("cannot inspect `{what}`");
    if let Some(model) = model {
        let (data, ignored) = (Path::new(&what), reading.ignore_fields.as_slice());
        let view = RowsView { data, ignored, row, max_tokens: max_length };
        return view.show(&model).with_context(context);
    }
    let path = locate(&what).with_context(context)?;
    inspect(&path).with_context(context)
}

fn inspect(path: &Path) -> anyhow::Result<Outcome> {
    let has = |name: &str| path.join(name).exists();
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return gguf(path);
    }
    if path.is_file() {
        if path.extension().is_none_or(|extension| extension != "json") {
            bail!(
                "it is not a .json or .gguf file; rows need `--model`, whose template shows them"
            );
        }
        let value: Value = read_json(path)?;
        return match value["format"].as_str() {
            Some("gradpruner-plan") => {
                let plan = Plan::read(path)?;
                Outcome::new(layer_strip(&plan), &plan)
            }
            Some("gradpruner-scores") => {
                let scores = Scores::read(path)?;
                Outcome::new(ranking_text(&scores), &scores)
            }
            Some(other) => bail!("`{other}` is not the format of a scores or plan file"),
            None => bail!("it has no `format`; is it a scores or plan file?"),
        };
    }
    if has("adapter_config.json") {
        return adapter(path);
    }
    if has("config.json") {
        return model(path);
    }
    if has("maps.json") {
        return maps(path);
    }
    if has("scales.json") {
        return scales(path);
    }
    if has("reconstructed.json") {
        return reconstructed(path);
    }
    if has("manifest.json") || has("step-00001.safetensors") {
        return record(path);
    }
    bail!(
        "it holds neither config.json, adapter_config.json, maps.json, scales.json, reconstructed.json nor a record's steps"
    );
}

fn model(path: &Path) -> anyhow::Result<Outcome> {
    let checkpoint = Checkpoint::open(path)?;
    let size = Size::of(&checkpoint);
    let about = match checkpoint.trained_config() {
        Some(config) => trained_text(config),
        None => untrained_text(&checkpoint),
    };
    let text = format!(
        "{about}\n{:.1} M parameters, {:.1} M FLOPs/token, {:.0} MB in {} file(s)",
        size.parameters as f64 / 1e6,
        size.flops_per_token as f64 / 1e6,
        size.size_bytes as f64 / 1e6,
        checkpoint.weights().files().len(),
    );
    let raw = checkpoint.outline().raw();
    Outcome::new(text, &json!({"kind": "model", "size": size, "config": raw}))
}

fn trained_text(config: &ModelConfig) -> String {
    format!(
        "{:?}, {} layers, hidden {}, {} heads of {} over {} key-value heads, FFN {}, vocabulary {}{}",
        config.family,
        config.num_layers,
        config.hidden_size,
        config.num_heads,
        config.head_dim,
        config.num_kv_heads,
        config.intermediate_size,
        config.vocab_size,
        if config.tied_head { ", tied head" } else { "" },
    )
}

/// What is known of a model of another family: its layers.
fn untrained_text(checkpoint: &Checkpoint) -> String {
    let outline = checkpoint.outline();
    let of_first = checkpoint.linears().filter(|(layer, ..)| *layer == 0);
    let names: Vec<String> = of_first.map(|(_, module, _)| module.to_string()).collect();
    let (shown, more) = (names.len().min(SHOWN_WEIGHTS), names.len().saturating_sub(SHOWN_WEIGHTS));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{}, {} layers at `{}`, whose linear weights are {}{more}; it can be scored and pruned, and is trained elsewhere",
        outline.family(),
        outline.num_layers(),
        outline.container(),
        names[..shown].join(", "),
    )
}

fn maps(path: &Path) -> anyhow::Result<Outcome> {
    let maps = LinearMaps::open(path)?;
    let header = maps.header();
    let mut text = format!(
        "linear maps of {}, in the place of {} of {} layers, fitted on {} tokens",
        header.model.name,
        header.pruned.len(),
        header.num_layers,
        header.tokens,
    );
    for run in &header.runs {
        text.push_str(&format!("\n  {}", fitted_text(run)));
    }
    Outcome::new(text, header)
}

fn scales(path: &Path) -> anyhow::Result<Outcome> {
    let scales = Scales::open(path)?;
    let mut text = format!(
        "scales of {}, {} of {} layers pruned, measured on {} tokens",
        scales.model.name,
        scales.pruned.len(),
        scales.num_layers,
        scales.tokens,
    );
    for cut in &scales.cuts {
        text.push_str(&format!("\n  {}", scaled_text(cut)));
    }
    Outcome::new(text, &scales)
}

fn reconstructed(path: &Path) -> anyhow::Result<Outcome> {
    let layers = Reconstructed::open(path)?;
    let header = layers.header();
    let mut text = format!(
        "reconstructed layers of {}, {} of {} layers pruned, {} steps each on {} tokens",
        header.model.name,
        header.pruned.len(),
        header.num_layers,
        header.steps,
        header.tokens,
    );
    for run in &header.runs {
        text.push_str(&format!("\n  {}", reconstructed_text(run)));
    }
    Outcome::new(text, header)
}

fn record(path: &Path) -> anyhow::Result<Outcome> {
    let record = Record::open(path)?;
    let weights = record.pairs().count();
    let text = format!(
        "gradient record: {} steps, {} layers, {weights} weights a step{}",
        record.num_steps(),
        record.num_layers(),
        record
            .manifest()
            .and_then(|manifest| manifest.model.as_ref())
            .map_or_else(String::new, |model| format!(", of {}", model.name)),
    );
    Outcome::new(text, &json!({"kind": "record", "manifest": record.manifest()}))
}

fn adapter(path: &Path) -> anyhow::Result<Outcome> {
    let adapter = Adapter::read(path)?;
    let config = &adapter.config;
    let base = config.base_model_name_or_path.as_deref().unwrap_or("an unnamed model");
    let text = format!(
        "{} of rank {} and alpha {} on {} weights ({}), of {base}",
        if config.use_dora { "DoRA" } else { "LoRA" },
        config.r,
        config.lora_alpha,
        adapter.pairs.len(),
        config.target_modules.join(", "),
    );
    Outcome::new(text, &json!({"kind": "adapter", "config": config}))
}

fn gguf(path: &Path) -> anyhow::Result<Outcome> {
    let file = GgufFile::open(path)?;
    let text_of = |key: &str| file.metadata.get(key).and_then(|value| value.as_text());
    let mut formats = std::collections::BTreeMap::new();
    for tensor in file.tensors.values() {
        *formats.entry(format!("{:?}", tensor.format)).or_insert(0) += 1;
    }
    let listed: Vec<_> = formats.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let (name, architecture) = (text_of("general.name"), text_of("general.architecture"));
    let text = format!(
        "GGUF of {} ({}), {} tensors: {}",
        name.unwrap_or("an unnamed model"),
        architecture.unwrap_or("unknown architecture"),
        file.tensors.len(),
        listed.join(", "),
    );
    Outcome::new(
        text,
        &json!({"kind": "gguf", "name": name, "architecture": architecture, "formats": formats}),
    )
}
