//! Losses with layers skipped, for selectors that want them.

use ::finetune::SkipProbe;
use dataset::{Example, Sampler};
use evidence::LossProbe;

use super::{BATCH_TOKENS, StageContext, StateOf, read_encoder};
use crate::{Event, HeldOut, Result};

/// What losses with layers skipped are computed of.
#[derive(Debug, Clone, Copy)]
pub struct LossesOf<'a> {
    /// Tokens of a row at most.
    pub max_tokens: usize,
    /// The adapters that the model has by then; none if it is to have none.
    pub adapters: Option<StateOf<'a>>,
}

/// Rows that losses are computed on, if none are held out for them.
pub(crate) const LOSS_ROWS: usize = HeldOut::MOST;

/// Hands losses with layers skipped to `choose` (method.md §3): of the dense model, on the rows held out, or, if
/// none are, on the first 128.
///
/// # Errors
///
/// If the model or the rows cannot be used, or `choose` fails.
pub fn with_losses<T>(
    context: StageContext<'_>,
    of: LossesOf<'_>,
    observe: &mut dyn FnMut(Event),
    choose: impl FnOnce(&mut dyn LossProbe) -> Result<T>,
) -> Result<T> {
    let LossesOf { max_tokens, adapters } = of;
    let (train, held_out) = context.rows()?;
    let encoder = read_encoder(context.model)?;
    let trained_on = encoder.examples(&train, max_tokens)?;
    let (of_held_out, most) = match held_out.is_empty() {
        true => (None, LOSS_ROWS),
        false => (Some(encoder.examples(&held_out, max_tokens)?), usize::MAX),
    };
    let examples = &of_held_out.as_ref().unwrap_or(&trained_on).examples;
    let order = Sampler::new(examples.len(), examples.len(), context.seed).epoch(0);
    let rows: Vec<&Example> =
        order.into_iter().take(most).map(|number| &examples[number]).collect();
    let model = context.load_dense(adapters, &trained_on)?;
    observe(Event::Computing(context.compute.computing()?));
    let mut probe = SkipProbe::new(&model, &rows, BATCH_TOKENS)?;
    choose(&mut probe)
}
