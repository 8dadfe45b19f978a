//! The pruned checkpoint of a plan, and what its repair is fitted.

use std::path::Path;

use ::finetune::RunScale;
use checkpoint::remove_if_there;
use repair::{PruneReport, PruneSettings, apply};
use selection::{Plan, Repair, RepairNeed};
use serde_json::json;

use super::judge::Repaired;
use super::{Base, CollectedSlots, RULES, Stages, found};
use crate::stage::{FitTarget, RETRAINING_RATE, RETRAINING_STEPS, fit_name, fit_repair, scales_of};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage};

/// The results that a plan leads to.
#[derive(Debug, Clone)]
pub(crate) struct PruningSlots {
    /// What the repair is made with, if it is made with anything.
    pub(crate) fitted: Option<Slot>,
    pub(crate) pruned: Slot,
}

impl PruningSlots {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Slot> {
        self.fitted.iter().chain([&self.pruned])
    }
}

impl Base {
    /// By how much its stream is smaller behind each cut; none if it is as large.
    pub(super) fn scales(&self) -> Result<Vec<RunScale>> {
        self.scales.as_deref().map_or_else(|| Ok(Vec::new()), scales_of)
    }
}

impl Stages<'_> {
    /// Prunes and repairs by a plan, if its repair is worth it.
    pub(crate) fn prune(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Base> {
        let is_made = self.settle(collected, plan, observe)?;
        let PruningSlots { fitted, pruned } = self.pruning(collected, plan);
        let verdict = self.verdict(collected, plan);
        let carried_out = verdict.as_ref().map_or(plan, |verdict| &verdict.plan);
        if !pruned.is_there()?
            && let Some(fitted) = &fitted
        {
            self.fit(collected, plan, fitted, observe)?;
        }
        if !is_made && !found(Stage::Prune, &pruned, observe)? {
            self.apply(collected, carried_out, fitted.as_ref(), &pruned, observe)?;
        }
        Ok(self.base(collected, plan))
    }

    /// Decides whether the plan's repair is carried out, which says where the pruned model lies. The checkpoint that was
    /// judged for that is the pruned one, if the repair is kept; returns whether that was put in its place.
    pub(crate) fn settle(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        observe: &mut dyn FnMut(Event),
    ) -> Result<bool> {
        let Some(Repaired { folder, report }) = self.judge(collected, plan, observe)? else {
            return Ok(false);
        };
        let pruned = self.pruning(collected, plan).pruned;
        if pruned.is_there()? {
            remove_if_there(&folder)?;
            return Ok(false);
        }
        observe(Event::Started(Stage::Prune));
        // The time it took to write is the judge's.
        pruned.make(|| Ok(fs_err::rename(&folder, &pruned.path)?))?;
        tell(&report, observe);
        Ok(true)
    }

    /// The pruned model of a plan, whether it is there or not.
    pub(crate) fn base(&self, collected: &CollectedSlots, plan: &Plan) -> Base {
        let PruningSlots { fitted, pruned } = self.pruning(collected, plan);
        let seconds = pruned.seconds()
            + fitted.as_ref().map_or(0.0, Slot::seconds)
            + self.judged_in(collected, plan);
        let (origin, verdict) = (plan.retained(), self.verdict(collected, plan));
        let carried_out = verdict.as_ref().map_or(plan, |verdict| &verdict.plan);
        let scales = fitted.filter(|_| carried_out.repair() == Repair::Scale);
        Base {
            folder: pruned.path,
            digest: pruned.digest,
            origin,
            scales: scales.map(|slot| slot.path),
            verdict,
            seconds,
        }
    }

    /// Where what is made of a plan lies, or will: of the plan that is carried out, once its repair is judged.
    pub(crate) fn pruning(&self, collected: &CollectedSlots, plan: &Plan) -> PruningSlots {
        let verdict = self.verdict(collected, plan);
        let carried_out = verdict.as_ref().map_or(plan, |verdict| &verdict.plan);
        let fitted = self.fitted(collected, carried_out);
        let mut recipe = json!({
            "model": self.digests.model, "plan": carried_out,
            "maps": fitted.as_ref().map(|slot| &slot.digest),
        });
        if carried_out.repair().needs(RepairNeed::Record) {
            recipe["record"] = json!(collected.record.digest);
        }
        PruningSlots { pruned: self.store.slot("pruned", &recipe), fitted }
    }

    /// Where what the plan's repair is fitted lies, or will; `None` if it is not fitted.
    pub(super) fn fitted(&self, collected: &CollectedSlots, plan: &Plan) -> Option<Slot> {
        let name = fit_name(plan.repair())?;
        let mut recipe = json!({
            "version": RULES, "common": self.common(), "pruned": plan.pruned, "tokens": self.settings.linear_map.tokens,
            "ridge": (plan.repair() == Repair::LinearMap).then_some(self.settings.linear_map.ridge),
            "state": collected.state.as_ref().map(|slot| &slot.digest),
            "max_tokens": self.settings.training.max_tokens,
        });
        if plan.repair() == Repair::Reconstruct {
            recipe["steps"] = json!(RETRAINING_STEPS);
            recipe["rate"] = json!(RETRAINING_RATE);
        }
        Some(self.store.slot(name, &recipe))
    }

    pub(super) fn fit(
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

    pub(super) fn prune_settings(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        fitted: Option<&Slot>,
        target: &Path,
    ) -> PruneSettings {
        PruneSettings {
            model: self.model.to_owned(),
            plan: plan.clone(),
            record: Some(collected.record.path.clone()),
            fitted: fitted.map(|slot| slot.path.clone()),
            target: target.to_owned(),
            shard_bytes: self.settings.shard_bytes,
            verify: false,
        }
    }

    fn apply(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        fitted: Option<&Slot>,
        slot: &Slot,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let settings = self.prune_settings(collected, plan, fitted, &slot.path);
        let mut tensors = |done, total| observe(Event::Tensors { done, total });
        let report = slot.make(|| Ok(apply(&settings, &mut tensors)?))?;
        tell(&report, observe);
        Ok(())
    }
}

/// Says what pruning came to.
fn tell(report: &PruneReport, observe: &mut dyn FnMut(Event)) {
    let &PruneReport { before, after, .. } = report;
    observe(Event::Done(Stage::Prune, Done::Pruned { before, after }));
}
