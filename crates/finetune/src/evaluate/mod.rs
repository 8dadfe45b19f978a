//! How good a model is on rows: choices, perplexity, generated replies.

mod rows;
mod standing;
mod tally;

use std::time::Instant;

use dataset::{Content, Encoder, Row, is_much};
use metrics::{Interval, RougeScores, bootstrap, perplexity, wilson};
use serde::{Deserialize, Serialize};
use tch::no_grad_guard;

use crate::{Model, Result};

pub use rows::EvalRows;
pub(crate) use standing::standing_together;
pub use standing::{Standing, standing};
use tally::{RowText, Tally};

/// How a model is evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSettings {
    /// Tokens of a forward pass, at least one row.
    pub batch_tokens: usize,
    /// Longer rows are cut.
    pub max_tokens: usize,
    /// For how many rows without choices a reply is generated.
    pub generate_rows: usize,
    /// The longest generated reply.
    pub max_new_tokens: usize,
}

/// An evaluation's figures; `eval.json` holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// How many rows.
    pub rows: usize,
    /// How many of these were cut to the length limit.
    #[serde(default)]
    pub cut_rows: usize,
    /// Accuracy by log-likelihood, of rows with choices.
    pub acc: Option<f64>,
    /// Its 95 % interval.
    pub acc_interval: Option<Interval>,
    /// Accuracy by log-likelihood per byte.
    pub acc_norm: Option<f64>,
    /// Its 95 % interval.
    pub acc_norm_interval: Option<Interval>,
    /// What always answering the most frequent position would get.
    pub majority: Option<f64>,
    /// Of the assistant's tokens; `None` if it is not finite or there are none.
    pub perplexity: Option<f64>,
    /// Its 95 % interval.
    #[serde(default)]
    pub perplexity_interval: Option<Interval>,
    /// How many those are.
    pub labelled_tokens: usize,
    /// The share of generated replies that are the reference.
    pub exact_match: Option<f64>,
    /// Means over generated replies.
    pub rouge: Option<RougeScores>,
    /// The 95 % interval of ROUGE-L.
    #[serde(default)]
    pub rouge_l_interval: Option<Interval>,
    /// The generated replies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generated: Vec<GeneratedText>,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Seconds they took.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// New tokens a second in generation, several rows at a time ([`generate_all`](crate::generate_all)), prompts included.
    pub generated_tokens_per_second: Option<f64>,
    /// The process's largest size meanwhile.
    pub peak_memory_bytes: Option<u64>,
    /// The model's parameters.
    pub parameters: u64,
    /// The model's floating-point operations a token, at a context of 1024.
    pub flops_per_token: u64,
    /// The model's layers.
    pub num_layers: usize,
}

/// A generated reply beside its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneratedText {
    /// The row, counted from 1.
    pub row: usize,
    /// What the model said.
    pub text: String,
    /// What it should have said.
    pub reference: String,
}

/// What a model answered to one row with choices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The row, counted from 1.
    pub row: usize,
    /// The log-likelihood of each choice.
    pub log_likelihoods: Vec<f64>,
    /// The likeliest one, counted from 0.
    pub chosen: usize,
    /// The likeliest one per byte.
    pub chosen_by_bytes: usize,
    /// The right one.
    pub answer: usize,
    /// Whether the likeliest one is the right one.
    pub right: bool,
}

/// The loss of a row's labelled tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RowLoss {
    /// The row, counted from 1.
    pub row: usize,
    /// The sum of the tokens' losses.
    pub nats: f64,
    /// How many they are.
    pub tokens: usize,
}

/// The 95 % interval of the perplexity of rows.
fn perplexity_interval(losses: &[RowLoss]) -> Option<Interval> {
    let rows: Vec<_> = losses.iter().map(|loss| (loss.nats, loss.tokens as f64)).collect();
    let Interval { low, high } = bootstrap(&rows)?;
    Some(Interval { low: low.exp(), high: high.exp() }).filter(|interval| interval.high.is_finite())
}

