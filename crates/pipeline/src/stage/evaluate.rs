//! Evaluation of a model's folder.

use std::path::Path;

use ::finetune::{EvalData, Evaluated, evaluate};

use super::{StageContext, load_adapted};
use crate::{EvaluationSettings, Event, Result};

/// Evaluates a model folder, with an adapter on it if one is given, on data.
///
/// # Errors
///
/// If the model, the adapter or the data cannot be used.
pub fn evaluate_model(
    context: StageContext<'_>,
    adapter: Option<&Path>,
    settings: &EvaluationSettings,
    observe: &mut dyn FnMut(Event),
) -> Result<Evaluated> {
    let mut rows = context.all_rows()?;
    rows.truncate(settings.max_rows.unwrap_or(usize::MAX));
    let encoder = context.encoder()?;
    let loaded = load_adapted(context.model, adapter, context.compute)?;
    observe(Event::Computing(context.compute.computing()?));
    let total = rows.len();
    let data = EvalData { encoder: &encoder, rows: &rows };
    Ok(evaluate(&loaded, data, &settings.parse(), &mut |done| {
        observe(Event::Rows { done, total });
    })?)
}
