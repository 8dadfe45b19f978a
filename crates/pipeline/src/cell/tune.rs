//! The tuned adapter or checkpoint.

use std::path::PathBuf;

use ::finetune::Continuation;
use checkpoint::{locate, remove_if_there};
use serde_json::json;

use super::{Base, CollectedSlots, Stages, found, lasting};
use crate::stage::{
    CutOf, FinetuneSettings, FinetuneTarget, TeacherOf, finetune_model, merge_adapter,
};
use crate::store::Slot;
use crate::{Done, Event, FinetuneMethod, Result, Stage, TeacherSettings, TrainingSettings};

impl Stages<'_> {
    /// Fine-tunes a model; `None` if nothing is tuned. `merged` is a folder for the checkpoint with the adapter merged
    /// in, if one is wanted.
    pub(crate) fn tune(
        &self,
        collected: &CollectedSlots,
        base: &Base,
        merged: Option<PathBuf>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<Slot>> {
        if self.settings.finetune == FinetuneMethod::None {
            return Ok(None);
        }
        let slot = self.tuned(collected, base)?;
        let is_dense = self.is_dense(base);
        let stage = if is_dense { Stage::DenseFinetune } else { Stage::Finetune };
        if found(stage, &slot, observe)? {
            // A kill between the two leaves it.
            remove_if_there(&slot.path.with_extension("state"))?;
            // Removed since, though the adapter is there.
            if let Some(merged) = merged.filter(|merged| !merged.exists()) {
                let shard_bytes = self.settings.shard_bytes;
                merge_adapter(self.context(&base.folder), &slot.path, &merged, shard_bytes)?;
            }
            return Ok(Some(slot));
        }
        let saves = Self::saves(&slot)?;
        // It is written before the other, so it may be there when that is not.
        if let Some(merged) = &merged {
            remove_if_there(merged)?;
        }
        let target = FinetuneTarget {
            target: slot.path.clone(),
            merged,
            saves,
            from: self.continuation(collected, base)?,
            shard_bytes: self.settings.shard_bytes,
            log: self.log,
            stage,
            group: None,
        };
        let training = self.training_on(collected, base)?;
        let teacher = self.teacher(collected, base, observe)?;
        let (context, settings) =
            (self.context(&base.folder), self.finetuning(base, &training, teacher.as_ref()));
        let report = slot.make(|| finetune_model(context, settings, &target, observe))?;
        observe(Event::Done(stage, Done::Trained(report)));
        Ok(Some(slot))
    }

    /// Where a tuned model lies, or will.
    pub(crate) fn tuned(&self, collected: &CollectedSlots, base: &Base) -> Result<Slot> {
        let is_dense = self.is_dense(base);
        let kind = match (self.settings.finetune.trains_weights(), is_dense) {
            (true, false) => "tuned",
            (true, true) => "dense-tuned",
            (false, false) => "adapter",
            (false, true) => "dense-adapter",
        };
        let recipe = json!({
            "common": self.common(), "base": base.digest, "finetune": self.settings.finetune,
            "training": lasting(&self.training_on(collected, base)?), "teacher": self.teacher_digest(collected, base)?,
            "state": collected.state.as_ref().map(|slot| &slot.digest),
        });
        Ok(self.store.slot(kind, &recipe))
    }

    /// What a training goes on from, if it does not begin.
    pub(super) fn continuation(
        &self,
        collected: &CollectedSlots,
        base: &Base,
    ) -> Result<Option<Continuation>> {
        let Some(state) = &collected.state else { return Ok(None) };
        Ok(Some(Continuation {
            folder: state.path.clone(),
            num_layers: self.num_layers,
            origin: base.origin.clone(),
            scales: base.scales()?,
        }))
    }

    pub(super) fn finetuning<'b>(
        &self,
        base: &'b Base,
        training: &'b TrainingSettings,
        teacher: Option<&'b TeacherOf>,
    ) -> FinetuneSettings<'b> {
        let cut = Some(CutOf { origin: &base.origin, num_layers: self.num_layers });
        FinetuneSettings { method: self.settings.finetune, training, teacher, cut }
    }

    /// How a model is trained: the dense one without a teacher, as it may be one. The layers that get adapters may yet be
    /// left to scores.
    pub(super) fn training_of(&self, base: &Base) -> TrainingSettings {
        match self.is_dense(base) {
            true => self.settings.training.untaught(),
            false => self.settings.training.clone(),
        }
    }

    pub(super) fn is_dense(&self, base: &Base) -> bool {
        base.origin.len() == self.num_layers
    }

    /// Who teaches a model, if anybody does: the one that is given, or the dense model, which is fine-tuned first.
    pub(super) fn teacher(
        &self,
        collected: &CollectedSlots,
        base: &Base,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<TeacherOf>> {
        let training = self.training_of(base);
        if training.distil.is_none() {
            return Ok(None);
        }
        let (origin, scales) = (Some(base.origin.clone()), base.scales()?);
        if let Some(TeacherSettings { model, adapter }) = training.teacher {
            let model = locate(&model)?;
            let origin = origin.filter(|_| model == self.model);
            return Ok(Some(TeacherOf { model, adapter, origin, scales }));
        }
        let dense = self.dense();
        let Some(tuned) = self.at_home().tune(collected, &dense, None, observe)? else {
            return Ok(None);
        };
        let (model, adapter) = match self.settings.finetune.trains_weights() {
            true => (tuned.path, None),
            false => (dense.folder, Some(tuned.path)),
        };
        Ok(Some(TeacherOf { model, adapter, origin, scales }))
    }

    /// What stands for the teacher in recipes.
    fn teacher_digest(&self, collected: &CollectedSlots, base: &Base) -> Result<Option<String>> {
        let training = self.training_of(base);
        if training.distil.is_none() {
            return Ok(None);
        }
        match training.teacher {
            Some(_) => Ok(self.digests.teacher.clone()),
            None => Ok(Some(self.at_home().tuned(collected, &self.dense())?.digest)),
        }
    }

    /// The same stages, results where they stay: a race has a place of its own, which goes with it.
    pub(super) fn at_home(&self) -> Self {
        Self { store: self.home, ..*self }
    }
}
