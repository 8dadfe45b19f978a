//! How many layers go, where a person says how much may be lost: the most whose model, pruned and fine-tuned whole, stands
//! as well on held-out rows as the dense model fine-tuned alike, but for that.

use checkpoint::read_json;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CollectedSlots, Stages, found};
use crate::log::LogTargets;
use crate::stage::{Trial, Until};
use crate::store::{Slot, Store};
use crate::{Done, Event, MaxDrop, PipelineError, Result, RunSettings, Stage};

/// How it was found how many layers go; `amount.json` of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Amount {
    /// How much may be lost.
    pub max_drop: MaxDrop,
    /// How many layers go.
    pub layers: usize,
    /// How the dense model stands, fine-tuned alike.
    pub dense: Trial,
    /// What was tried, in that order.
    pub tried: Vec<TriedAmount>,
}

/// A number of layers, and what is lost without so many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedAmount {
    /// How many layers went.
    pub layers: usize,
    /// How the fine-tuned model stands.
    pub trial: Trial,
    /// What is lost against the dense model; `None` if it is not finite.
    pub lost: Option<f64>,
    /// Whether that may be lost.
    pub within: bool,
}

/// Amounts between none and the most that are told apart, about.
const AMOUNTS: usize = 8;

impl Stages<'_> {
    /// How many layers go, if a person said how much may be lost.
    pub(crate) fn amount(
        &self,
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<Amount>> {
        let Some(max_drop) = self.settings.max_drop else { return Ok(None) };
        let slot = self.amount_slot(collected, max_drop);
        let scratch = self.store.scratch("amounts")?;
        if !found(Stage::Amount, &slot, observe)? {
            let amount = slot.make(|| {
                let amount = self.find_amount(&scratch, collected, max_drop, observe)?;
                slot.write(&amount)?;
                Ok(amount)
            })?;
            observe(Event::Done(Stage::Amount, Done::Amount(amount)));
        }
        let amount: Amount = read_json(&slot.path)?;
        self.adopt_amount(&scratch, collected, amount.layers)?;
        Ok(Some(amount))
    }

    fn amount_slot(&self, collected: &CollectedSlots, max_drop: MaxDrop) -> Slot {
        self.store
            .slot("amount.json", json!({"max_drop": max_drop, "of": self.trying_out(collected)}))
    }

    fn find_amount(
        &self,
        scratch: &Store,
        collected: &CollectedSlots,
        max_drop: MaxDrop,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Amount> {
        observe(Event::Started(Stage::DenseFinetune));
        let dense = self.trial(&self.dense(), collected, Until::End, observe)?;
        if !self.store.is_shared() {
            let tuned = self.tuned(collected, &self.dense())?;
            self.trial_slot(&tuned, Until::End).be_a_part()?;
        }
        let most = self.settings.prune.layers_of(self.num_layers)?;
        let mut tried = Vec::new();
        let layers = largest(most, &mut |layers| {
            observe(Event::Started(Stage::Amount));
            let settings = self.settings.pruning(layers);
            let within = self.on_trial(&settings, scratch);
            let decision = within.decide(collected, observe)?;
            let base = within.prune(collected, &within.plan_of(&decision.selection)?, observe)?;
            observe(Event::Started(Stage::Finetune));
            let trial = within.trial(&base, collected, Until::End, observe)?;
            let lost = MaxDrop::lost(&dense, &trial);
            let is_within = lost.is_some_and(|lost| max_drop.allows(lost));
            let found = TriedAmount { layers, trial, lost, within: is_within };
            observe(Event::TriedAmount(found));
            tried.push(found);
            Ok(is_within)
        })?;
        match layers {
            0 => Err(PipelineError::NoAmount(nothing_goes(max_drop, &tried))),
            layers => Ok(Amount { max_drop, layers, dense, tried }),
        }
    }

    /// The stages of one amount, in a place of its own.
    fn on_trial<'b>(&'b self, settings: &'b RunSettings, scratch: &'b Store) -> Stages<'b> {
        Stages { settings, store: scratch, log: LogTargets::default(), ..*self }
    }

    /// Takes over what was made for the amount that is taken, and removes the others.
    fn adopt_amount(
        &self,
        scratch: &Store,
        collected: &CollectedSlots,
        layers: usize,
    ) -> Result<()> {
        if scratch.is(self.store) {
            return Ok(());
        }
        let settings = self.settings.pruning(layers);
        let within = self.on_trial(&settings, scratch);
        let here = Stages { settings: &settings, ..*self };
        let copy = |from: &Slot, to: &Slot| match from.is_there()? && !to.is_there()? {
            true => to.copy(from),
            false => Ok(()),
        };
        let chosen = if let Some(criterion) = settings.criterion.criterion() {
            let [from, to] = [&within, &here].map(|of| of.selection_slot(criterion, collected));
            copy(&from, &to)?;
            within.chosen(criterion, collected)?
        } else {
            copy(&within.race_slot(collected), &here.race_slot(collected))?;
            within.raced(collected)?.map(|race| race.selection)
        };
        match chosen {
            Some(selection) => here.adopt(&within, collected, &here.plan_of(&selection)?),
            // Taken over already.
            None => scratch.remove(),
        }
    }
}

/// The largest of about [`AMOUNTS`] numbers up to `most` that `is_within`, by halving; 0 if none is. Fewer layers are taken to
/// lose no more.
fn largest(most: usize, is_within: &mut dyn FnMut(usize) -> Result<bool>) -> Result<usize> {
    let step = most.div_ceil(AMOUNTS).max(1);
    let amount = |number: usize| (number * step).min(most);
    let (mut within, mut beyond) = (0, most.div_ceil(step) + 1);
    while beyond - within > 1 {
        let middle = within.midpoint(beyond);
        match is_within(amount(middle))? {
            true => within = middle,
            false => beyond = middle,
        }
    }
    Ok(amount(within))
}

/// That even the fewest layers lose too much.
fn nothing_goes(max_drop: MaxDrop, tried: &[TriedAmount]) -> String {
    let text = |tried: &TriedAmount| {
        let of = match tried.trial.acc {
            Some(_) => "points of accuracy",
            None => "% of perplexity",
        };
        let lost = tried.lost.map_or_else(
            || "are not finite".to_owned(),
            |lost| format!("lose {:.1} {of}", 100.0 * lost),
        );
        format!("{} {lost}", tried.layers)
    };
    let all: Vec<String> = tried.iter().map(text).collect();
    format!(
        "no number of layers can go within --max-drop {max_drop} on the rows held out: models without {}; allow more, train \
         longer, hold out more rows (--choose), or say how much to --prune",
        all.join(", ")
    )
}

/// How many trainings [`largest`] takes at most.
pub(crate) fn most_trials(most: usize) -> usize {
    let step = most.div_ceil(AMOUNTS).max(1);
    (most.div_ceil(step) + 1).next_power_of_two().ilog2() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What trying every amount would find, in no more trials than are foretold.
    #[test]
    fn halving_finds_the_largest() {
        for most in 1..40_usize {
            let step = most.div_ceil(AMOUNTS);
            for limit in 0..=most {
                let mut trials = 0;
                let found = largest(most, &mut |layers| {
                    trials += 1;
                    assert!((1..=most).contains(&layers));
                    Ok(layers <= limit)
                });
                let amounts = (1..=most).filter(|layers| layers % step == 0 || *layers == most);
                let expected = amounts.filter(|&layers| layers <= limit).max().unwrap_or(0);
                assert_eq!(found.unwrap(), expected, "{most}, {limit}");
                assert!(trials <= most_trials(most), "{most}, {limit}: {trials}");
            }
        }
    }
}
