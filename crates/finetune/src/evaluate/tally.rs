//! What a model says of rows, counted as it goes.

use std::collections::BTreeMap;
use std::time::Instant;

use dataset::{Chat, Encoder, Example, Question};
use metrics::{ChoiceScore, RougeScores, exact_match, pick, pick_by_bytes, rouge};

use super::rows::EvalRows;
use super::{Answer, EvalSettings, GeneratedText, RowLoss};
use crate::bridge::values;
use crate::pack::Packed;
use crate::stop;
use crate::{FinetuneError, Model, Result, generate_all};

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

/// A row to be replied to.
#[derive(Clone, Copy)]
pub(super) struct RowText<'a> {
    /// Counted from 1.
    pub(super) row: usize,
    pub(super) chat: &'a Chat,
}

#[derive(Default)]
pub(super) struct Tally {
    pub(super) rows: usize,
    pub(super) asked: usize,
    pub(super) hits: usize,
    pub(super) hits_by_bytes: usize,
    /// How often each position is the right one.
    pub(super) positions: Vec<usize>,
    pub(super) answers: Vec<Answer>,
    pub(super) negative_log_likelihood: f64,
    pub(super) labelled: usize,
    /// Of each row, by its number.
    pub(super) losses: BTreeMap<usize, RowLoss>,
    pub(super) tokens: usize,
    pub(super) exact: usize,
    pub(super) rouge: Vec<RougeScores>,
    pub(super) generated: Vec<GeneratedText>,
    pub(super) new_tokens: usize,
    pub(super) generate_seconds: f64,
}

impl Tally {
    /// Counts what a model says of rows, so many tokens at a time. `observe` sees how many examples and questions
    /// are done.
    pub(super) fn see(
        &mut self,
        model: &Model,
        rows: &EvalRows,
        batch_tokens: usize,
        observe: &mut dyn FnMut(usize),
    ) -> Result<()> {
        for batch in rows.question_batches(batch_tokens) {
            stop::check()?;
            self.questions(model, batch)?;
            observe(self.rows);
        }
        for batch in rows.example_batches(batch_tokens) {
            stop::check()?;
            self.examples(model, batch)?;
            observe(self.rows);
        }
        Ok(())
    }

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
            self.count(*row, -of_reply, question.reply.len());
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

    fn examples(&mut self, model: &Model, batch: &[(usize, Example)]) -> Result<()> {
        let examples: Vec<&Example> = batch.iter().map(|(_, example)| example).collect();
        let packed = Packed::examples_rounded(&examples, model.device)?;
        if packed.num_predicted() > 0 {
            let found = log_likelihoods(model, &packed)?;
            let mut found = found.iter().map(|&value| f64::from(value));
            for (row, example) in batch {
                let count = example.labelled.iter().filter(|&&labelled| labelled).count();
                self.count(*row, -found.by_ref().take(count).sum::<f64>(), count);
            }
        }
        self.rows += batch.len();
        self.tokens += packed.num_tokens();
        Ok(())
    }

    fn count(&mut self, row: usize, nats: f64, tokens: usize) {
        self.negative_log_likelihood += nats;
        self.labelled += tokens;
        let loss = self.losses.entry(row).or_insert(RowLoss { row, nats: 0.0, tokens: 0 });
        loss.nats += nats;
        loss.tokens += tokens;
    }

    /// Generates replies to rows, and counts how like they are to those of the rows.
    pub(super) fn replies(
        &mut self,
        model: &Model,
        encoder: &Encoder,
        texts: &[RowText<'_>],
        settings: &EvalSettings,
    ) -> Result<()> {
        let (mut prompts, mut references) = (Vec::new(), Vec::new());
        for RowText { row, chat } in texts {
            let Some((last, asked)) = chat.messages.split_last() else { continue };
            let asked = Chat { messages: asked.to_vec(), tools: chat.tools.clone() };
            let mut prompt = encoder.prompt(&asked)?;
            // The end is what is asked; a prompt that is too long loses its beginning.
            prompt.drain(..prompt.len().saturating_sub(settings.max_tokens.max(1)));
            prompts.push(prompt);
            references.push((*row, last.text()));
        }
        let started = Instant::now();
        let replies = generate_all(model, &prompts, settings.max_new_tokens)?;
        self.generate_seconds += started.elapsed().as_secs_f64();
        for (tokens, (row, reference)) in replies.iter().zip(references) {
            self.new_tokens += tokens.len();
            let text = encoder.text(tokens, true)?;
            self.exact += usize::from(exact_match(&text, reference));
            self.rouge.push(rouge(&text, reference));
            self.generated.push(GeneratedText { row, text, reference: reference.to_owned() });
        }
        Ok(())
    }

    pub(super) fn mean_rouge(&self) -> RougeScores {
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
