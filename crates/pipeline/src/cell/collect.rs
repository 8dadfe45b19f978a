//! The record, and the training's state if the training goes on from it.

use checkpoint::remove_if_there;
use evidence::Need;
use selection::Criterion;
use serde_json::json;

use super::{Stages, found};
use crate::stage::{CollectTargets, collect_record};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage};

/// What a collection left.
#[derive(Debug, Clone)]
pub(crate) struct CollectedSlots {
    pub(crate) record: Slot,
    pub(crate) state: Option<Slot>,
}

impl Stages<'_> {
    /// Where a collection's results lie, or will.
    pub(crate) fn collected(&self) -> CollectedSlots {
        let recipe = json!({
            "common": self.common(), "collect": self.collecting(), "goes_on": self.settings.goes_on(),
            // How many steps it takes for the choice to settle depends on what is chosen by.
            "settles": self.settings.collect.auto.then_some(json!([
                self.settings.criterion, self.settings.prune, self.settings.keep,
            ])),
        });
        let record = self.store.slot("record", &recipe);
        let goes_on = self.settings.goes_on();
        let state = goes_on.then(|| self.store.slot("collected.state", &recipe));
        CollectedSlots { record, state }
    }

    /// Whose choice is followed as gradients are collected: of several criteria the first that gradients alone are enough
    /// for.
    fn followed(&self) -> Option<Criterion> {
        let criteria = self.settings.criterion.criteria();
        match criteria.as_slice() {
            [one] => Some(*one),
            several => several
                .iter()
                .copied()
                .find(|one| one.needs(Need::Gradients) && !one.needs(Need::Loss)),
        }
    }

    /// Collects gradients, unless what they leave is there.
    pub(crate) fn collect(&self, observe: &mut dyn FnMut(Event)) -> Result<CollectedSlots> {
        let collected = self.collected();
        let CollectedSlots { record, state } = &collected;
        if let Some(state) = state
            && !state.is_there()?
        {
            // One without the other is of no use: the state belongs to these very steps.
            remove_if_there(&record.path)?;
        }
        if found(Stage::Collect, record, observe)? {
            return Ok(collected);
        }
        let targets = CollectTargets {
            record: Some(&record.path),
            state: state.as_ref().map(|slot| slot.path.as_path()),
            model_name: &self.settings.model,
            log: self.log,
            choice: self.followed().map(|one| self.settings.choice_by(one)),
        };
        let settings = self.settings.collecting();
        let found = record
            .make(|| collect_record(self.context(self.model), &settings, targets, observe))?;
        let (steps, stability) = (found.steps.len(), found.stability);
        observe(Event::Done(Stage::Collect, Done::Collected { steps, stability }));
        Ok(collected)
    }
}
