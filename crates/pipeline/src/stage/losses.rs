//! What is lost on rows: with layers skipped, for selectors that want it, and with a repair, to judge it.

use std::path::Path;

use ::finetune::{Discrepancy, FinetuneError, Model, Origin, SkipProbe};
use dataset::{Example, Sampler};
use evidence::LossProbe;

use super::{BATCH_TOKENS, StageContext, StateOf, load};
use crate::{ComputeSettings, Event, HeldOut, Result};

/// What losses are computed of.
#[derive(Debug, Clone, Copy)]
pub struct LossesOf<'a> {
    /// Tokens of a row at most.
    pub max_tokens: usize,
    /// The adapters that the model has by then; none if it is to have none.
    pub adapters: Option<StateOf<'a>>,
}

/// Rows that losses are computed on, if none are held out for them.
pub(crate) const LOSS_ROWS: usize = HeldOut::MOST;
/// Rows that repairs are judged on at most: whether less is lost with one is seen on few.
pub(crate) const JUDGED_ROWS: usize = 32;

/// Hands losses with layers skipped to `choose` (method.md §3): of the dense model, on the rows held out, or, if
/// none are, on 128 of those trained on.
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
    with_dense(context, of, usize::MAX, observe, |model, rows| {
        choose(&mut SkipProbe::new(model, rows, BATCH_TOKENS)?)
    })
}

/// What is lost with pruned models, on the rows of [`with_losses`].
#[derive(Debug)]
pub struct Judge<'a> {
    rule: Discrepancy<'a>,
    compute: &'a ComputeSettings,
}

impl Judge<'_> {
    /// `D` where only these layers of the dense model are left, as they are.
    ///
    /// # Errors
    ///
    /// If libtorch refuses, or it is not finite.
    pub fn of_layers(&self, layers: &[usize]) -> Result<f64> {
        Ok(self.rule.of_layers(layers)?)
    }

    /// `D` of a pruned checkpoint; `None` if it is not finite, as where its repair overflows.
    ///
    /// # Errors
    ///
    /// If the model cannot be used.
    pub fn of_model(&self, folder: &Path, origin: &Origin<'_>) -> Result<Option<f64>> {
        match self.rule.of(load(folder, self.compute)?, origin) {
            Ok(found) => Ok(Some(found)),
            Err(FinetuneError::NotANumber) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Hands a judge of pruned models to `judge` (method.md §8), on 32 of the rows of [`with_losses`] at most.
///
/// # Errors
///
/// If the dense model or the rows cannot be used, or `judge` fails.
pub fn with_judge<T>(
    context: StageContext<'_>,
    of: LossesOf<'_>,
    observe: &mut dyn FnMut(Event),
    judge: impl FnOnce(&Judge<'_>) -> Result<T>,
) -> Result<T> {
    let compute = context.compute;
    with_dense(context, of, JUDGED_ROWS, observe, |model, rows| {
        let rule = Discrepancy::new(model, rows, BATCH_TOKENS)?;
        judge(&Judge { rule, compute })
    })
}

/// Hands the dense model and the rows that losses are computed on to `with`, at most so many.
fn with_dense<T>(
    context: StageContext<'_>,
    of: LossesOf<'_>,
    most: usize,
    observe: &mut dyn FnMut(Event),
    with: impl FnOnce(&Model, &[&Example]) -> Result<T>,
) -> Result<T> {
    let LossesOf { max_tokens, adapters } = of;
    let (rows, most) = match context.held_out_examples(max_tokens)? {
        Some(held_out) => (held_out, most),
        None => (context.training_examples(max_tokens)?, most.min(LOSS_ROWS)),
    };
    let examples = &rows.examples;
    // From the end, since what repairs are fitted on comes from the beginning.
    let order = Sampler::new(examples.len(), examples.len(), context.seed).epoch(0);
    let rows: Vec<&Example> =
        order.into_iter().rev().take(most).map(|number| &examples[number]).collect();
    let model = context.load_dense(adapters)?;
    observe(Event::Computing(context.compute.computing()?));
    with(&model, &rows)
}
