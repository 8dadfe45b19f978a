//! The choices of several criteria, pruned, repaired and compared on rows held out: as they come out of that, or in a race,
//! each fine-tuned for a few steps, the worse half dropped round by round.
//!
//! In a race all begin at the collected steps, with the same seed, rate and batches. What a candidate has trained is its training's
//! own beginning: the winner goes on from there, and only what the others trained is spent on top.

use checkpoint::{read_json, remove_if_there};
use selection::{Criterion, Plan, Scores, Selection, SelectionError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::trial::trial_lines;
use super::{Base, CollectedSlots, RULES, Stages, found, lasting};
use crate::log::replay;
use crate::stage::{JUDGED_ROWS, Trial, Until};
use crate::store::Slot;
use crate::{Choosing, Done, Event, PipelineError, Result, Stage};

/// How choices compared; `race.json` of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Race {
    /// What the winner chose.
    pub selection: Selection,
    /// Those who ran, the winner first, then by how far they came.
    pub candidates: Vec<Candidate>,
    /// Scores of the layers, if any criterion gives them: the winner's, or else the first's that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
    /// Whether no candidate was clearly better than always giving the most frequent answer, a quarter of the training in.
    pub collapsed: bool,
}

/// One choice of layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Whose choice it is; of several, if they chose the same layers.
    pub criteria: Vec<Criterion>,
    /// The layers that go.
    pub pruned: Vec<usize>,
    /// How good it was, by the steps it had trained.
    pub trials: Vec<Trial>,
}

/// What layers are pruned by, and how that was found.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) selection: Selection,
    /// `None` if one criterion chose.
    pub(crate) race: Option<Race>,
}

/// Seconds that a decision took when it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct DecidedIn {
    /// To choose layers, and to prune and try out what did not win.
    pub(crate) choosing: f64,
    /// The winner's trials, which are the beginning of its training.
    pub(crate) training: f64,
}

/// A candidate under way.
struct Runner {
    candidate: Candidate,
    selection: Selection,
    base: Base,
}

/// Fewer rows than these tell choices hardly apart.
const FEW_ROWS: usize = 32;
/// Others that take over, at most, where the winner has collapsed a quarter of the training in.
const TAKE_OVERS: usize = 2;

