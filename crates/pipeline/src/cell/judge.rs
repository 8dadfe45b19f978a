//! Whether a repair is kept: only where less is lost with it.

use std::path::PathBuf;

use ::finetune::Origin;
use checkpoint::{read_json, remove_if_there};
use repair::{LineSearch, PruneReport, line_search};
use selection::{Plan, Repair, RepairNeed};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::prune::scales_of;
use super::{CollectedSlots, Stages, found};
use crate::stage::{LossesOf, with_judge};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage};

/// What a repair does to what is lost (`D`, method.md §3), and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The repair that was planned.
    pub repair: Repair,
    /// `D` where the layers are dropped and nothing else is done.
    pub dropped: f64,
    /// `D` with the repair, at the step that is taken if there was a choice; `None` if it is not finite, which is worse
    /// than any.
    pub repaired: Option<f64>,
    /// Whether the repair is kept: less is lost with it, or it is asked for whatever is lost.
    pub kept: bool,
    /// The steps that were tried, if the repair has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<LineSearch>,
    /// What is carried out.
    pub plan: Plan,
}

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
        let mut last = None;
        let verdict = slot.make(|| {
            let scales = match fitted {
                Some(fitted) if plan.repair() == Repair::Scale => scales_of(&fitted.path)?,
                _ => Vec::new(),
            };
            let layers = plan.retained();
            let origin = Origin { layers: &layers, scales: &scales };
            let verdict = with_judge(self.context(self.model), of, observe, |judge| {
                let mut loss = |plan: &Plan| {
                    remove_if_there(&candidate)?;
                    let made = self.prune_settings(collected, plan, fitted, &candidate);
                    let report = repair::apply(&made, &mut |_, _| {})?;
                    let folder = candidate.clone();
                    last = Some((plan.clone(), Repaired { folder, report }));
                    judge.of_model(&candidate, &origin)
                };
                decide(plan, always, judge.of_layers(&layers)?, &mut loss)
            })?;
            slot.write(&verdict)?;
            Ok(verdict)
        });
        // Of several steps the last that was tried may be another than the one that is taken.
        let repaired = last.filter(|(plan, _)| verdict.as_ref().is_ok_and(|x| x.plan == *plan));
        if repaired.is_none() {
            remove_if_there(&candidate)?;
        }
        observe(Event::Done(Stage::Judge, Done::Judged(Box::new(verdict?))));
        Ok(repaired.map(|(_, repaired)| repaired))
    }
}

/// The verdict on a plan, by what is lost without its repair and, of `loss`, with it, if that is finite.
fn decide(
    plan: &Plan,
    always: bool,
    dropped: f64,
    loss: &mut dyn FnMut(&Plan) -> Result<Option<f64>>,
) -> Result<Verdict> {
    let repair = plan.repair();
    let (plan, repaired, search) = match repair {
        // A step that a person has written stays.
        Repair::Weighted if !plan.says_step() => {
            let search = line_search(&mut |step| match step {
                0.0 => Ok(Some(dropped)),
                step => loss(&plan.clone().with_step(step)?),
            })?;
            let step = search.step;
            let lost = search.tried.iter().find(|tried| tried.step == step);
            let repaired = lost.map_or(Some(dropped), |tried| tried.loss);
            (plan.clone().with_step(step)?, repaired, Some(search))
        }
        _ => (plan.clone(), loss(plan)?, None),
    };
    let refused = plan.step() == Some(0.0);
    let helps = repaired.is_some_and(|repaired| repaired < dropped);
    let kept = !refused && (always || helps);
    let plan = if kept { plan } else { plan.with_repair(Repair::Drop)? };
    Ok(Verdict { repair, dropped, repaired, kept, search, plan })
}

#[cfg(test)]
mod tests {
    use selection::Merge;

    use super::*;

    fn planned(repair: Repair) -> Plan {
        let merges = match repair {
            Repair::Weighted => vec![Merge { into: 1, from: vec![2] }],
            _ => vec![],
        };
        Plan::new(6, vec![2, 3], merges, 0.5).with_repair(repair).unwrap()
    }

    fn check(plan: &Plan, always: bool, loss: impl Fn(&Plan) -> Option<f64>) -> Verdict {
        let found = decide(plan, always, 0.5, &mut |plan| Ok(loss(plan))).unwrap();
        // What is not finite can be written and read.
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), found);
        assert_eq!((found.repair, found.dropped), (plan.repair(), 0.5));
        assert_eq!(found.plan.pruned, plan.pruned);
        assert_eq!(found.plan.repair(), if found.kept { plan.repair() } else { Repair::Drop });
        found
    }

    /// Kept where less is lost or a person wants it; a repair that overflows is worse than none.
    #[test]
    fn a_repair_is_kept_where_less_is_lost() {
        let plan = planned(Repair::Scale);
        let cases = [(Some(0.25), true), (Some(0.5), false), (Some(0.75), false), (None, false)];
        for (lost, kept) in cases {
            let found = check(&plan, false, |_| lost);
            assert_eq!((found.repaired, found.kept, found.search), (lost, kept, None));
            let found = check(&plan, true, |_| lost);
            assert_eq!((found.repaired, found.kept), (lost, true));
        }
        let failed = decide(&plan, true, 0.5, &mut |_| {
            Err(crate::PipelineError::Settings("a reason".into()))
        });
        assert!(failed.unwrap_err().to_string().contains("a reason"));
    }

    /// Steps that overflow are passed over, and where all do the repair is refused, whoever wants it.
    #[test]
    fn a_step_that_overflows_is_not_taken() {
        let plan = planned(Repair::Weighted);
        let found = check(&plan, false, |plan| match plan.step() {
            Some(0.25) => Some(0.4),
            _ => None,
        });
        assert_eq!((found.repaired, found.kept, found.plan.step()), (Some(0.4), true, Some(0.25)));
        let tried: Vec<Option<f64>> =
            found.search.unwrap().tried.iter().map(|tried| tried.loss).collect();
        assert_eq!(tried, [Some(0.5), Some(0.4), None, None]);
        for always in [false, true] {
            let found = check(&plan, always, |_| None);
            assert_eq!((found.repaired, found.kept), (Some(0.5), false));
        }
    }
}
