//! `plan.json`: which layers are pruned and which of those are merged, and into what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use checkpoint::MOST_LAYERS;
use serde::{Deserialize, Serialize};

use crate::scores::write_json;
use crate::{PruneError, Result, Scores};

const FORMAT: &str = "gradpruner-plan";
const VERSION: u64 = 1;
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
    /// The share of each donor's elements that is kept.
    pub density: f64,
    rule: String,
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

/// How many layers to prune: a number, or a share of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many layers.
    Layers(usize),
    /// So many percent of the layers, rounded to nearest.
    Percent(f64),
}

impl Share {
    /// How many of `num_layers` are pruned: at least one, and at least one stays.
    ///
    /// # Errors
    ///
    /// [`PruneError::Share`] if it rounds to no layer or to all.
    pub fn layers_of(self, num_layers: usize) -> Result<usize> {
        let count = self.of(num_layers);
        let least = (50.0 / num_layers as f64).ceil();
        match count {
            0 => Err(PruneError::Share(format!(
                "{self} of {num_layers} layers rounds to none; prune at least 1 layer, or {least}%"
            ))),
            _ if count >= num_layers => Err(PruneError::Share(format!(
                "{self} is {count} of {num_layers} layers, and at least one must stay"
            ))),
            _ => Ok(count),
        }
    }

    fn of(self, num_layers: usize) -> usize {
        match self {
            Self::Layers(count) => count,
            Self::Percent(percent) => (num_layers as f64 * percent / 100.0).round() as usize,
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is neither a number of layers nor a share such as 40%");
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim().parse() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
                _ => Err(fail()),
            },
            None => text.parse().map(Self::Layers).map_err(|_| fail()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layers(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// How [`Plan::from_scores`] decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanSettings {
    /// How many layers are pruned.
    pub prune: Share,
    /// How many of them are merged.
    pub merge: usize,
    /// The share of each donor's elements that is kept.
    pub density: f64,
}

impl Plan {
    /// A plan by hand, with merging by the same-sign rule. [`Plan::check`] says whether it holds.
    pub fn new(num_layers: usize, pruned: Vec<usize>, merges: Vec<Merge>, density: f64) -> Self {
        let (format, rule) = (FORMAT.into(), SAME_SIGN.into());
        Self { format, version: VERSION, num_layers, pruned, merges, density, rule }
    }

    /// Prunes the lowest-scored layers and merges the highest-scored of these, each into the
    /// nearest retained layer before it (method.md §4).
    ///
    /// # Errors
    ///
    /// [`PruneError::Share`] if no layer is to go, or all; [`PruneError::Plan`] if more are to be
    /// merged than pruned, or a layer that no retained layer stands before.
    pub fn from_scores(scores: &Scores, settings: &PlanSettings) -> Result<Self> {
        let PlanSettings { prune, merge, density } = *settings;
        let num_layers = scores.layers.len();
        let count = prune.layers_of(num_layers)?;
        if merge > count {
            return Err(PruneError::Plan(format!(
                "{merge} layers are to be merged, but only {count} are pruned"
            )));
        }
        let ranking = scores.ranking();
        let (pruned, _) = ranking.split_at(count);
        let (_, donors) = pruned.split_at(count - merge);
        let pruned: BTreeSet<usize> = pruned.iter().copied().collect();
        let donors: BTreeSet<usize> = donors.iter().copied().collect();
        let mut merges: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &donor in &donors {
            let Some(into) = (0..donor).rev().find(|layer| !pruned.contains(layer)) else {
                return Err(PruneError::Plan(format!(
                    "layer {donor} is to be merged, but no retained layer stands before it; merge \
                     fewer layers, or prune fewer"
                )));
            };
            merges.entry(into).or_default().push(donor);
        }
        let merges = merges.into_iter().map(|(into, from)| Merge { into, from }).collect();
        let plan = Self::new(num_layers, pruned.into_iter().collect(), merges, density);
        plan.check()?;
        Ok(plan)
    }

    /// Checks that the plan can be carried out on a model of `num_layers` layers.
    ///
    /// # Errors
    ///
    /// [`PruneError::Plan`] with the first reason why not.
    pub fn check(&self) -> Result<()> {
        self.reason_against().map_or(Ok(()), |reason| Err(PruneError::Plan(reason)))
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, num_layers, pruned, merges, density, rule } = self;
        if format != FORMAT || *version != VERSION {
            return Some(format!("it says `{format}` version {version}, not `{FORMAT}` {VERSION}"));
        }
        if !(1..=MOST_LAYERS).contains(num_layers) {
            return Some(format!(
                "it is for {num_layers} layers; 1 to {MOST_LAYERS} are supported"
            ));
        }
        if rule != SAME_SIGN {
            return Some(format!("the rule `{rule}` is not known; there is `{SAME_SIGN}`"));
        }
        if !(0.0..=1.0).contains(density) {
            return Some(format!("the density is {density}, which is no share between 0 and 1"));
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
        write_json(path, self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Criterion, LayerScore};

    fn scores(values: &[f64]) -> Scores {
        let layers = values
            .iter()
            .enumerate()
            .map(|(layer, &score)| LayerScore { layer, score, modules: BTreeMap::new() })
            .collect();
        Scores::new(Criterion::Igia, layers)
    }

    fn settings(prune: usize, merge: usize) -> PlanSettings {
        PlanSettings { prune: Share::Layers(prune), merge, density: 0.2 }
    }

    #[test]
    fn golden_plans() {
        for name in testkit::GOLDEN {
            let file = testkit::fixture(&format!("{name}/scores_igia.json"));
            let expected = Plan::read(&testkit::fixture(&format!("{name}/plan.json"))).unwrap();
            let merge = expected.donors().len();
            let found =
                Plan::from_scores(&Scores::read(&file).unwrap(), &settings(3, merge)).unwrap();
            assert_eq!(found, expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_plan_holds(
            values in prop::collection::vec(0..5_u8, 1..12), prune in 0..12_usize, merge in 0..4_usize,
        ) {
            let scores = scores(&values.iter().copied().map(f64::from).collect::<Vec<_>>());
            if let Ok(plan) = Plan::from_scores(&scores, &settings(prune, merge)) {
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
            let error = Plan::from_scores(&scores(&[1.0, 2.0, 3.0]), &settings(prune, merge));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_share_of_no_layer_says_the_least() {
        let of = |text: &str, layers| text.parse::<Share>().unwrap().layers_of(layers);
        for layers in 2..200_usize {
            let least = (50.0 / layers as f64).ceil();
            assert!(of(&format!("{least}%"), layers).is_ok(), "{layers}");
            let below = of(&format!("{}%", 49.0 / layers as f64), layers).unwrap_err().to_string();
            assert!(below.contains(&format!("prune at least 1 layer, or {least}%")), "{below}");
        }
    }

    #[test]
    fn shares_round_to_nearest() {
        let of = |text: &str, layers| text.parse::<Share>().unwrap().of(layers);
        assert_eq!((of("40%", 32), of("33%", 30), of("13", 32)), (13, 10, 13));
        assert!("x%".parse::<Share>().is_err() && "120%".parse::<Share>().is_err());
    }
}