impl Stages<'_> {
    /// Chooses the layers that go: by a criterion, or by how several choices come out.
    pub(crate) fn decide(
        &self,
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Decision> {
        if let Some(criterion) = self.settings.criterion.criterion() {
            let selection = self.choose(criterion, collected, observe)?;
            return Ok(Decision { selection, race: None });
        }
        let slot = self.race_slot(collected);
        let scratch = self.store.scratch("race")?;
        let within = Stages { store: &scratch, ..*self };
        if !found(Stage::Race, &slot, observe)? {
            let won = slot.make(|| {
                let won = within.race(collected, observe)?;
                slot.write(&won)?;
                Ok(won)
            })?;
            observe(Event::Done(Stage::Race, Done::Raced(won)));
        }
        let race: Race = read_json(&slot.path)?;
        let plan = self.plan_of(&race.selection)?;
        self.adopt(&within, collected, &plan)?;
        let selection = race.selection.clone();
        Ok(Decision { selection, race: Some(race) })
    }

    /// How long a decision took, by the notes on all that it was made from.
    pub(crate) fn decided_in(
        &self,
        collected: &CollectedSlots,
        decision: &Decision,
    ) -> Result<DecidedIn> {
        let criteria = self.settings.criterion.criteria().into_iter();
        let choices = criteria.map(|one| self.selection_slot(one, collected).seconds());
        let mut took = DecidedIn { choosing: choices.sum(), training: 0.0 };
        let candidates = decision.race.iter().flat_map(|race| &race.candidates);
        for (place, candidate) in candidates.enumerate() {
            let Some(&criterion) = candidate.criteria.first() else { continue };
            let Some(selection) = self.chosen(criterion, collected)? else { continue };
            let base = self.base(collected, &self.plan_of(&selection)?);
            let tuned = self.tuned(collected, &base)?;
            let seconds = |until| self.trial_slot(&tuned, until).seconds();
            let rounds = || (1..=candidate.trials.len()).map(Until::Round).map(seconds).sum();
            let (looks, trained): (f64, f64) = match self.settings.criterion {
                Choosing::By(_) => (0.0, 0.0),
                Choosing::Best(_) => (seconds(Until::Start), 0.0),
                Choosing::Race(_) => (0.0, rounds()),
                Choosing::Auto => (0.0, rounds() + seconds(Until::Quarter)),
            };
            took.choosing += looks;
            match place {
                0 => took.training += trained,
                _ => took.choosing += trained + base.seconds,
            }
        }
        Ok(took)
    }

    /// How the race came out, if there was one and it is done.
    pub(crate) fn raced(&self, collected: &CollectedSlots) -> Result<Option<Race>> {
        let slot = self.race_slot(collected);
        match self.settings.criterion.compares() && slot.is_there()? {
            true => Ok(Some(read_json(&slot.path)?)),
            false => Ok(None),
        }
    }

    pub(super) fn race_slot(&self, collected: &CollectedSlots) -> Slot {
        self.store.slot("race.json", self.trying_out(collected))
    }

    /// What it depends on how models come out that are pruned, repaired and trained for a part.
    pub(super) fn trying_out(&self, collected: &CollectedSlots) -> Value {
        let settings = self.settings;
        json!({
            "version": RULES, "rows": JUDGED_ROWS, "common": self.common(), "record": collected.record.digest,
            "choosing": settings.criterion, "criteria": settings.criterion.criteria(),
            "prune": settings.prune, "keep": settings.keep, "refine": settings.refine,
            "repair": settings.repair, "merge": settings.merge, "density": settings.density, "linear_map": settings.linear_map, "finetune": settings.finetune,
            "repair_always": settings.repair_always, "training": lasting(&settings.training),
            "teacher": self.digests.teacher, "look": self.looking(),
        })
    }

    pub(crate) fn plan_of(&self, selection: &Selection) -> Result<Plan> {
        Ok(Plan::of(self.num_layers, selection, &self.settings.planning())?)
    }

    fn race(&self, collected: &CollectedSlots, observe: &mut dyn FnMut(Event)) -> Result<Race> {
        let (mut running, scores) = self.candidates(collected, observe)?;
        if running.len() > 1 {
            let (_, held_out) = self.context(self.model).rows()?;
            if held_out.len() < FEW_ROWS {
                tracing::warn!(
                    "choices of layers are compared on {} rows held out, too few for a reliable choice; hold out more (--choose) if there \
                     are more",
                    held_out.len()
                );
            }
        }
        match self.settings.criterion.races() {
            true => self.rounds(&mut running, collected, observe)?,
            false => self.order(&mut running, collected, Until::Start, observe)?,
        }
        let collapsed = match self.settings.criterion {
            Choosing::Auto => self.take_over(&mut running, collected, observe)?,
            Choosing::By(_) | Choosing::Best(_) | Choosing::Race(_) => false,
        };
        let selection = match running.first() {
            Some(winner) => winner.selection.clone(),
            None => return Err(PipelineError::Settings("no criterion could choose layers".into())),
        };
        for loser in running.iter().skip(1) {
            self.forget(collected, loser)?;
        }
        let scores = selection.scores.clone().or(scores);
        let candidates = running.into_iter().map(|runner| runner.candidate).collect();
        Ok(Race { selection, candidates, scores, collapsed })
    }

    /// Runs until one is left; the others come behind it, by how far they came.
    fn rounds(
        &self,
        running: &mut Vec<Runner>,
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let mut fallen: Vec<Runner> = Vec::new();
        let mut round = 0;
        while running.len() > 1 {
            round += 1;
            self.order(running, collected, Until::Round(round), observe)?;
            let mut worse = running.split_off(running.len().div_ceil(2));
            worse.append(&mut fallen);
            fallen = worse;
        }
        running.append(&mut fallen);
        Ok(())
    }

    /// Tries all out and puts the best first; if there is but one, there is nothing to find out.
    fn order(
        &self,
        runners: &mut [Runner],
        collected: &CollectedSlots,
        until: Until,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if runners.len() < 2 {
            return Ok(());
        }
        for runner in &mut *runners {
            self.try_out(runner, collected, until, observe)?;
        }
        // Stable: of equals the one that was named first stays.
        runners.sort_by(|one, other| rank(one).total_cmp(&rank(other)));
        if runners.iter().all(|runner| rank(runner).is_infinite()) {
            tracing::warn!(
                "the loss of no candidate is finite, so the first is taken; compute in f32, or prune fewer layers"
            );
        }
        Ok(())
    }

    /// Removes what a loser has trained: nothing goes on from there.
    fn forget(&self, collected: &CollectedSlots, loser: &Runner) -> Result<()> {
        let tuned = self.tuned(collected, &loser.base)?;
        remove_if_there(&tuned.path.with_extension("state"))?;
        Ok(remove_if_there(&trial_lines(&tuned))?)
    }

    /// Every criterion's choice, equal ones once, pruned and repaired; and the first scores that one of them gives.
    fn candidates(
        &self,
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<(Vec<Runner>, Option<Scores>)> {
        let mut found: Vec<(Candidate, Selection, Plan)> = Vec::new();
        let (mut scores, mut refused) = (None, None);
        for criterion in self.settings.criterion.criteria() {
            let selection = match self.choose(criterion, collected, observe) {
                Ok(selection) => selection,
                // Such as one that takes layers in a row, where the guard leaves none.
                Err(PipelineError::Selection(
                    error @ (SelectionError::Keep(_) | SelectionError::Share(_)),
                )) => {
                    tracing::warn!("{} has no choice to compare: {error}", criterion.name());
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Such as one that takes layer 0 where it is to be merged into the layer before.
            let plan = match self.plan_of(&selection) {
                Ok(plan) => plan,
                Err(error) => {
                    tracing::warn!("there is no plan by {}: {error}", criterion.name());
                    refused = Some(error);
                    continue;
                }
            };
            scores = scores.or_else(|| selection.scores.clone());
            let same = found.iter_mut().find(|(candidate, ..)| candidate.pruned == plan.pruned);
            if let Some((candidate, ..)) = same {
                candidate.criteria.push(criterion);
            } else {
                let (criteria, pruned) = (vec![criterion], plan.pruned.clone());
                found.push((Candidate { criteria, pruned, trials: Vec::new() }, selection, plan));
            }
        }
        if let (true, Some(error)) = (found.is_empty(), refused) {
            return Err(error);
        }
        let runners: Result<Vec<Runner>> = found
            .into_iter()
            .map(|(candidate, selection, plan)| {
                let (criteria, pruned) = (candidate.criteria.clone(), candidate.pruned.clone());
                observe(Event::Trying { criteria, pruned });
                let base = self.prune(collected, &plan, observe)?;
                Ok(Runner { candidate, selection, base })
            })
            .collect();
        Ok((runners?, scores))
    }

    /// Trains a candidate further and notes how good it is then.
    fn try_out(
        &self,
        runner: &mut Runner,
        collected: &CollectedSlots,
        until: Until,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let criteria = runner.candidate.criteria.clone();
        observe(Event::Started(Stage::Race));
        if until != Until::Start {
            let pruned = runner.candidate.pruned.clone();
            observe(Event::Trying { criteria: criteria.clone(), pruned });
        }
        let found = self.trial(&runner.base, collected, until, observe)?;
        observe(Event::Tried { criteria, trial: found });
        runner.candidate.trials.push(found);
        Ok(())
    }

    /// Trains the winner on to a quarter of its training and, where it has collapsed, the next ones; the first that has
    /// not comes first, or else the one with the lowest loss. Returns whether all that were looked at have collapsed.
    fn take_over(
        &self,
        runners: &mut [Runner],
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<bool> {
        let looked_at = runners.len().min(1 + TAKE_OVERS);
        for place in 0..looked_at {
            self.try_out(&mut runners[place], collected, Until::Quarter, observe)?;
            let stands = runners[place].candidate.trials.last().is_some_and(|x| !x.has_collapsed());
            if stands {
                runners[..=place].rotate_right(1);
                return Ok(false);
            }
        }
        runners[..looked_at].sort_by(|one, other| rank(one).total_cmp(&rank(other)));
        Ok(true)
    }

    /// Takes the winner's results over from where the race was run, and removes the others.
    pub(super) fn adopt(
        &self,
        within: &Stages<'_>,
        collected: &CollectedSlots,
        plan: &Plan,
    ) -> Result<()> {
        if within.store.is(self.store) {
            return Ok(());
        }
        // Before anything moves: the verdict says where the others lie.
        let old = within.pruning(collected, plan);
        let old_tuned = within.tuned(collected, &within.base(collected, plan))?;
        if let Some((old, new)) =
            within.verdict_slot(collected, plan).zip(self.verdict_slot(collected, plan))
            && old.is_there()?
            && !new.is_there()?
        {
            new.copy(&old)?; // It stays for a call that goes on after a kill.
        }
        let new = self.pruning(collected, plan);
        for (old, new) in old.all().zip(new.all()) {
            if old.is_there()? && !new.is_there()? {
                new.adopt(old)?;
            }
        }
        let tuned = self.tuned(collected, &self.base(collected, plan))?;
        let saves = old_tuned.path.with_extension("state");
        if saves.exists() && !tuned.path.exists() {
            replay(&trial_lines(&old_tuned), self.log, Stage::Finetune)?;
            let to = tuned.path.with_extension("state");
            remove_if_there(&to)?;
            fs_err::rename(&saves, &to)?;
        }
        within.store.remove()
    }
}

fn rank(runner: &Runner) -> f64 {
    runner.candidate.trials.last().map_or(f64::INFINITY, Trial::rank)
}
