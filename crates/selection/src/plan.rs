//! `plan.json`: which layers are pruned and which of those are merged, and into what.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use checkpoint::MOST_LAYERS;
use serde::{Deserialize, Serialize};

use crate::{Density, Repair, Result, Selection, SelectionError};

const FORMAT: &str = "gradpruner-plan";
/// The version of plans that drop and merge; those with a key more are of [`VERSION`].
const FIRST_VERSION: u64 = 1;
const VERSION: u64 = 2;
const SAME_SIGN: &str = "same-sign";

/// What is to be done to a model's layers, made to be read and edited by a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    format: String,
    version: u64,
    /// How many layers the model has.
    pub num_layers: usize,
    /// The layers to remove, ascending.
    pub pruned: Vec<usize>,
    /// Which of them are merged into retained layers first.
    pub merges: Vec<Merge>,
    /// Which of each donor's elements are kept.
    pub density: Density,
    rule: String,
    /// Of a plan of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repair: Option<Repair>,
    /// Of a plan of version 2 that repairs by `weighted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<f64>,
}

/// One retained layer and the pruned layers merged into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The receiver, a retained layer.
    pub into: usize,
    /// The donors, pruned layers, ascending.
    pub from: Vec<usize>,
}

/// What becomes of the layers that a selection removes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanSettings {
    /// What is done to the layers that stay.
    pub repair: Repair,
    /// How many of the pruned layers are merged; none of a repair that does not merge. None of one that merges all
    /// unless it is told otherwise ([`Repair::merges_all`]) are all.
    pub merge: usize,
    /// Which of each donor's elements are kept.
    pub density: Density,
}

impl PlanSettings {
    /// Checks that repair and merges agree, where `count` layers are pruned.
    ///
    /// # Errors
    ///
    /// [`SelectionError::Plan`] if more are to be merged than pruned, or if the repair merges and no layer is to be
    /// merged, or the other way round.
    pub fn check(&self, count: usize) -> Result<()> {
        if self.merge > count {
            let merge = self.merge;
            return Err(SelectionError::Plan(format!(
                "{merge} layers are to be merged, but only {count} are pruned"
            )));
        }
        let Self { repair, merge, .. } = *self;
        match (repair.merges(), merge) {
            (true, 0) if !repair.merges_all() => Err(SelectionError::Plan(format!(
                "`{repair}` merges layers; say how many with --merge"
            ))),
            (true, _) | (false, 0) => Ok(()),
            (false, merge) => Err(SelectionError::Plan(format!(
                "`{repair}` merges no layers, and --merge says {merge}; leave one of them out"
            ))),
        }
    }
}

impl Plan {
    /// A plan by hand: layers dropped, or merged by the same-sign rule. [`Plan::check`] says whether it holds.
    pub fn new(
        num_layers: usize,
        pruned: Vec<usize>,
        merges: Vec<Merge>,
        density: impl Into<Density>,
    ) -> Self {
        let density = density.into();
        let (format, rule) = (FORMAT.into(), SAME_SIGN.into());
        let (repair, step) = (None, None);
        let version = FIRST_VERSION;
        Self { format, version, num_layers, pruned, merges, density, rule, repair, step }
            .of_its_version()
    }

    /// The same plan by another repair; its merges are kept if that one merges, else they are gone. Where the plan
    /// merges no layers and the repair merges all that are pruned, all are merged.
    ///
    /// # Errors
    ///
    /// [`SelectionError::Plan`] if the result cannot hold: most repairs that merge need a plan that names what is merged.
    pub fn with_repair(self, repair: Repair) -> Result<Self> {
        let merges = match repair.merges() {
            false => Vec::new(),
            true if self.merges.is_empty() && repair.merges_all() => {
                merges_of(&self.pruned, &self.pruned)?
            }
            true => self.merges,
        };
        // What merges alone say is not said again, so that plans of the first version stay such.
        let said = if merges.is_empty() { Repair::Drop } else { Repair::SameSign };
        let repair = (repair != said).then_some(repair);
        let plan = Self { merges, repair, step: None, ..self }.of_its_version();
        plan.check()?;
        Ok(plan)
    }

