//! Greedy generation with a key-value cache, of one row or of several side by side.

use std::time::Instant;

use tch::{Device, no_grad_guard};

use crate::bridge::values;
use crate::decoder::{Frozen, KvCache};
use crate::pack::Packed;
use crate::weight::Rounding;
use crate::{FinetuneError, Model, Result, stop};

/// Rows that [`generate_all`] continues side by side on a CPU: so many read each weight once, and their caches stay small beside
/// the weights.
pub const SIDE_BY_SIDE: usize = 8;
/// The same on a GPU, which takes as long for many as for one, if their caches stay small.
const SIDE_BY_SIDE_ON_GPU: usize = 64;
/// Tokens of the prompts that go through the model there in one pass, if a prompt is not longer.
const PROMPT_TOKENS_ON_GPU: usize = 1 << 11;
/// Caches may have one part in so many of the weights' size there.
const CACHES: u64 = 4;

/// What [`generate`] said, and how fast.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The new tokens, the one that ended the reply included.
    pub tokens: Vec<u32>,
    /// Seconds for the prompt.
    pub prompt_seconds: f64,
    /// Seconds for the new tokens.
    pub seconds: f64,
}

/// Continues `prompt` with the likeliest token each time, until an end-of-turn token of the model
/// or `max_new` tokens. `observe` sees each new token.
///
/// # Errors
///
/// If the prompt is empty, the model's weights or sums are not finite, or libtorch refuses, as when
/// memory runs out.
pub fn generate(
    model: &Model,
    prompt: &[u32],
    max_new: usize,
    observe: &mut dyn FnMut(u32),
) -> Result<Generation> {
    let _guard = no_grad_guard();
    let started = Instant::now();
    let mut row = Growing::new(prompt, max_new)?;
    grow(model, &mut [&mut row])?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    while let Some(token) = row.take(model) {
        observe(token);
        if row.goes_on {
            grow(model, &mut [&mut row])?;
        }
    }
    Ok(Generation { tokens: row.tokens, prompt_seconds, seconds: started.elapsed().as_secs_f64() })
}

/// The new tokens that [`generate`] gives for each of several prompts, which are continued [`SIDE_BY_SIDE`] at a time, on a GPU
/// more, so that each step reads the weights once for all of them. In types that round, sums of several rows may round otherwise than those of one, and
/// a token that is as likely as another may be the other.
///
/// # Errors
///
/// As [`generate`]; [`FinetuneError::StoppedUnsaved`] if a person asks to stop.
pub fn generate_all(model: &Model, prompts: &[Vec<u32>], max_new: usize) -> Result<Vec<Vec<u32>>> {
    let _guard = no_grad_guard();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + max_new;
    let together = side_by_side(model, longest);
    let mut found = Vec::with_capacity(prompts.len());
    for prompts in prompts.chunks(together) {
        let rows = prompts.iter().map(|prompt| Growing::new(prompt, max_new));
        let mut rows = rows.collect::<Result<Vec<_>>>()?;
        // On a CPU a prompt has enough tokens to itself.
        let most = if model.device().is_cuda() { PROMPT_TOKENS_ON_GPU } else { 0 };
        let mut waiting = rows.as_mut_slice();
        while !waiting.is_empty() {
            let (now, later) = waiting.split_at_mut(fitting(waiting, most));
            grow(model, &mut now.iter_mut().collect::<Vec<_>>())?;
            waiting = later;
        }
        loop {
            stop::check()?;
            for row in &mut rows {
                row.take(model);
            }
            let mut going: Vec<_> = rows.iter_mut().filter(|row| row.goes_on).collect();
            if going.is_empty() {
                break;
            }
            grow(model, &mut going)?;
        }
        found.extend(rows.into_iter().map(|row| row.tokens));
    }
    Ok(found)
}

