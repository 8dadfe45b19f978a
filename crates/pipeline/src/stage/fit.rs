//! Linear maps in the place of runs of pruned layers.

use std::path::Path;

use ::finetune::{MapSettings, fit_linear_maps};
use checkpoint::ModelConfig;
use dataset::{Encoded, Example, Sampler};
use repair::{FittedRun, MapsHeader, MapsWriter};
use selection::Plan;

use super::{BATCH_TOKENS, StageContext, StateOf, read_encoder};
use crate::{Event, LinearMapSettings, PipelineError, Result};

/// What [`fit_maps`] fits, and where to.
#[derive(Debug, Clone, Copy)]
pub struct MapsTarget<'a> {
    /// Whose runs of pruned layers are replaced.
    pub plan: &'a Plan,
    /// What the maps call the model.
    pub model_name: &'a str,
    /// Tokens of a row at most.
    pub max_tokens: usize,
    /// The adapters that the model has by then; none if it is to have none.
    pub adapters: Option<StateOf<'a>>,
    /// Folder for the maps.
    pub target: &'a Path,
}

/// Fits a linear map in the place of each run of pruned layers (method.md §8).
///
/// A run that begins at layer 0 has no layer before it to take a map in, and is left without.
///
/// # Errors
///
/// If the model, the rows or the state cannot be used, states overflow, or the disk refuses.
pub fn fit_maps(
    context: StageContext<'_>,
    settings: &LinearMapSettings,
    target: MapsTarget<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<MapsHeader> {
    let MapsTarget { plan, model_name, max_tokens, adapters, target } = target;
    plan.require_layers(ModelConfig::read(context.model)?.num_layers)?;
    let (rows, _) = context.rows()?;
    let examples = read_encoder(context.model)?.examples(&rows, max_tokens)?;
    let calibration = first_examples(&examples, context.seed, settings.tokens);
    let loaded = context.load_dense(adapters, &examples)?;
    observe(Event::Computing(context.compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let sources = context.sources(model_name, rows.len())?;
    let runs = plan.runs();
    if let Some((None, run)) = runs.first() {
        tracing::warn!(
            layers = ?run,
            "no layer stands before these to take a linear map in; they are dropped without one"
        );
    }
    let settings_of_maps = MapSettings { runs, ridge: settings.ridge, batch_tokens: BATCH_TOKENS };
    let header = MapsHeader::new(plan, loaded.config().hidden_size, settings.ridge, sources);
    let mut writer = MapsWriter::create(target, plan, header)?;
    let tokens = fit_linear_maps(&loaded, &calibration, &settings_of_maps, &mut |map| {
        let run = FittedRun {
            receiver: map.receiver,
            first: *map.run.start(),
            last: *map.run.end(),
            error_before: map.error_before,
            error_after: map.error_after,
        };
        writer.write(run, &map.matrix)?;
        observe(Event::Fitted(run));
        Ok::<_, PipelineError>(())
    })?;
    Ok(writer.finish(tokens)?)
}

/// The first examples in the order of training that have so many tokens together; all of them if they have fewer.
fn first_examples(examples: &Encoded, seed: u64, tokens: usize) -> Vec<&Example> {
    let all = &examples.examples;
    let mut seen = 0;
    let order = Sampler::new(all.len(), all.len(), seed).epoch(0);
    order
        .into_iter()
        .map(|number| &all[number])
        .take_while(|example| {
            let wanted = seen < tokens;
            seen += example.tokens.len();
            wanted
        })
        .collect()
}
