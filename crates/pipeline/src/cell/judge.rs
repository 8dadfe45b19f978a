//! The verdict on a plan's repair, found again or given.

use std::path::PathBuf;

use checkpoint::{read_json, remove_if_there};
use repair::PruneReport;
use selection::{Plan, Repair, RepairNeed};
use serde_json::json;

use super::{CollectedSlots, Stages, found};
use crate::stage::{JUDGED_ROWS, Judged, LossesOf, judge_repair};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage, Verdict};

/// A pruned checkpoint that was judged and whose repair is kept, aside of where it belongs.
#[derive(Debug)]
pub(super) struct Repaired {
    pub(super) folder: PathBuf,
    pub(super) report: PruneReport,
}

impl Stages<'_> {
    /// Where the verdict on a plan's repair lies, or will; `None` if it has none.
    pub(crate) fn verdict_slot(&self, collected: &CollectedSlots, plan: &Plan) -> Option<Slot> {
        // A race judges healed models, which says more, and each candidate's verdict would cost as much as its steps. A
        // step still has to be found.
        let races = self.settings.criterion.races();
        let seeks_step = plan.repair() == Repair::Weighted && !plan.says_step();
        if plan.repair() == Repair::Drop || (races && !seeks_step) {
            return None;
        }
        let mut recipe = json!({
            "common": self.common(), "plan": plan,
            "fitted": self.fitted(collected, plan).map(|slot| slot.digest),
            "state": collected.state.as_ref().map(|slot| &slot.digest),
            "max_tokens": self.settings.training.max_tokens, "always": self.settings.repair_always,
            "rows": JUDGED_ROWS,
        });
        if plan.repair().needs(RepairNeed::Record) {
            recipe["record"] = json!(collected.record.digest);
        }
        Some(self.store.slot("verdict.json", &recipe))
    }

    /// The verdict on a plan's repair, if it was given.
    pub(super) fn verdict(&self, collected: &CollectedSlots, plan: &Plan) -> Option<Verdict> {
        let slot = self.verdict_slot(collected, plan)?;
        matches!(slot.is_there(), Ok(true)).then(|| read_json(&slot.path).ok()).flatten()
    }

    /// Seconds that judging a plan's repair took, with what was fitted for a repair that is not carried out.
    pub(super) fn judged_in(&self, collected: &CollectedSlots, plan: &Plan) -> f64 {
        let judged = self.verdict_slot(collected, plan).map_or(0.0, |slot| slot.seconds());
        let is_kept = self.verdict(collected, plan).is_none_or(|verdict| verdict.kept);
        let fitted = self.fitted(collected, plan).filter(|_| !is_kept);
        judged + fitted.map_or(0.0, |slot| slot.seconds())
    }

    /// Judges a plan's repair on the rows that losses are computed on, if it has one. Returns the checkpoint that was judged, if
    /// it is the one that the plan to be carried out gives.
    pub(super) fn judge(
        &self,
        collected: &CollectedSlots,
        plan: &Plan,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<Repaired>> {
        let Some(slot) = self.verdict_slot(collected, plan) else { return Ok(None) };
        let always = self.settings.repair_always;
        // A run's checkpoint that is there was not judged, or is of a plan that was edited since; its recipe says which.
        let is_judged = matches!(slot.is_there(), Ok(true));
        let is_one = !self.store.is_shared();
        if is_one && !is_judged && self.pruning(collected, plan).pruned.path.exists() {
            return Ok(None);
        }
        slot.clear_other()?; // That of a plan that was edited since is of no use.
        let candidate = slot.path.with_file_name(".candidate");
        remove_if_there(&candidate)?; // A kill before it was taken leaves it.
        if found(Stage::Judge, &slot, observe)? {
            return Ok(None);
        }
        let fitted = self.fitted(collected, plan);
        let fitted = fitted.as_ref();
        if let Some(fitted) = fitted {
            self.fit(collected, plan, fitted, observe)?;
        }
        let of = LossesOf {
            max_tokens: self.settings.training.max_tokens,
            adapters: self.adapters(collected),
        };
        let made = self.prune_settings(collected, plan, fitted, &candidate);
        let context = self.context(self.model);
        let Judged { verdict, written } = slot.make(|| {
            let judged = judge_repair(context, of, &made, always, observe)?;
            slot.write(&judged.verdict)?;
            Ok(judged)
        })?;
        observe(Event::Done(Stage::Judge, Done::Judged(Box::new(verdict))));
        Ok(written.map(|report| Repaired { folder: candidate, report }))
    }
}
