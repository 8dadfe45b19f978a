//! What a plan's repair is fitted on rows: linear maps, scales or retrained layers.

use std::path::Path;

use ::finetune::{
    MapSettings, Model, ReconstructSettings, ScaleSettings, fit_linear_maps, measure_scales,
    reconstruct,
};
use checkpoint::{DataSource, ModelConfig, ModelSource, Norms};
use dataset::{Encoded, Example, Sampler};
use repair::{
    Cut, FittedRun, MapsHeader, MapsWriter, Measured, ReconstructedHeader, ReconstructedWriter,
    Retraining, Scales,
};
use selection::{Plan, Repair, RepairNeed};

use super::{BATCH_TOKENS, StageContext, StateOf};
use crate::{Choosing, Event, LinearMapSettings, PipelineError, Result};

/// Steps that a layer is retrained for.
pub(crate) const RETRAINING_STEPS: usize = 300;
/// The learning rate of the first of them.
pub(crate) const RETRAINING_RATE: f64 = 1e-4;

/// What [`fit_repair`] fits, and where to.
#[derive(Debug, Clone, Copy)]
pub struct FitTarget<'a> {
    /// Whose repair it is.
    pub plan: &'a Plan,
    /// What the result calls the model.
    pub model_name: &'a str,
    /// Tokens of a row at most.
    pub max_tokens: usize,
    /// The adapters that the model has by then; none if it is to have none.
    pub adapters: Option<StateOf<'a>>,
    /// Folder for the result.
    pub target: &'a Path,
}

/// What [`fit_repair`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitted {
    /// For how many runs of pruned layers.
    pub runs: usize,
    /// On how many tokens.
    pub tokens: usize,
}

/// Fits what the plan's repair needs on training rows (method.md §8): a linear map in the place of each run of pruned
/// layers, the scale of each cut, or the layer before each run retrained. The name of the folder for it is
/// [`fit_name`]'s.
///
/// A run that begins at layer 0 has no layer before it to take a map in or to be retrained, and is left without.
///
/// # Errors
///
/// If the model, the rows or the state cannot be used, states overflow, the plan's repair is not fitted, or the disk
/// refuses.
pub fn fit_repair(
    context: StageContext<'_>,
    settings: &LinearMapSettings,
    target: FitTarget<'_>,
    observe: &mut dyn FnMut(Event),
) -> Result<Fitted> {
    let FitTarget { plan, model_name, max_tokens, adapters, target } = target;
    let config = ModelConfig::read(context.model)?;
    plan.require_layers(config.num_layers)?;
    require_foldable(plan.repair(), &config)?;
    let examples = context.training_examples(max_tokens)?;
    let loaded = context.load_dense(adapters)?;
    observe(Event::Computing(context.compute.computing()?));
    observe(Event::Encoded(examples.counts));
    let (model, data) = context.sources(model_name, examples.counts.rows)?;
    if let Some((None, run)) = plan.runs().first()
        && plan.repair() != Repair::Scale
    {
        tracing::warn!(
            layers = ?run,
            repair = %plan.repair(),
            "no layer stands before these to be repaired; they are dropped without"
        );
    }
    let fit = Fit {
        plan,
        model: &loaded,
        rows: first_examples(
            &examples,
            context.seed,
            settings.tokens_for(loaded.config().hidden_size),
        ),
        sources: Sources { model, data },
        target,
    };
    match plan.repair() {
        Repair::LinearMap => fit.maps(settings.ridge, observe),
        Repair::Scale => fit.scales(observe),
        Repair::Reconstruct => fit.layers(observe),
        other => {
            Err(PipelineError::Settings(format!("the repair `{other}` is not fitted on rows")))
        }
    }
}

/// Refuses a repair that is folded into a weight whose output goes through a norm before it is added: what is folded in
/// would be normalised away.
///
/// # Errors
///
/// [`PipelineError::Settings`] with the repairs that apply.
pub(crate) fn require_foldable(repair: Repair, config: &ModelConfig) -> Result<()> {
    let is_folded = matches!(repair, Repair::LinearMap | Repair::Scale);
    if !is_folded || config.design.norms == Norms::Before {
        return Ok(());
    }
    let family = config.family.name();
    Err(PipelineError::Settings(format!(
        "models of the family {family} normalise what their layers add, so `{repair}` cannot be folded in; take --repair drop, or \
         reconstruct, same-sign, weighted or laco, and layers by another criterion than linear-fit, such as --criterion \
         best:igia+greedy"
    )))
}

/// Refuses `linear-fit` for layers whose maps it cannot judge by, as [`require_foldable`] refuses these.
pub(crate) fn require_judged(choosing: &Choosing, config: &ModelConfig) -> Result<()> {
    let by_maps = choosing.criteria().iter().any(|criterion| criterion.name() == "linear-fit");
    if !by_maps || config.design.norms == Norms::Before {
        return Ok(());
    }
    let family = config.family.name();
    Err(PipelineError::Settings(format!(
        "models of the family {family} normalise what their layers add, so `{choosing}` cannot judge them by linear maps, as \
         linear-fit does; take another criterion, such as --criterion best:igia+greedy"
    )))
}