/// How many rows of so many tokens are continued at a time.
fn side_by_side(model: &Model, tokens: usize) -> usize {
    let config = model.config();
    if model.turns_somewhere() {
        return 1; // One rotation is for all rows of a pass.
    }
    // Weights in four bits, or elsewhere, say nothing of the room that there is.
    if !model.device().is_cuda() || model.frozen != Frozen::Resident(Rounding::NONE) {
        return SIDE_BY_SIDE;
    }
    let numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens.max(1);
    let most = config.parameters() / (CACHES * numbers as u64);
    (most as usize).clamp(SIDE_BY_SIDE, SIDE_BY_SIDE_ON_GPU)
}

/// How many prompts, from the first on, have at most so many tokens together; one at least.
fn fitting(rows: &[Growing<'_>], most: usize) -> usize {
    let mut tokens = 0;
    let fits = |row: &&Growing<'_>| {
        tokens += row.prompt.len();
        tokens <= most
    };
    rows.iter().take_while(fits).count().max(1)
}

/// A prompt, and what has followed so far.
struct Growing<'a> {
    prompt: &'a [u32],
    tokens: Vec<u32>,
    /// The most tokens there may be.
    most: usize,
    /// Of all of these but the last.
    cache: KvCache,
    /// The likeliest next token, once it is known.
    next: Option<u32>,
    goes_on: bool,
}

impl<'a> Growing<'a> {
    fn new(prompt: &'a [u32], most: usize) -> Result<Self> {
        if prompt.is_empty() {
            return Err(FinetuneError::Settings("the prompt has no tokens".into()));
        }
        let (tokens, cache) = (Vec::new(), KvCache::default());
        Ok(Self { prompt, tokens, most, cache, next: None, goes_on: most > 0 })
    }

    /// Takes the likeliest next token, if there is room for it.
    fn take(&mut self, model: &Model) -> Option<u32> {
        let next = self.next.take().filter(|_| self.goes_on)?;
        self.tokens.push(next);
        self.goes_on = self.tokens.len() < self.most && !model.config().eos_tokens.contains(&next);
        if !self.goes_on {
            self.cache = KvCache::default();
        }
        Some(next)
    }

    /// The tokens that the cache does not hold. Where all are rotated otherwise by their number, it holds none.
    fn fresh(&mut self, model: &Model) -> Vec<u32> {
        if model.turns_at(self.prompt.len() + self.tokens.len()) {
            self.cache = KvCache::default();
        }
        match self.tokens.last() {
            Some(&last) if !self.cache.is_empty() => vec![last],
            _ => [self.prompt, &self.tokens].concat(),
        }
    }
}

/// Finds the likeliest next token of each row.
fn grow(model: &Model, rows: &mut [&mut Growing<'_>]) -> Result<()> {
    let fresh: Vec<Vec<u32>> = rows.iter_mut().map(|row| row.fresh(model)).collect();
    let starts = rows.iter().zip(&fresh).map(|(row, fresh)| (row.cache.len(), fresh.as_slice()));
    let batch = Packed::continuations(&starts.collect::<Vec<_>>(), model.device)?;
    let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    let hidden = model.hidden_cached(&batch, &mut caches)?.f_index_select(0, &batch.predict)?;
    let (logits, tokens) = model.head().logits(&hidden)?.f_max_dim(-1, false)?;
    // The largest of numbers of which one is NaN is NaN, and where it stands says nothing.
    if values(&logits)?.iter().any(|logit| !logit.is_finite()) {
        return Err(FinetuneError::NotANumber);
    }
    let tokens = Vec::<i64>::try_from(tokens.f_to_device(Device::Cpu)?)?;
    for (row, token) in rows.iter_mut().zip(tokens) {
        row.next = Some(token as u32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_go_together_while_they_fit() {
        let prompts = [3, 2, 9, 1].map(|length| vec![0; length]);
        let rows = prompts.each_ref().map(|prompt| Growing::new(prompt, 1).unwrap());
        let counts = [0, 5, 6, 14, 99].map(|most| fitting(&rows, most));
        assert_eq!(counts, [1, 2, 2, 3, 4]);
        assert_eq!(fitting(&rows[2..], 5), 1);
    }
}
