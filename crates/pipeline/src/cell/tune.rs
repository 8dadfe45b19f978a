//! The tuned adapter or checkpoint.

use std::path::PathBuf;

use ::finetune::Continuation;
use checkpoint::remove_if_there;
use serde_json::json;

use super::{Base, CollectedSlots, Stages, found, lasting};
use crate::stage::{FinetuneSettings, FinetuneTarget, finetune_model};
use crate::store::Slot;
use crate::{Done, Event, FinetuneMethod, Result, Stage};

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
        let slot = self.tuned(collected, base);
        let is_dense = base.origin.len() == self.num_layers;
        let stage = if is_dense { Stage::DenseFinetune } else { Stage::Finetune };
        let saves = Self::saves(&slot);
        if found(stage, &slot, observe)? {
            remove_if_there(&saves)?; // A kill between the two leaves it.
            return Ok(Some(slot));
        }
        // It is written before the other, so it may be there when that is not.
        if let Some(merged) = &merged {
            remove_if_there(merged)?;
        }
        let target = FinetuneTarget {
            target: slot.path.clone(),
            merged,
            saves,
            from: self.continuation(collected, base),
            shard_bytes: self.settings.shard_bytes,
            log: self.log,
            stage,
        };
        let (context, settings) = (self.context(&base.folder), self.finetuning());
        let report = slot.make(|| finetune_model(context, settings, &target, observe))?;
        observe(Event::Done(stage, Done::Trained(report)));
        Ok(Some(slot))
    }

    /// Where a tuned model lies, or will.
    pub(crate) fn tuned(&self, collected: &CollectedSlots, base: &Base) -> Slot {
        let is_dense = base.origin.len() == self.num_layers;
        let kind = match (self.settings.finetune.trains_weights(), is_dense) {
            (true, false) => "tuned",
            (true, true) => "dense-tuned",
            (false, false) => "adapter",
            (false, true) => "dense-adapter",
        };
        let recipe = json!({
            "common": self.common(), "base": base.digest, "finetune": self.settings.finetune,
            "training": lasting(&self.settings.training),
            "state": collected.state.as_ref().map(|slot| &slot.digest),
        });
        self.store.slot(kind, &recipe)
    }

    /// Where the state of an unfinished training lies, or will.
    pub(super) fn saves(tuned: &Slot) -> PathBuf {
        tuned.path.with_extension("state")
    }

    /// What a training goes on from, if it does not begin.
    pub(super) fn continuation(
        &self,
        collected: &CollectedSlots,
        base: &Base,
    ) -> Option<Continuation> {
        let state = collected.state.as_ref()?;
        let (folder, origin) = (state.path.clone(), base.origin.clone());
        Some(Continuation { folder, num_layers: self.num_layers, origin })
    }

    pub(super) fn finetuning(&self) -> FinetuneSettings<'_> {
        FinetuneSettings { method: self.settings.finetune, training: &self.settings.training }
    }
}
