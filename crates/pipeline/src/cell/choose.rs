//! The layers that go.

use checkpoint::{Checkpoint, Record, read_json};
use evidence::LossProbe;
use selection::{Criterion, Selection};
use serde_json::json;

use super::{CollectedSlots, RULES, Stages, found};
use crate::stage::{LossesOf, with_losses};
use crate::store::Slot;
use crate::{Done, Event, Result, Stage};

impl Stages<'_> {
    /// Chooses the layers that go, of all repairs alike: what is done to the others has no part in it.
    pub(crate) fn choose(
        &self,
        criterion: Criterion,
        collected: &CollectedSlots,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Selection> {
        let choice = self.settings.choice_by(criterion);
        let slot = self.selection_slot(criterion, collected);
        if found(Stage::Score, &slot, observe)? {
            return Ok(read_json(&slot.path)?);
        }
        let (record, model) =
            (Record::open(&collected.record.path)?, Checkpoint::open(self.model)?);
        let by =
            |losses: Option<&mut dyn LossProbe>| choice.of_record(&record, Some(&model), losses);
        let selection = slot.make(|| {
            let selection = if choice.needs_losses() {
                let of = LossesOf {
                    max_tokens: self.settings.training.max_tokens,
                    adapters: self.adapters(collected),
                };
                let context = self.context(self.model);
                with_losses(context, of, observe, |losses| by(Some(losses)))?
            } else {
                by(None)?
            };
            slot.write(&selection)?;
            Ok(selection)
        })?;
        let done = Done::Chosen { criterion, selection: selection.clone() };
        observe(Event::Done(Stage::Score, done));
        Ok(selection)
    }

    /// Where a criterion's choice lies, or will.
    pub(crate) fn selection_slot(&self, criterion: Criterion, collected: &CollectedSlots) -> Slot {
        let choice = self.settings.choice_by(criterion);
        let recipe = json!({
            "version": RULES, "common": self.common(), "record": collected.record.digest, "criterion": choice.criterion,
            "prune": choice.prune, "keep": choice.keep, "refine": choice.refine,
            "max_tokens": choice.needs_losses().then_some(self.settings.training.max_tokens),
        });
        self.store.slot("selection.json", &recipe)
    }

    /// A criterion's choice, if it has been made.
    pub(crate) fn chosen(
        &self,
        criterion: Criterion,
        collected: &CollectedSlots,
    ) -> Result<Option<Selection>> {
        let slot = self.selection_slot(criterion, collected);
        Ok(slot.is_there()?.then(|| read_json(&slot.path)).transpose()?)
    }
}
