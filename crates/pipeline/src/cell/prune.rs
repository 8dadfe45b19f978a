//! The pruned checkpoint of a plan, and the linear maps it is repaired by.

use repair::{PruneSettings, apply};
use selection::{Plan, Repair};
use serde_json::json;

use super::{Base, CollectedSlots, Stages, found};
use crate::stage::{MapsTarget, fit_maps};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage};

/// The results that a plan leads to.
#[derive(Debug, Clone)]
pub(crate) struct PruningSlots {
    /// What the repair is made with, if it is made with anything.
    pub(crate) maps: Option<Slot>,
    pub(crate) pruned: Slot,
}

impl PruningSlots {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Slot> {
        self.maps.iter().chain([&self.pruned])
    }
}

impl Stages<'_> {
    /// Prunes and repairs by a plan.
    pub(crate) fn prune(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Base> {
        let PruningSlots { maps, pruned } = self.pruning(collected, plan);
        if !pruned.is_there()?
            && let Some(maps) = &maps
        {
            self.fit(collected, plan, maps, observe)?;
        }
        if !found(Stage::Prune, &pruned, observe)? {
            self.apply(collected, plan, maps.as_ref(), &pruned, observe)?;
        }
        Ok(self.base(collected, plan))
    }

    /// The pruned model of a plan, whether it is there or not.
    pub(crate) fn base(&self, collected: &CollectedSlots, plan: &Plan) -> Base {
        let PruningSlots { maps, pruned } = self.pruning(collected, plan);
        let seconds = pruned.seconds() + maps.as_ref().map_or(0.0, Slot::seconds);
        Base { folder: pruned.path, digest: pruned.digest, origin: plan.retained(), seconds }
    }

    /// Where what is made of a plan lies, or will.
    pub(crate) fn pruning(&self, collected: &CollectedSlots, plan: &Plan) -> PruningSlots {
        let maps = (plan.repair() == Repair::LinearMap).then(|| self.maps(collected, plan));
        let mut recipe = json!({
            "model": self.digests.model, "plan": plan, "maps": maps.as_ref().map(|slot| &slot.digest),
        });
        if plan.repair() == Repair::SameSign {
            recipe["record"] = json!(collected.record.digest);
        }
        PruningSlots { pruned: self.store.slot("pruned", &recipe), maps }
    }

    /// Where the linear maps of a plan lie, or will.
    fn maps(&self, collected: &CollectedSlots, plan: &Plan) -> Slot {
        let recipe = json!({
            "common": self.common(), "pruned": plan.pruned, "settings": self.settings.linear_map,
            "state": collected.state.as_ref().map(|slot| &slot.digest),
            "max_tokens": self.settings.training.max_tokens,
        });
        self.store.slot("maps", &recipe)
    }

    fn fit(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        slot: &Slot,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        slot.clear_other()?; // Those of a plan that was edited since are of no use.
        if found(Stage::Fit, slot, observe)? {
            return Ok(());
        }
        let target = MapsTarget {
            plan,
            model_name: &self.settings.model,
            max_tokens: self.settings.training.max_tokens,
            adapters: self.adapters(collected),
            target: &slot.path,
        };
        let (context, settings) = (self.context(self.model), &self.settings.linear_map);
        let found = slot.make(|| fit_maps(context, settings, target, observe))?;
        let (maps, tokens) = (found.runs.len(), found.tokens);
        observe(Event::Done(Stage::Fit, Done::Fitted { maps, tokens }));
        Ok(())
    }

    fn apply(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        maps: Option<&Slot>,
        slot: &Slot,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let settings = PruneSettings {
            model: self.model.to_owned(),
            plan: plan.clone(),
            record: Some(collected.record.path.clone()),
            maps: maps.map(|slot| slot.path.clone()),
            target: slot.path.clone(),
            shard_bytes: self.settings.shard_bytes,
            verify: false,
        };
        let mut tensors = |done, total| observe(Event::Tensors { done, total });
        let report = slot.make(|| Ok(apply(&settings, &mut tensors)?))?;
        let done = Done::Pruned { before: report.before, after: report.after };
        observe(Event::Done(Stage::Prune, done));
        Ok(())
    }
}
