//! Greedy generation with a key-value cache.

use std::time::Instant;

use tch::no_grad_guard;

use crate::decoder::KvCache;
use crate::pack::Packed;
use crate::{FinetuneError, Model, Result};

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
    if prompt.is_empty() {
        return Err(FinetuneError::Settings("the prompt has no tokens".into()));
    }
    let _guard = no_grad_guard();
    let started = Instant::now();
    let mut cache = KvCache::default();
    let mut next = likeliest(model, prompt, &mut cache)?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut tokens = Vec::new();
    while tokens.len() < max_new {
        tokens.push(next);
        observe(next);
        if model.config().eos_tokens.contains(&next) || tokens.len() == max_new {
            break;
        }
        // The keys in the cache were rotated as those of a shorter row.
        next = if model.turns_at(prompt.len() + tokens.len()) {
            cache = KvCache::default();
            likeliest(model, &[prompt, &tokens].concat(), &mut cache)?
        } else {
            likeliest(model, &[next], &mut cache)?
        };
    }
    Ok(Generation { tokens, prompt_seconds, seconds: started.elapsed().as_secs_f64() })
}

fn likeliest(model: &Model, tokens: &[u32], cache: &mut KvCache) -> Result<u32> {
    let batch = Packed::continuation(tokens, cache.len(), model.device)?;
    let hidden = model.hidden_cached(&batch, cache)?.f_index_select(0, &batch.predict)?;
    let (logit, token) = model.head().logits(&hidden)?.f_max_dim(-1, false)?;
    // The largest of numbers of which one is NaN is NaN, and where it stands says nothing.
    match logit.f_double_value(&[0])?.is_finite() {
        true => Ok(token.f_int64_value(&[0])? as u32),
        false => Err(FinetuneError::NotANumber),
    }
}