    /// The same plan with a step of its `weighted` repair: 0 adds nothing, 1 all of it.
    ///
    /// # Errors
    ///
    /// [`SelectionError::Plan`] if it is not between 0 and 1, or the plan repairs otherwise.
    pub fn with_step(self, step: f64) -> Result<Self> {
        let plan = Self { step: Some(step), ..self };
        plan.check()?;
        Ok(plan)
    }

    /// Whether the plan itself says how far its repair goes.
    pub fn says_step(&self) -> bool {
        self.step.is_some()
    }

    /// How far a `weighted` repair goes: what the plan says, or 1; `None` of other repairs.
    pub fn step(&self) -> Option<f64> {
        (self.repair() == Repair::Weighted).then(|| self.step.unwrap_or(1.0))
    }

    /// The same plan, of the first version that has all its keys.
    fn of_its_version(mut self) -> Self {
        let is_later = self.repair.is_some() || self.density.is_auto();
        self.version = if is_later { VERSION } else { FIRST_VERSION };
        self
    }

    /// Prunes the layers of a selection and merges the most important of these, each into the
    /// nearest retained layer before it (method.md §4).
    ///
    /// # Errors
    ///
    /// [`SelectionError::Plan`] if [`PlanSettings::check`] fails, or a layer is to be merged that no retained layer
    /// stands before.
    pub fn of(num_layers: usize, selection: &Selection, settings: &PlanSettings) -> Result<Self> {
        let PlanSettings { repair, merge, density } = *settings;
        let count = selection.removed.len();
        settings.check(count)?;
        let (_, donors) = selection.removed.split_at(count - merge);
        let ascending = |layers: &[usize]| -> Vec<usize> {
            layers.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
        };
        let pruned = ascending(&selection.removed);
        let merges = merges_of(&pruned, &ascending(donors))?;
        Self::new(num_layers, pruned, merges, density).with_repair(repair)
    }

    /// What is done to the layers that stay.
    pub fn repair(&self) -> Repair {
        let merges = if self.merges.is_empty() { Repair::Drop } else { Repair::SameSign };
        self.repair.unwrap_or(merges)
    }

    /// The runs of pruned layers, ascending, each with the retained layer before it; `None` before the first.
    pub fn runs(&self) -> Vec<(Option<usize>, RangeInclusive<usize>)> {
        let mut runs: Vec<(Option<usize>, RangeInclusive<usize>)> = Vec::new();
        for &layer in &self.pruned {
            match runs.last_mut() {
                Some((_, run)) if run.end() + 1 == layer => *run = *run.start()..=layer,
                _ => runs.push((layer.checked_sub(1), layer..=layer)),
            }
        }
        runs
    }

