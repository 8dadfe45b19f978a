//! `gradpruner convert`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::gguf::convert;
use pipeline::{Event, Stage};

use crate::arguments::size;
use crate::printer::{Outcome, Printer};

/// Turn a GGUF file into a folder in Hugging Face layout.
///
/// Weights are dequantised to BF16; config, tokenizer and chat template come from the file's own
/// metadata.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner convert SmolLM2-135M-Instruct.Q4_1.gguf --out SmolLM2-135M")]
pub(crate) struct ConvertArgs {
    /// The GGUF file
    file: PathBuf,
    /// Folder for the checkpoint
    #[arg(long)]
    out: PathBuf,
    /// Maximum size of the tensors in one file
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
}

pub(crate) fn run(args: ConvertArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let ConvertArgs { file, out, shard_size } = args;
    printer.event(Event::Started(Stage::Convert));
    let mut observe = |done, total| printer.event(Event::Tensors { done, total });
    let report = convert(&file, &out, shard_size, &mut observe)
        .with_context(|| format!("cannot convert `{}`", file.display()))?;
    let text = format!(
        "{} of {} layers, {:.1} M parameters, {:.0} MB, written to {}",
        report.architecture,
        report.num_layers,
        report.parameters as f64 / 1e6,
        report.size_bytes as f64 / 1e6,
        out.display()
    );
    Outcome::new(text, &report)
}
