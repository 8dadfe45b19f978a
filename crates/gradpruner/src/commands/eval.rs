//! `gradpruner eval`.

use std::path::PathBuf;

use ::finetune::{EvalReport, Evaluated};
use anyhow::Context;
use checkpoint::{Staging, locate};
use metrics::Interval;
use pipeline::{EncodedRows, Event, Named, Stage, StageContext, check_outputs, evaluate_model};

use crate::arguments::{ComputeArgs, DataArgs, EvaluationArgs, length};
use crate::interrupt;
use crate::printer::{Outcome, Printer};

/// Evaluate a model.
///
/// Rows with choices are answered with the likeliest choice (`acc`) and the likeliest per byte
/// (`acc_norm`); for other rows replies are generated. Every evaluation reports the perplexity
/// of the assistant's tokens, the speed and the memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner eval --model pruned --adapter adapter --data test.jsonl --out eval.json")]
pub(crate) struct EvalArgs {
    /// Model: a folder in Hugging Face layout, or a hub name
    #[arg(long)]
    model: String,
    /// PEFT LoRA adapter for the model
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Rows: a data file, a folder of them, or hub:owner/name
    #[arg(long)]
    data: PathBuf,
    /// File for the figures
    #[arg(long)]
    out: Option<PathBuf>,
    /// File for one line per row: each choice's score, the chosen one and the right one, or the generated reply
    #[arg(long)]
    predictions: Option<PathBuf>,
    /// Maximum tokens per row; the rest is cut
    #[arg(long, default_value_t = 2048, value_parser = length)]
    max_length: usize,
    #[command(flatten)]
    reading: DataArgs,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: EvalArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    interrupt::stop_after_the_step();
    let EvalArgs {
        model,
        adapter,
        data,
        out,
        predictions,
        max_length,
        reading,
        evaluation,
        compute,
    } = args;
    let context = || format!("cannot evaluate `{model}` on `{}`", data.display());
    printer.event(Event::Started(Stage::Evaluate));
    let folder = locate(&model).with_context(context)?;
    let inputs = [
        Named::of("--model", &*folder),
        Named::of("--adapter", adapter.as_deref()),
        Named::of("--data", &*data),
    ];
    let outputs =
        [Named::of("--out", out.as_deref()), Named::of("--predictions", predictions.as_deref())];
    check_outputs(&outputs, &inputs).with_context(context)?;
    let compute = compute.settings();
    let stage = StageContext {
        model: &folder,
        data: &data,
        ignored: &reading.ignore_fields,
        held_out: None,
        compute: &compute,
        seed: 0,
        encoded: &EncodedRows::default(),
    };
    let settings = evaluation.settings(max_length);
    let observe = &mut |event| printer.event(event);
    let Evaluated { report, answers, .. } =
        evaluate_model(stage, adapter.as_deref(), &settings, observe).with_context(context)?;
    if let Some(out) = out {
        let mut json = serde_json::to_value(&report)?;
        json["format"] = "gradpruner-evaluation".into();
        json["version"] = 1.into();
        Staging::write(&out, format!("{json:#}\n").as_bytes())?;
    }
    if let Some(path) = predictions {
        let answers = answers.iter().map(serde_json::to_string);
        let texts = report.generated.iter().map(serde_json::to_string);
        let lines = answers.chain(texts).map(|line| line.map(|line| line + "\n"));
        let text = lines.collect::<Result<String, _>>()?;
        Staging::write(&path, text.as_bytes())?;
    }
    Outcome::new(text(&report), &report)
}

fn text(report: &EvalReport) -> String {
    let cut = match report.cut_rows {
        0 => String::new(),
        cut => format!(", {cut} of them cut to fit --max-length"),
    };
    let mut lines = vec![format!("rows           {}{cut}", report.rows)];
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for (name, share, interval) in [
        ("acc", report.acc, report.acc_interval),
        ("acc_norm", report.acc_norm, report.acc_norm_interval),
    ] {
        if let (Some(share), Some(interval)) = (share, interval) {
            lines.push(format!(
                "{name:<15}{} ({} – {})",
                percent(share),
                percent(interval.low),
                percent(interval.high)
            ));
        }
    }
    if let Some(majority) = report.majority {
        lines.push(format!("majority       {}", percent(majority)));
    }
    let perplexity = report.perplexity.map_or("not finite".into(), |value| format!("{value:.4}"));
    let interval = report
        .perplexity_interval
        .map_or_else(String::new, |Interval { low, high }| format!(" ({low:.4} – {high:.4})"));
    lines.push(format!(
        "perplexity     {perplexity}{interval} over {} tokens",
        report.labelled_tokens
    ));
    if let (Some(exact), Some(rouge)) = (report.exact_match, report.rouge) {
        lines.push(format!(
            "exact match    {} of {} replies",
            percent(exact),
            report.generated.len()
        ));
        let interval = report
            .rouge_l_interval
            .map_or_else(String::new, |Interval { low, high }| format!(" ({low:.3} – {high:.3})"));
        lines.push(format!(
            "ROUGE-1/2/L    {:.3} / {:.3} / {:.3}{interval}",
            rouge.rouge1, rouge.rouge2, rouge.rouge_l
        ));
    }
    lines.push(format!("tokens/s       {:.0}", report.tokens_per_second));
    if let Some(speed) = report.generated_tokens_per_second {
        lines.push(format!("generated/s    {speed:.1} tokens"));
    }
    if let Some(bytes) = report.peak_memory_bytes {
        lines.push(format!("peak memory    {:.0} MB", bytes as f64 / 1e6));
    }
    lines.push(format!("parameters     {:.1} M", report.parameters as f64 / 1e6));
    lines.push(format!("FLOPs/token    {:.1} M", report.flops_per_token as f64 / 1e6));
    lines.join("\n")
}