    /// Checks that the plan can be carried out on a model of `num_layers` layers.
    ///
    /// # Errors
    ///
    /// [`SelectionError::Plan`] with the first reason why not.
    pub fn check(&self) -> Result<()> {
        self.reason_against().map_or(Ok(()), |reason| Err(SelectionError::Plan(reason)))
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, num_layers, pruned, merges, density, rule, repair, step } =
            self;
        if format != FORMAT || !(FIRST_VERSION..=VERSION).contains(version) {
            return Some(format!(
                "it says `{format}` version {version}; `{FORMAT}` versions {FIRST_VERSION} and {VERSION} are understood"
            ));
        }
        match repair {
            Some(_) if *version == FIRST_VERSION => {
                return Some(format!(
                    "`repair` is a key of version {VERSION}, and it says {version}"
                ));
            }
            Some(repair) if repair.merges() && merges.is_empty() => {
                return Some(format!(
                    "it repairs by `{repair}`, and merges no layers; make one that does by \
                     `gradpruner plan --merge`"
                ));
            }
            Some(repair) if !repair.merges() && !merges.is_empty() => {
                return Some(format!(
                    "it repairs by `{repair}`, which merges no layers, and has merges"
                ));
            }
            _ => {}
        }
        if let Some(step) = step {
            if *repair != Some(Repair::Weighted) {
                return Some(
                    "`step` is of a plan that repairs by `weighted`, which it does not".into(),
                );
            }
            if !(0.0..=1.0).contains(step) {
                return Some(format!("the step is {step}, which is not between 0 and 1"));
            }
        }
        if !(1..=MOST_LAYERS).contains(num_layers) {
            return Some(format!(
                "it is for {num_layers} layers; 1 to {MOST_LAYERS} are supported"
            ));
        }
        if rule != SAME_SIGN {
            return Some(format!("the rule `{rule}` is not known; there is `{SAME_SIGN}`"));
        }
        if *version == FIRST_VERSION && density.is_auto() {
            return Some(format!(
                "a density of `{density}` is of version {VERSION}, and it says {version}"
            ));
        }
        if let Some(reason) = density.reason_against() {
            return Some(reason);
        }
        if let Some(layer) = pruned.iter().find(|layer| *layer >= num_layers) {
            return Some(format!("layer {layer} is to be pruned, of {num_layers} counted from 0"));
        }
        if let Some((_, layer)) =
            pruned.iter().zip(&pruned[1.min(pruned.len())..]).find(|(x, y)| x >= y)
        {
            return Some(format!("layer {layer} is pruned twice or out of order"));
        }
        if pruned.len() >= *num_layers {
            return Some("no layer is left".into());
        }
        let gone: BTreeSet<_> = pruned.iter().collect();
        let mut used = BTreeSet::new();
        for Merge { into, from } in merges {
            if into >= num_layers {
                return Some(format!("the receiver {into} is out of range"));
            }
            if gone.contains(into) {
                return Some(format!("the receiver {into} is itself pruned"));
            }
            if !used.insert(into) {
                return Some(format!("the receiver {into} is listed twice"));
            }
            if from.is_empty() {
                return Some(format!("the receiver {into} has no donors"));
            }
            for donor in from {
                if *donor == 0 {
                    return Some("layer 0 cannot be merged: no layer stands before it".into());
                }
                if !gone.contains(donor) {
                    return Some(format!("the donor {donor} is not pruned"));
                }
                if !used.insert(donor) {
                    return Some(format!("the donor {donor} is listed twice"));
                }
                if donor < into {
                    return Some(format!("the donor {donor} stands before its receiver {into}"));
                }
            }
            if from.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Some(format!("the donors of {into} are out of order"));
            }
        }
        None
    }

    /// Refuses a model that has another number of layers.
    ///
    /// # Errors
    ///
    /// [`SelectionError::Plan`] with both numbers.
    pub fn require_layers(&self, num_layers: usize) -> Result<()> {
        match self.num_layers == num_layers {
            true => Ok(()),
            false => Err(SelectionError::Plan(format!(
                "it is for {} layers, the model has {num_layers}",
                self.num_layers
            ))),
        }
    }

    /// The layers that stay, ascending.
    pub fn retained(&self) -> Vec<usize> {
        let pruned: BTreeSet<_> = self.pruned.iter().collect();
        (0..self.num_layers).filter(|layer| !pruned.contains(layer)).collect()
    }

    /// The layers merged into `receiver`, ascending.
    pub fn donors_of(&self, receiver: usize) -> &[usize] {
        self.merges
            .iter()
            .find(|merge| merge.into == receiver)
            .map_or(&[], |merge| merge.from.as_slice())
    }

    /// All merged layers.
    pub fn donors(&self) -> BTreeSet<usize> {
        self.merges.iter().flat_map(|merge| merge.from.iter().copied()).collect()
    }

    /// Reads and checks `plan.json`.
    ///
    /// # Errors
    ///
    /// If it is no such file or the plan cannot hold.
    pub fn read(path: &Path) -> Result<Self> {
        let plan: Self = checkpoint::read_json(path)?;
        plan.check()?;
        Ok(plan)
    }

    /// Writes `plan.json`, whole or not at all.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(checkpoint::write_json(path, self)?)
    }
}