/// An evaluation's figures, and what they are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The figures.
    pub report: EvalReport,
    /// What was answered to each row with choices, in the rows' order.
    pub answers: Vec<Answer>,
    /// The loss of each row, in the rows' order.
    #[serde(default)]
    pub losses: Vec<RowLoss>,
}

/// Rows to evaluate on.
#[derive(Debug, Clone, Copy)]
pub struct EvalData<'a> {
    /// What makes tokens of them: the model's own.
    pub encoder: &'a Encoder,
    /// The rows.
    pub rows: &'a [Row],
}

/// Evaluates a model on rows. `observe` sees how many rows are done.
///
/// # Errors
///
/// If a row cannot be encoded or libtorch refuses.
pub fn evaluate(
    model: &Model,
    data: EvalData<'_>,
    settings: &EvalSettings,
    observe: &mut dyn FnMut(usize),
) -> Result<Evaluated> {
    let EvalData { encoder, rows } = data;
    let _guard = no_grad_guard();
    crate::reset_peak_memory();
    let encoded = EvalRows::encode(encoder, rows, settings.max_tokens)?;
    if is_much(encoded.cut_rows, rows.len()) {
        tracing::warn!(
            "{} of {} rows are cut to the length limit; the figures are of what is left",
            encoded.cut_rows,
            rows.len()
        );
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    // A row may give several examples.
    let mut done = |rows_seen: usize| observe(rows_seen.min(rows.len()));
    tally.see(model, &encoded, settings.batch_tokens, &mut done)?;
    let seconds = started.elapsed().as_secs_f64();
    let texts = rows.iter().enumerate().filter_map(|(number, row)| match &row.content {
        Content::Chat(chat) => Some(RowText { row: number + 1, chat }),
        _ => None,
    });
    let texts: Vec<_> = texts.take(settings.generate_rows).collect();
    tally.replies(model, encoder, &texts, settings)?;
    let share = |hits: usize| (tally.asked > 0).then(|| hits as f64 / tally.asked as f64);
    let interval = |hits: usize| (tally.asked > 0).then(|| wilson(hits, tally.asked));
    let mean = |sum: f64| (!tally.generated.is_empty()).then(|| sum / tally.generated.len() as f64);
    tally.answers.sort_by_key(|answer| answer.row);
    let losses: Vec<RowLoss> = tally.losses.values().copied().collect();
    let rouge_l: Vec<_> = tally.rouge.iter().map(|scores| (scores.rouge_l, 1.0)).collect();
    let report = EvalReport {
        rows: rows.len(),
        cut_rows: encoded.cut_rows,
        acc: share(tally.hits),
        acc_interval: interval(tally.hits),
        acc_norm: share(tally.hits_by_bytes),
        acc_norm_interval: interval(tally.hits_by_bytes),
        majority: share(tally.positions.iter().copied().max().unwrap_or(0)),
        perplexity: Some(perplexity(tally.negative_log_likelihood, tally.labelled))
            .filter(|value| value.is_finite()),
        perplexity_interval: perplexity_interval(&losses),
        labelled_tokens: tally.labelled,
        exact_match: mean(tally.exact as f64),
        rouge: mean(1.0).map(|_| tally.mean_rouge()),
        rouge_l_interval: bootstrap(&rouge_l),
        tokens: tally.tokens,
        seconds,
        tokens_per_second: tally.tokens as f64 / seconds.max(1e-9),
        generated_tokens_per_second: (tally.new_tokens > 0)
            .then(|| tally.new_tokens as f64 / tally.generate_seconds.max(1e-9)),
        generated: tally.generated,
        peak_memory_bytes: crate::peak_memory_bytes(),
        parameters: model.config().parameters(),
        flops_per_token: model.config().flops_per_token(1024),
        num_layers: model.config().num_layers,
    };
    Ok(Evaluated { report, answers: tally.answers, losses })
}
