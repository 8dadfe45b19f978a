//! `gradpruner generate`.

use std::path::PathBuf;

use ::finetune::{generate, peak_memory_bytes};
use anyhow::Context;
use checkpoint::locate;
use dataset::{Chat, Message};
use pipeline::{load_adapted, read_encoder};
use serde_json::json;

use crate::arguments::ComputeArgs;
use crate::printer::{Outcome, Printer};

/// Continue a prompt with the likeliest token at each step.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner generate --model SmolLM2-135M --prompt 'What is the capital of France?'")]
pub(crate) struct GenerateArgs {
    /// Model: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// PEFT LoRA adapter for the model
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Prompt for the model
    #[arg(long)]
    prompt: String,
    /// System message
    #[arg(long)]
    system: Option<String>,
    /// Use the prompt as it is, without the chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// Maximum length of the reply, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: GenerateArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let GenerateArgs { model, adapter, prompt, system, raw, max_new_tokens, compute } = args;
    let context = || format!("cannot generate with `{model}`");
    let folder = locate(&model).with_context(context)?;
    let encoder = read_encoder(&folder).with_context(context)?;
    let tokens = if raw {
        encoder.text_tokens(&prompt).with_context(context)?
    } else {
        let messages = system
            .map(|text| Message::new("system", text))
            .into_iter()
            .chain([Message::new("user", prompt)])
            .collect();
        encoder.prompt(&Chat { messages, tools: Vec::new() }).with_context(context)?
    };
    let loaded =
        load_adapted(&folder, adapter.as_deref(), &compute.settings()).with_context(context)?;
    let (mut so_far, mut shown) = (Vec::new(), 0);
    let found = generate(&loaded, &tokens, max_new_tokens, &mut |token| {
        so_far.push(token);
        // A character may span tokens; only whole ones are shown.
        if let Ok(text) = encoder.text(&so_far, true)
            && !text.ends_with('\u{fffd}')
            && let Some(new) = text.get(shown..)
        {
            printer.stream(new);
            shown = text.len();
        }
    })
    .with_context(context)?;
    printer.stream("\n");
    printer.note(&format!(
        "{} tokens, {:.1} tokens/s after {:.2} s for the prompt",
        found.tokens.len(),
        found.tokens.len() as f64 / found.seconds.max(1e-9),
        found.prompt_seconds
    ));
    let text = encoder.text(&found.tokens, true)?;
    Outcome::new(
        "",
        &json!({
            "text": text,
            "tokens": found.tokens,
            "seconds": found.seconds,
            "peak_memory_bytes": peak_memory_bytes(),
        }),
    )
}
