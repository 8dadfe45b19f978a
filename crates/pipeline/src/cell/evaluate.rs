//! A model on rows it never saw.

use std::path::Path;

use ::finetune::Evaluated;
use checkpoint::read_json;
use serde_json::json;

use super::{Base, Stages, found};
use crate::stage::{StageContext, evaluate_model};
use crate::store::Slot;
use crate::{Done, Event, Result, RunSettings, Stage};

/// A model, tuned or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) base: &'a Base,
    pub(crate) tuned: Option<&'a Slot>,
}

/// Rows to evaluate on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TestSet<'a> {
    pub(crate) path: &'a Path,
    /// What stands for it in recipes.
    pub(crate) digest: &'a str,
}

impl Stages<'_> {
    /// Evaluates a model.
    pub(crate) fn evaluate(
        &self,
        subject: Subject<'_>,
        data: TestSet<'_>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Evaluated> {
        let Subject { base, tuned } = subject;
        let RunSettings { evaluation, finetune, .. } = self.settings;
        let (stage, slot) = self.evaluation(subject, data);
        if found(stage, &slot, observe)? {
            return Ok(read_json(&slot.path)?);
        }
        let (model, adapter) = match tuned {
            Some(slot) if finetune.trains_weights() => (slot.path.as_path(), None),
            Some(slot) => (base.folder.as_path(), Some(slot.path.as_path())),
            None => (base.folder.as_path(), None),
        };
        let context = StageContext {
            data: data.path,
            held_out: None,
            ..self.settings.context(model, self.encoded)
        };
        let found = slot.make(|| {
            let found = evaluate_model(context, adapter, evaluation, observe)?;
            slot.write(&found)?;
            Ok(found)
        })?;
        observe(Event::Done(stage, Done::Evaluated(Box::new(found.report.clone()))));
        Ok(found)
    }

    /// An evaluation's stage, and where its result lies, or will.
    pub(crate) fn evaluation(&self, subject: Subject<'_>, data: TestSet<'_>) -> (Stage, Slot) {
        let Subject { base, tuned } = subject;
        let (stage, kind) = match (base.origin.len() == self.num_layers, tuned.is_some()) {
            (true, false) => (Stage::EvaluateDense, "evaluations/evaluate-dense.json"),
            (true, true) => (Stage::EvaluateDenseTuned, "evaluations/evaluate-dense-tuned.json"),
            (false, false) => (Stage::EvaluatePruned, "evaluations/evaluate-pruned.json"),
            (false, true) => (Stage::EvaluateTuned, "evaluations/evaluate-tuned.json"),
        };
        let RunSettings { evaluation, compute, ignore_fields, .. } = self.settings;
        let recipe = json!({
            "base": base.digest, "tuned": tuned.map(|slot| &slot.digest), "data": data.digest,
            "dtype": compute.dtype, "evaluation": evaluation, "ignore_fields": ignore_fields,
        });
        (stage, self.store.slot(kind, &recipe))
    }
}