/// Each donor into the nearest retained layer before it; both lists ascend.
fn merges_of(pruned: &[usize], donors: &[usize]) -> Result<Vec<Merge>> {
    let mut merges: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &donor in donors {
        let Some(into) = (0..donor).rev().find(|layer| pruned.binary_search(layer).is_err()) else {
            return Err(SelectionError::Plan(format!(
                "layer {donor} is to be merged, but no retained layer stands before it; merge \
                 fewer layers, or prune fewer"
            )));
        };
        merges.entry(into).or_default().push(donor);
    }
    Ok(merges.into_iter().map(|(into, from)| Merge { into, from }).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Criterion, Keep, Request, Scores, Share};

    /// The plan that scores give, without a guard.
    fn plan(values: &[f64], prune: usize, merge: usize) -> Result<Plan> {
        let request = Request::new(values.len(), Share::Layers(prune), Keep::NONE, 0)?;
        let scores = Scores::of_layers(Criterion::IGIA, values);
        let selection = Selection { removed: request.first_of(scores.ranking()), scores: None };
        let repair = if merge > 0 { Repair::SameSign } else { Repair::Drop };
        Plan::of(values.len(), &selection, &PlanSettings { repair, merge, density: 0.2.into() })
    }

    #[test]
    fn golden_plans() {
        for name in testkit::GOLDEN {
            let file = testkit::fixture(&format!("{name}/scores_igia.json"));
            let expected = Plan::read(&testkit::fixture(&format!("{name}/plan.json"))).unwrap();
            let merge = expected.donors().len();
            let scores = Scores::read(&file).unwrap();
            let values: Vec<f64> = scores.layers.iter().map(|layer| layer.score).collect();
            assert_eq!(plan(&values, 3, merge).unwrap(), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_plan_holds(
            values in prop::collection::vec(0..5_u8, 1..12), prune in 0..12_usize, merge in 0..4_usize,
        ) {
            let scores: Vec<f64> = values.iter().copied().map(f64::from).collect();
            if let Ok(plan) = plan(&scores, prune, merge) {
                prop_assert_eq!(plan.pruned.len(), prune);
                prop_assert_eq!(plan.donors().len(), merge);
                let lowest_kept = plan.retained().iter().map(|&l| values[l]).min();
                let highest_gone = plan.pruned.iter().map(|&l| values[l]).max();
                prop_assert!(highest_gone <= lowest_kept);
            }
        }
    }

    #[test]
    fn what_cannot_hold_is_refused_with_the_reason() {
        let merge = |into, from: &[usize]| Merge { into, from: from.to_vec() };
        for (pruned, merges, density, reason) in [
            (vec![0, 1, 2, 3], vec![], 0.2, "no layer is left"),
            (vec![4], vec![], 0.2, "layer 4 is to be pruned, of 4"),
            (vec![1, 1], vec![], 0.2, "pruned twice"),
            (vec![1], vec![merge(1, &[1])], 0.2, "the receiver 1 is itself pruned"),
            (vec![1], vec![merge(0, &[2])], 0.2, "the donor 2 is not pruned"),
            (vec![0], vec![merge(1, &[0])], 0.2, "layer 0 cannot be merged"),
            (vec![1], vec![merge(2, &[1])], 0.2, "stands before its receiver"),
            (vec![1, 2], vec![merge(0, &[2, 1])], 0.2, "out of order"),
            (vec![1], vec![merge(0, &[1, 1])], 0.2, "listed twice"),
            (vec![1], vec![], 1.5, "the density is 1.5"),
        ] {
            let error = Plan::new(4, pruned, merges, density).check().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        for num_layers in [0, 1 << 32, usize::MAX] {
            let error = Plan::new(num_layers, vec![], vec![], 0.2).check().unwrap_err().to_string();
            assert!(error.contains("1 to 10000 are supported"), "{error}");
        }
        for (prune, merge, reason) in [
            (0, 0, "0 of 3 layers rounds to none; prune at least 1 layer, or 17%"),
            (3, 0, "at least one must stay"),
            (1, 2, "only 1 are pruned"),
            (1, 1, "layer 0 is to be"),
        ] {
            let error = plan(&[1.0, 2.0, 3.0], prune, merge).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    /// Plans of old forms are written as they always were.
    #[test]
    fn a_density_of_its_own_is_of_the_second_version() {
        let merges = vec![Merge { into: 0, from: vec![1] }];
        let old = Plan::new(3, vec![1], merges.clone(), 0.2);
        assert_eq!(
            serde_json::to_string(&old).unwrap(),
            "{\"format\":\"gradpruner-plan\",\"version\":1,\"num_layers\":3,\"pruned\":[1],\
             \"merges\":[{\"into\":0,\"from\":[1]}],\"density\":0.2,\"rule\":\"same-sign\"}"
        );
        let auto = Plan::new(3, vec![1], merges, Density::AUTO);
        let text = serde_json::to_string(&auto).unwrap();
        assert!(text.contains("\"version\":2") && text.contains("\"density\":\"auto\""), "{text}");
        let read: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!((read.check().is_ok(), &read), (true, &auto));
        let earlier: Plan =
            serde_json::from_str(&text.replace("\"version\":2", "\"version\":1")).unwrap();
        let error = earlier.check().unwrap_err().to_string();
        assert!(error.contains("a density of `auto` is of version 2"), "{error}");
    }

    #[test]
    fn a_step_is_of_the_weighted_repair() {
        let selection = Selection { removed: vec![2, 1, 4], scores: None };
        let of = |repair| PlanSettings { repair, merge: 1, density: 0.2.into() };
        let weighted = Plan::of(6, &selection, &of(Repair::Weighted)).unwrap();
        assert_eq!((weighted.step(), weighted.version), (Some(1.0), 2));
        assert!(!weighted.says_step() && weighted.clone().with_step(1.0).unwrap().says_step());
        assert!(!serde_json::to_string(&weighted).unwrap().contains("step"));
        let half = weighted.clone().with_step(0.5).unwrap();
        assert!(serde_json::to_string(&half).unwrap().ends_with(",\"step\":0.5}"));
        assert_eq!(half.step(), Some(0.5));
        for wrong in [-0.5, 1.5, f64::NAN] {
            let error = weighted.clone().with_step(wrong).unwrap_err().to_string();
            assert!(error.contains("is not between 0 and 1"), "{error}");
        }
        let merged = Plan::of(6, &selection, &of(Repair::SameSign)).unwrap();
        assert_eq!(merged.step(), None);
        let error = merged.with_step(0.5).unwrap_err().to_string();
        assert!(error.contains("`step` is of a plan that repairs by `weighted`"), "{error}");
        assert_eq!(half.with_repair(Repair::SameSign).unwrap().version, 1);
    }

    #[test]
    fn repairs_and_merges_agree() {
        let selection = Selection { removed: vec![2, 1, 4], scores: None };
        let of = |repair, merge| {
            Plan::of(6, &selection, &PlanSettings { repair, merge, density: 0.2.into() })
        };
        let mapped = of(Repair::LinearMap, 0).unwrap();
        assert_eq!((mapped.repair(), mapped.version), (Repair::LinearMap, 2));
        assert_eq!(mapped.runs(), [(Some(0), 1..=2), (Some(3), 4..=4)]);
        assert_eq!(of(Repair::Drop, 0).unwrap().version, 1);
        for (repair, merge, reason) in [
            (Repair::SameSign, 0, "say how many with --merge"),
            (Repair::LinearMap, 1, "`linear-map` merges no layers, and --merge says 1"),
            (Repair::Drop, 2, "`drop` merges no layers"),
        ] {
            let error = of(repair, merge).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let first = Plan::new(6, vec![0, 1], vec![], 0.2).with_repair(Repair::LinearMap).unwrap();
        assert_eq!(first.runs(), [(None, 0..=1)]);
        let whole = of(Repair::Laco, 0).unwrap();
        let merge = |into, from: &[usize]| Merge { into, from: from.to_vec() };
        assert_eq!((whole.repair(), whole.version), (Repair::Laco, 2));
        assert_eq!(whole.merges, [merge(0, &[1, 2]), merge(3, &[4])]);
        assert_eq!(of(Repair::Laco, 1).unwrap().merges, [merge(3, &[4])]);
        assert_eq!(of(Repair::SameSign, 1).unwrap().with_repair(Repair::Drop).unwrap().version, 1);
        let error = mapped.clone().with_repair(Repair::SameSign).unwrap_err().to_string();
        assert!(error.contains("make one that does by `gradpruner plan --merge`"), "{error}");
        let error = first.with_repair(Repair::Laco).unwrap_err().to_string();
        assert!(error.contains("layer 0 is to be merged"), "{error}");
        let old = Plan { version: 1, ..mapped };
        assert!(old.check().unwrap_err().to_string().contains("a key of version 2"));
    }
}
