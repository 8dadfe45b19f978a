//! How good a model is on rows: choices, perplexity, generated replies.

use std::time::Instant;

use dataset::{Chat, Content, Encoder, Example, Question, Row, is_much};
use metrics::{
    ChoiceScore, Interval, RougeScores, exact_match, perplexity, pick, pick_by_bytes, rouge, wilson,
};
use serde::{Deserialize, Serialize};
use tch::no_grad_guard;

use crate::bridge::values;
use crate::pack::Packed;
use crate::stop;
use crate::{FinetuneError, Model, Result, generate};

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
    /// How many those are.
    pub labelled_tokens: usize,
    /// The share of generated replies that are the reference.
    pub exact_match: Option<f64>,
    /// Means over generated replies.
    pub rouge: Option<RougeScores>,
    /// The generated replies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generated: Vec<GeneratedText>,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Seconds they took.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// New tokens a second in generation, one row at a time.
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

/// An evaluation's figures, and what they are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The figures.
    pub report: EvalReport,
    /// What was answered to each row with choices, in the rows' order.
    pub answers: Vec<Answer>,
}

/// Evaluates a model on rows. `observe` sees how many rows are done.
///
/// # Errors
///
/// If a row cannot be encoded or libtorch refuses.
pub fn evaluate(
    model: &Model,
    encoder: &Encoder,
    rows: &[Row],
    settings: &EvalSettings,
    observe: &mut dyn FnMut(usize),
) -> Result<Evaluated> {
    let _guard = no_grad_guard();
    crate::reset_peak_memory();
    let mut tally = Tally::default();
    let mut cut_rows = 0;
    let (mut questions, mut examples, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        if let Content::Choice { .. } = row.content {
            let question = encoder.question(row, settings.max_tokens)?;
            cut_rows += usize::from(question.cut > 0);
            questions.push((number + 1, question));
            continue;
        }
        let of_row = encoder.examples_of(row, settings.max_tokens)?;
        cut_rows += usize::from(of_row.iter().any(|example| example.cut > 0));
        examples.extend(of_row);
        if let Content::Chat(chat) = &row.content {
            texts.push((number + 1, chat));
        }
    }
    if is_much(cut_rows, rows.len()) {
        tracing::warn!(
            cut = cut_rows,
            rows = rows.len(),
            "a tenth of the rows or more is cut to the length limit; the figures are of what is left"
        );
    }
    let started = Instant::now();
    // Longest first: what does not fit memory fails at once, and the time left is never too low.
    questions.sort_by_key(|(_, question)| std::cmp::Reverse(question_tokens(question)));
    let tokens = |(_, question): &(usize, Question)| question_tokens(question);
    for batch in batches(&questions, settings.batch_tokens, tokens) {
        stop::check()?;
        tally.questions(model, batch)?;
        observe(tally.rows.min(rows.len()));
    }
    examples.sort_by_key(|example| std::cmp::Reverse(example.tokens.len()));
    for batch in batches(&examples, settings.batch_tokens, |example| example.tokens.len()) {
        stop::check()?;
        tally.examples(model, batch)?;
        observe(tally.rows.min(rows.len())); // A row may give several examples.
    }
    let seconds = started.elapsed().as_secs_f64();
    for (row, text) in texts.iter().take(settings.generate_rows) {
        stop::check()?;
        tally.reply(model, encoder, *row, text, settings)?;
    }
    let share = |hits: usize| (tally.asked > 0).then(|| hits as f64 / tally.asked as f64);
    let interval = |hits: usize| (tally.asked > 0).then(|| wilson(hits, tally.asked));
    let mean = |sum: f64| (!tally.generated.is_empty()).then(|| sum / tally.generated.len() as f64);
    tally.answers.sort_by_key(|answer| answer.row);
    let report = EvalReport {
        rows: rows.len(),
        cut_rows,
        acc: share(tally.hits),
        acc_interval: interval(tally.hits),
        acc_norm: share(tally.hits_by_bytes),
        acc_norm_interval: interval(tally.hits_by_bytes),
        majority: share(tally.positions.iter().copied().max().unwrap_or(0)),
        perplexity: Some(perplexity(tally.negative_log_likelihood, tally.labelled))
            .filter(|value| value.is_finite()),
        labelled_tokens: tally.labelled,
        exact_match: mean(tally.exact as f64),
        rouge: mean(1.0).map(|_| tally.mean_rouge()),
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
    Ok(Evaluated { report, answers: tally.answers })
}

/// Runs of items with at most so many tokens together, or one item.
fn batches<T>(
    items: &[T],
    most: usize,
    tokens: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |item: &&T| {
            sum += tokens(item);
            sum <= most
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, after) = rest.split_at(count);
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

fn question_tokens(question: &Question) -> usize {
    question.prompt.len() + question.choices.iter().map(Vec::len).sum::<usize>()
}

/// The log-likelihoods of a pack's labelled tokens, all of them numbers.
fn log_likelihoods(model: &Model, packed: &Packed) -> Result<Vec<f32>> {
    let found = values(&model.log_likelihoods(packed)?)?;
    match found.iter().any(|value| value.is_nan()) {
        true => Err(FinetuneError::NotANumber),
        false => Ok(found),
    }
}

/// Whether the right reply begins with the tokens of the right choice.
fn continues(question: &Question) -> bool {
    question.choices.get(question.answer).is_some_and(|choice| question.reply.starts_with(choice))
}

#[derive(Default)]
struct Tally {
    rows: usize,
    asked: usize,
    hits: usize,
    hits_by_bytes: usize,
    /// How often each position is the right one.
    positions: Vec<usize>,
    answers: Vec<Answer>,
    negative_log_likelihood: f64,
    labelled: usize,
    tokens: usize,
    exact: usize,
    rouge: Vec<RougeScores>,
    generated: Vec<GeneratedText>,
    new_tokens: usize,
    generate_seconds: f64,
}

impl Tally {
    fn questions(&mut self, model: &Model, batch: &[(usize, Question)]) -> Result<()> {
        // The right reply with its end-of-turn token goes along, for its perplexity: in place of the
        // right choice, which it begins with, or, where its tokens are others, as one more branch.
        let with_reply: Vec<Question> = batch
            .iter()
            .map(|(_, question)| {
                let mut question = question.clone();
                match continues(&question) {
                    true => question.choices[question.answer].clone_from(&question.reply),
                    false => question.choices.push(question.reply.clone()),
                }
                question
            })
            .collect();
        let packed = Packed::questions(&with_reply.iter().collect::<Vec<_>>(), model.device)?;
        let found = log_likelihoods(model, &packed)?;
        let mut found = found.iter().map(|&value| f64::from(value));
        for (row, question) in batch {
            let (mut of_reply, shared) = (None, continues(question));
            let scores: Vec<ChoiceScore> = question
                .choices
                .iter()
                .zip(&question.size_bytes)
                .enumerate()
                .map(|(number, (choice, &size_bytes))| {
                    let log_likelihood = found.by_ref().take(choice.len()).sum();
                    if shared && number == question.answer {
                        let rest = question.reply.len() - choice.len();
                        of_reply = Some(log_likelihood + found.by_ref().take(rest).sum::<f64>());
                    }
                    ChoiceScore { log_likelihood, size_bytes }
                })
                .collect();
            let of_reply =
                of_reply.unwrap_or_else(|| found.by_ref().take(question.reply.len()).sum());
            self.negative_log_likelihood -= of_reply;
            self.labelled += question.reply.len();
            self.asked += 1;
            let answer = question.answer;
            if let (Some(chosen), Some(by_bytes)) = (pick(&scores), pick_by_bytes(&scores)) {
                self.hits += usize::from(chosen == answer);
                self.hits_by_bytes += usize::from(by_bytes == answer);
                self.answers.push(Answer {
                    row: *row,
                    log_likelihoods: scores.iter().map(|choice| choice.log_likelihood).collect(),
                    chosen,
                    chosen_by_bytes: by_bytes,
                    answer,
                    right: chosen == answer,
                });
            }
            if self.positions.len() <= answer {
                self.positions.resize(answer + 1, 0);
            }
            self.positions[answer] += 1;
        }
        self.rows += batch.len();
        self.tokens += packed.num_tokens();
        Ok(())
    }

    fn examples(&mut self, model: &Model, batch: &[Example]) -> Result<()> {
        let packed = Packed::examples_rounded(&batch.iter().collect::<Vec<_>>(), model.device)?;
        if packed.num_predicted() > 0 {
            let found = log_likelihoods(model, &packed)?;
            self.negative_log_likelihood -= found.iter().map(|&x| f64::from(x)).sum::<f64>();
            self.labelled += found.len();
        }
        self.rows += batch.len();
        self.tokens += packed.num_tokens();
        Ok(())
    }

    fn reply(
        &mut self,
        model: &Model,
        encoder: &Encoder,
        number: usize,
        chat: &Chat,
        settings: &EvalSettings,
    ) -> Result<()> {
        let Some((last, asked)) = chat.messages.split_last() else { return Ok(()) };
        let asked = Chat { messages: asked.to_vec(), tools: chat.tools.clone() };
        let mut prompt = encoder.prompt(&asked)?;
        // The end is what is asked; a prompt that is too long loses its beginning.
        prompt.drain(..prompt.len().saturating_sub(settings.max_tokens.max(1)));
        let reply = generate(model, &prompt, settings.max_new_tokens, &mut |_| {})?;
        self.new_tokens += reply.tokens.len();
        self.generate_seconds += reply.seconds;
        let text = encoder.text(&reply.tokens, true)?;
        self.exact += usize::from(exact_match(&text, last.text()));
        self.rouge.push(rouge(&text, last.text()));
        self.generated.push(GeneratedText { row: number, text, reference: last.text().to_owned() });
        Ok(())
    }

    fn mean_rouge(&self) -> RougeScores {
        let mean = |pick: fn(&RougeScores) -> f64| {
            self.rouge.iter().map(pick).sum::<f64>() / self.rouge.len().max(1) as f64
        };
        RougeScores {
            rouge1: mean(|scores| scores.rouge1),
            rouge2: mean(|scores| scores.rouge2),
            rouge_l: mean(|scores| scores.rouge_l),
        }
    }
}
