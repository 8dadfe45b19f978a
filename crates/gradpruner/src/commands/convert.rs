//! `gradpruner convert`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::gguf::{ExportReport, FileType, convert, export, modelfile};
use checkpoint::{Staging, bitsandbytes, locate};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pipeline::{Event, Stage};
use serde::Serialize;

use crate::arguments::size;
use crate::printer::{Outcome, Printer};

/// Turn a GGUF file or a 4-bit checkpoint into a folder in Hugging Face layout, or a folder into a GGUF file.
///
/// From a GGUF file, weights are dequantised to BF16; config, tokenizer and chat template come from the file's own
/// metadata. From a folder that transformers saved in 4 bits of bitsandbytes (NF4 or FP4), weights are dequantised to the
/// type they had before; all else is copied. To a GGUF file, matrices are stored as llama.cpp stores them in a file of
/// --type, all else as F32; a Modelfile for Ollama is written beside it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  gradpruner convert SmolLM2-135M-Instruct.Q4_1.gguf --out SmolLM2-135M
  gradpruner convert Llama-3.2-1B-bnb-4bit --out Llama-3.2-1B
  gradpruner convert run/merged --to gguf --type q4_k_m --out pruned.gguf")]
pub(crate) struct ConvertArgs {
    /// The GGUF file, or a model: a folder in Hugging Face layout, or a hub name. Without --to gguf it is one in 4 bits
    what: String,
    /// Format to convert to
    #[arg(long, default_value = "folder")]
    to: Target,
    /// Type of the GGUF file, as llama-quantize names it
    #[arg(long, default_value = "bf16", value_parser = file_type())]
    r#type: FileType,
    /// Folder for the checkpoint, or the GGUF file to write
    #[arg(long)]
    out: PathBuf,
    /// Maximum size of the tensors in one file of a folder
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Folder,
    Gguf,
}

/// The types that can be written, by their names.
fn file_type() -> impl TypedValueParser<Value = FileType> {
    PossibleValuesParser::new(FileType::ALL.map(FileType::name))
        .try_map(|name| FileType::from_name(&name).ok_or("no such type"))
}

/// What a GGUF file came to.
#[derive(Serialize)]
struct GgufReport {
    #[serde(flatten)]
    file: ExportReport,
    /// Ollama's file for it; none if another one was there.
    modelfile: Option<PathBuf>,
}

pub(crate) fn run(args: ConvertArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    let ConvertArgs { what, to, r#type, out, shard_size } = args;
    let context = || format!("cannot convert `{what}`");
    match to {
        Target::Folder if is_gguf(Path::new(&what)) => {
            from_gguf(Path::new(&what), &out, shard_size, printer)
        }
        Target::Folder => from_four_bits(&what, &out, shard_size, printer),
        Target::Gguf => to_gguf(&what, &out, r#type, printer),
    }
    .with_context(context)
}

/// Whether it is a file, or a name of one that is not there.
fn is_gguf(path: &Path) -> bool {
    let is_named_so = path.extension().is_some_and(|extension| extension == "gguf");
    path.is_file() || (is_named_so && !path.is_dir())
}

fn from_gguf(
    file: &Path,
    out: &Path,
    shard_size: u64,
    printer: &mut Printer,
) -> anyhow::Result<Outcome> {
    printer.event(Event::Started(Stage::Convert));
    let mut observe = |done, total| printer.event(Event::Tensors { done, total });
    let report = convert(file, out, shard_size, &mut observe)?;
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

fn from_four_bits(
    model: &str,
    out: &Path,
    shard_size: u64,
    printer: &mut Printer,
) -> anyhow::Result<Outcome> {
    let folder = locate(model)?;
    printer.event(Event::Started(Stage::Convert));
    let mut observe = |done, total| printer.event(Event::Tensors { done, total });
    let report = bitsandbytes::convert(&folder, out, shard_size, &mut observe)?;
    let text = format!(
        "{} weights in 4 bits dequantised, {} tensors copied, {:.1} M parameters, {:.0} MB, written to {}",
        report.widened,
        report.copied,
        report.parameters as f64 / 1e6,
        report.size_bytes as f64 / 1e6,
        out.display()
    );
    Outcome::new(text, &report)
}

fn to_gguf(
    model: &str,
    out: &Path,
    file_type: FileType,
    printer: &mut Printer,
) -> anyhow::Result<Outcome> {
    let folder = locate(model)?;
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let ollama = modelfile(&folder, &name)?;
    printer.event(Event::Started(Stage::Convert));
    let mut observe = |done, total| printer.event(Event::Tensors { done, total });
    let file = export(&folder, out, file_type, &mut observe)?;
    let modelfile = write_beside(out, &ollama)?;
    let mut text = format!(
        "{} of {} layers, {:.1} M parameters, matrices in {}, {:.0} MB, written to {}",
        file.architecture,
        file.num_layers,
        file.parameters as f64 / 1e6,
        file.format,
        file.size_bytes as f64 / 1e6,
        out.display()
    );
    text.push_str(match modelfile {
        Some(_) => "; for Ollama there is a Modelfile beside it",
        None => "\na different Modelfile is already there and was left unchanged",
    });
    Outcome::new(text, &GgufReport { file, modelfile })
}

/// Writes Ollama's file beside a GGUF file, unless another one is there; where it is then.
fn write_beside(gguf: &Path, text: &str) -> anyhow::Result<Option<PathBuf>> {
    let path = gguf.with_file_name("Modelfile");
    if path.symlink_metadata().is_ok() {
        let is_same = path.is_file() && fs_err::read(&path)? == text.as_bytes();
        return Ok(is_same.then_some(path));
    }
    Staging::write(&path, text.as_bytes())?;
    Ok(Some(path))
}
