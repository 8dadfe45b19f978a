//! The pruned checkpoint of a plan, and what its repair is fitted.

use repair::{PruneSettings, apply};
use selection::{Plan, Repair, RepairNeed};
use serde_json::json;

use super::{Base, CollectedSlots, Stages, found};
use crate::stage::{FitTarget, RETRAINING_RATE, RETRAINING_STEPS, fit_name, fit_repair};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage};

impl Stages<'_> {
    /// Prunes and repairs by a plan.
    pub(crate) fn prune(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Base> {
        let fitted = self.fitted(collected, plan);
        let mut recipe = json!({
            "model": self.digests.model, "plan": plan, "maps": fitted.as_ref().map(|slot| &slot.digest),
        });
        if plan.repair().needs(RepairNeed::Record) {
            recipe["record"] = json!(collected.record.digest);
        }
        let slot = self.store.slot("pruned", &recipe);
        if !slot.is_there()?
            && let Some(fitted) = &fitted
        {
            self.fit(collected, plan, fitted, observe)?;
        }
        if !found(Stage::Prune, &slot, observe)? {
            self.apply(collected, plan, fitted.as_ref(), &slot, observe)?;
        }
        let seconds = slot.seconds() + fitted.as_ref().map_or(0.0, Slot::seconds);
        Ok(Base { folder: slot.path, digest: slot.digest, origin: plan.retained(), seconds })
    }

    /// Where what the plan's repair is fitted lies, or will; `None` if it is not fitted.
    fn fitted(&self, collected: &CollectedSlots, plan: &Plan) -> Option<Slot> {
        let name = fit_name(plan.repair())?;
        let mut recipe = json!({
            "common": self.common(), "pruned": plan.pruned, "settings": self.settings.linear_map,
            "state": collected.state.as_ref().map(|slot| &slot.digest),
            "max_tokens": self.settings.training.max_tokens,
        });
        if plan.repair() == Repair::Reconstruct {
            recipe["steps"] = json!(RETRAINING_STEPS);
            recipe["rate"] = json!(RETRAINING_RATE);
        }
        Some(self.store.slot(name, &recipe))
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
        let target = FitTarget {
            plan,
            model_name: &self.settings.model,
            max_tokens: self.settings.training.max_tokens,
            adapters: self.adapters(collected),
            target: &slot.path,
        };
        let (context, settings) = (self.context(self.model), &self.settings.linear_map);
        let found = slot.make(|| fit_repair(context, settings, target, observe))?;
        observe(Event::Done(Stage::Fit, Done::Fitted(found)));
        Ok(())
    }

    fn apply(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        fitted: Option<&Slot>,
        slot: &Slot,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let settings = PruneSettings {
            model: self.model.to_owned(),
            plan: plan.clone(),
            record: Some(collected.record.path.clone()),
            fitted: fitted.map(|slot| slot.path.clone()),
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