/// What the folder of a repair's fit is called; `None` if it has none.
pub fn fit_name(repair: Repair) -> Option<&'static str> {
    match repair {
        Repair::Scale => Some("scales"),
        Repair::Reconstruct => Some("reconstructed"),
        other => other.needs(RepairNeed::Fit).then_some("maps"),
    }
}

/// Whose layers, and which rows.
struct Sources {
    model: ModelSource,
    data: DataSource,
}

/// A plan's fit on calibration rows.
struct Fit<'a> {
    plan: &'a Plan,
    model: &'a Model,
    rows: Vec<&'a Example>,
    sources: Sources,
    target: &'a Path,
}

impl Fit<'_> {
    fn maps(self, ridge: f64, observe: &mut dyn FnMut(Event)) -> Result<Fitted> {
        let Self { plan, model, rows, sources, target } = self;
        let settings = MapSettings { runs: plan.runs(), ridge, batch_tokens: BATCH_TOKENS };
        let (side, sources) = (model.config().hidden_size, (sources.model, sources.data));
        let header = MapsHeader::new(plan, side, ridge, sources);
        let mut writer = MapsWriter::create(target, plan, header)?;
        let tokens = fit_linear_maps(model, &rows, &settings, &mut |map| {
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
        let MapsHeader { runs, .. } = writer.finish(tokens)?;
        Ok(Fitted { runs: runs.len(), tokens })
    }

    fn scales(self, observe: &mut dyn FnMut(Event)) -> Result<Fitted> {
        let Self { plan, model, rows, sources, target } = self;
        let runs = plan.runs().into_iter().map(|(_, run)| run).collect();
        let settings = ScaleSettings { runs, batch_tokens: BATCH_TOKENS };
        let found = measure_scales(model, &rows, &settings)?;
        let cut = |scale: &::finetune::RunScale| Cut {
            first: *scale.run.start(),
            last: *scale.run.end(),
            factor: scale.factor,
        };
        let cuts: Vec<Cut> = found.runs.iter().map(cut).collect();
        for &cut in &cuts {
            observe(Event::Scaled(cut));
        }
        let Sources { model: of, data } = sources;
        let (hidden_size, tokens) = (model.config().hidden_size, found.tokens);
        let runs = cuts.len();
        let measured = Measured { hidden_size, tokens, model: of, data, cuts };
        Scales::new(plan, measured)?.write(target)?;
        Ok(Fitted { runs, tokens })
    }

    fn layers(self, observe: &mut dyn FnMut(Event)) -> Result<Fitted> {
        let Self { plan, model, rows, sources, target } = self;
        let (steps, rate) = (RETRAINING_STEPS, RETRAINING_RATE);
        let settings =
            ReconstructSettings { runs: plan.runs(), steps, rate, batch_tokens: BATCH_TOKENS };
        let Sources { model: of, data } = sources;
        let by = Retraining { steps, rate, model: of, data };
        let header = ReconstructedHeader::new(plan, model.config().hidden_size, by);
        let mut writer = ReconstructedWriter::create(target, plan, model.config(), header)?;
        let tokens = reconstruct(model, &rows, &settings, &mut |layer| {
            let run = FittedRun {
                receiver: layer.receiver,
                first: *layer.run.start(),
                last: *layer.run.end(),
                error_before: layer.error_before,
                error_after: layer.error_after,
            };
            writer.write(run, &layer.weights)?;
            observe(Event::Reconstructed(run));
            Ok::<_, PipelineError>(())
        })?;
        let ReconstructedHeader { runs, .. } = writer.finish(tokens)?;
        Ok(Fitted { runs: runs.len(), tokens })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Gemma's layers normalise what they add, Llama's what they read.
    #[test]
    fn maps_are_refused_where_they_cannot_be_folded_in() {
        let read = |fixture: &str| ModelConfig::read(&testkit::fixture(fixture)).unwrap();
        let (gemma, llama) = (read("families/gemma2"), read("tiny_llama/model"));
        for (choosing, by_maps) in
            [("best", true), ("linear-fit", true), ("best:igia+greedy", false), ("igia", false)]
        {
            let choosing: Choosing = choosing.parse().unwrap();
            assert_eq!(require_judged(&choosing, &gemma).is_err(), by_maps, "{choosing}");
            assert!(require_judged(&choosing, &llama).is_ok());
        }
        for (repair, folded) in [(Repair::LinearMap, true), (Repair::Drop, false)] {
            assert_eq!(require_foldable(repair, &gemma).is_err(), folded);
            assert!(require_foldable(repair, &llama).is_ok());
        }
    }
}
