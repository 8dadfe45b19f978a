//! Whether a repair is kept: only where less is lost with it.

use std::path::Path;

use ::finetune::{Origin, RunScale};
use checkpoint::remove_if_there;
use repair::{LineSearch, PruneReport, PruneSettings, Scales, apply, line_search};
use selection::{Plan, Repair};
use serde::{Deserialize, Serialize};

use super::{LossesOf, StageContext, with_judge};
use crate::{Event, Result};

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

/// A verdict, and the checkpoint that was judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// What became of the checkpoint where it was to be written, if that is the one the verdict's plan gives; else nothing
    /// is left there.
    pub written: Option<PruneReport>,
}

/// Judges the repair of `settings`' plan (method.md §8) by `D` on the rows that losses are computed on, and leaves the
/// repaired checkpoint in its target if it is kept. What is there before is removed; `always` keeps the repair whatever is
/// lost.
///
/// # Errors
///
/// If the model, the rows or the record cannot be used, the repair cannot be applied, or the disk refuses.
pub fn judge_repair(
    context: StageContext<'_>,
    of: LossesOf<'_>,
    settings: &PruneSettings,
    always: bool,
    observe: &mut dyn FnMut(Event),
) -> Result<Judged> {
    let (plan, target) = (&settings.plan, &settings.target);
    let scales = match &settings.fitted {
        Some(fitted) if plan.repair() == Repair::Scale => scales_of(fitted)?,
        _ => Vec::new(),
    };
    let layers = plan.retained();
    let origin = Origin { layers: &layers, scales: &scales };
    let mut last = None;
    let verdict = with_judge(context, of, observe, |judge| {
        let mut loss = |plan: &Plan| {
            remove_if_there(target)?;
            let settings = PruneSettings { plan: plan.clone(), ..settings.clone() };
            last = Some((plan.clone(), apply(&settings, &mut |_, _| {})?));
            judge.of_model(target, &origin)
        };
        decide(plan, always, judge.of_layers(&layers)?, &mut loss)
    });
    // Of several steps the last that was tried may be another than the one that is taken.
    let written = last.filter(|(plan, _)| verdict.as_ref().is_ok_and(|found| found.plan == *plan));
    if written.is_none() {
        remove_if_there(target)?;
    }
    Ok(Judged { verdict: verdict?, written: written.map(|(_, report)| report) })
}

/// The scales in a folder.
pub(crate) fn scales_of(folder: &Path) -> Result<Vec<RunScale>> {
    let cuts = Scales::open(folder)?.cuts.into_iter();
    Ok(cuts.map(|cut| RunScale { run: cut.first..=cut.last, factor: cut.factor }).collect())
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
