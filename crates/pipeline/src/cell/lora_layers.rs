//! The layers that get adapters, where that is left to scores.

use std::collections::BTreeSet;

use checkpoint::Record;
use evidence::Evidence;
use selection::{Criterion, Scores, beside_cuts, lora_layers_auto};
use serde_json::json;

use super::{Base, CollectedSlots, Stages};
use crate::{FinetuneMethod, LoraLayers, PipelineError, Result, TrainingSettings};

impl Stages<'_> {
    /// How a model is trained, the layers that get adapters known.
    pub(super) fn training_on(
        &self,
        collected: &CollectedSlots,
        base: &Base,
    ) -> Result<TrainingSettings> {
        let mut training = self.training_of(base);
        if self.settings.finetune.has_adapters() && training.lora_layers == Some(LoraLayers::Auto) {
            let scores = self.layer_scores(collected, base)?;
            training.lora_layers = Some(LoraLayers::These(self.highest(&scores, base)?));
        }
        Ok(training)
    }

    /// The half of the model's layers with the highest scores, of equal ones the earlier (docs/method.md §9), counted in
    /// the model itself. Those that train in full are not among them, and leave more to the others.
    fn highest(&self, scores: &Scores, base: &Base) -> Result<Vec<usize>> {
        let full = match self.settings.finetune {
            FinetuneMethod::LoraAndCuts => beside_cuts(&base.origin, self.num_layers),
            _ => BTreeSet::new(),
        };
        let open: Vec<usize> =
            (0..base.origin.len()).filter(|place| !full.contains(place)).collect();
        let score = |&place: &usize| match scores.layers.get(base.origin[place]) {
            Some(layer) => Ok(layer.score),
            None => Err(PipelineError::Settings(format!(
                "--lora-layers auto: the scores by `{}` are of {} layers, and the model has {}; remove selection.json to \
                 have them made anew",
                scores.criterion,
                scores.layers.len(),
                self.num_layers
            ))),
        };
        let found: Vec<f64> = open.iter().map(score).collect::<Result<_>>()?;
        let chosen = lora_layers_auto(&found, open.len().div_ceil(2));
        Ok(chosen.into_iter().map(|number| open[number]).collect())
    }

    /// The scores that a pruned model's layers were chosen by, if one criterion chose and gives any. Else those by `igia`: in
    /// a race all candidates are trained alike, and the dense model is the same whoever is compared with it.
    fn layer_scores(&self, collected: &CollectedSlots, base: &Base) -> Result<Scores> {
        let pruned_by = self.settings.criterion.criterion().filter(|_| !self.is_dense(base));
        if let Some(criterion) = pruned_by.filter(|criterion| criterion.gives_scores()) {
            // It has chosen before, and is heard of then.
            let chosen = self.at_home().choose(criterion, collected, &mut |_| {})?;
            if let Some(scores) = chosen.scores {
                return Ok(scores);
            }
        }
        let recipe = json!({"common": self.common(), "record": collected.record.digest});
        let slot = self.home.slot("adapter-scores.json", &recipe);
        if !slot.is_there()? {
            slot.make(|| {
                let record = Record::open(&collected.record.path)?;
                let mut seen = Evidence::of_record(&record, Criterion::IGIA.all_needs())?;
                Ok(Criterion::IGIA.scores(&mut seen)?.write(&slot.path)?)
            })?;
        }
        Ok(Scores::read(&slot.path)?)
    }
}
