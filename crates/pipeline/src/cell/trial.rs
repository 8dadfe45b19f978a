//! A look at a model a part of its training in; what it trains for that is the training's own beginning.

use std::path::{Path, PathBuf};

use checkpoint::{Staging, read_json, remove_if_there};
use serde_json::{Value, json};

use super::{Base, CollectedSlots, Stages};
use crate::log::LogTargets;
use crate::stage::{FinetuneSettings, Trial, TrialTarget, Until, trial};
use crate::store::Slot;
use crate::{Event, FinetuneMethod, LoraTargets, Result, Stage, TrainingSettings};

/// Raised whenever a look is taken after other steps or at other rows.
const LOOKS: u32 = 2;
/// In a folder of saved states: what stands for the training they are of.
const OWNER: &str = "training";

impl Stages<'_> {
    /// How good a pruned model is a part of its training in.
    pub(crate) fn trial(
        &self,
        base: &Base,
        collected: &CollectedSlots,
        until: Until,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Trial> {
        let tuned = self.tuned(collected, base)?;
        let slot = self.trial_slot(&tuned, until);
        slot.clear_other()?; // That of a plan that was edited since is of no use.
        if slot.is_there()? {
            return Ok(read_json(&slot.path)?);
        }
        let own = trial_lines(&tuned);
        let trains = until != Until::Start;
        // A run's own steps are logged with the others; those that may be in vain are not.
        let log = match (trains, self.store.is(self.home)) {
            (false, _) => LogTargets::default(),
            (true, true) => self.log,
            (true, false) => LogTargets { lines: Some(&own), events: None },
        };
        let stage = if self.is_dense(base) { Stage::DenseFinetune } else { Stage::Finetune };
        let target = TrialTarget {
            saves: trains.then(|| Self::saves(&tuned)).transpose()?,
            from: self.continuation(collected, base)?,
            until,
            stage,
            evaluation: &self.settings.evaluation,
            log,
        };
        let training = self.training_on(collected, base)?;
        let (training, teacher) = match trains {
            true => (training, self.teacher(collected, base, observe)?),
            // Adapters as the collected steps have left them, or else such as add nothing yet, whatever they are to be.
            false if collected.state.is_some() => (training.untaught(), None),
            false => (
                TrainingSettings {
                    lora_layers: None,
                    lora_targets: LoraTargets::all(),
                    lora_rank: 1,
                    ..training.untaught()
                },
                None,
            ),
        };
        let method = if trains { self.settings.finetune } else { FinetuneMethod::Lora };
        let settings =
            FinetuneSettings { method, ..self.finetuning(base, &training, teacher.as_ref()) };
        let context = self.context(&base.folder);
        slot.make(|| {
            let found = trial(context, settings, &target, observe)?;
            slot.write(&found)?;
            Ok(found)
        })
    }

    /// Whether it is known how good a model is then.
    pub(crate) fn has_trial(
        &self,
        collected: &CollectedSlots,
        base: &Base,
        until: Until,
    ) -> Result<bool> {
        self.trial_slot(&self.tuned(collected, base)?, until).is_there()
    }

    /// Seconds that it took to train a model so far, and to look at it.
    pub(crate) fn trial_seconds(
        &self,
        collected: &CollectedSlots,
        base: &Base,
        until: Until,
    ) -> Result<f64> {
        Ok(self.trial_slot(&self.tuned(collected, base)?, until).seconds())
    }

    /// Where it lies how a model stood, or will.
    pub(super) fn trial_slot(&self, tuned: &Slot, until: Until) -> Slot {
        let recipe = json!({"tuned": tuned.digest, "until": until, "look": self.looking()});
        self.store.slot("trial.json", recipe)
    }

    /// What of the settings a look at a model depends on.
    pub(super) fn looking(&self) -> Value {
        let evaluation = &self.settings.evaluation;
        json!({
            "version": LOOKS, "max_tokens": evaluation.max_tokens, "batch_tokens": evaluation.batch_tokens,
        })
    }

    /// Looks at a pruned model a quarter of its training in, and says if it has collapsed.
    pub(crate) fn watch(
        &self,
        collected: &CollectedSlots,
        base: &Base,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if self.tuned(collected, base)?.is_there()? {
            return Ok(());
        }
        observe(Event::Started(Stage::Finetune));
        let trial = self.trial(base, collected, Until::Quarter, observe)?;
        if trial.has_collapsed() {
            let gone = |layer: &usize| !base.origin.contains(layer);
            let pruned = (0..self.num_layers).filter(gone).collect();
            observe(Event::Collapsed { trial, pruned });
        }
        Ok(())
    }

    /// Where the state of an unfinished training lies, or will. One that another training left there goes: it may be
    /// of other layers, which nothing in it tells.
    pub(super) fn saves(tuned: &Slot) -> Result<PathBuf> {
        let folder = tuned.path.with_extension("state");
        let owner = folder.join(OWNER);
        let is_ours =
            |owner: &Path| fs_err::read_to_string(owner).is_ok_and(|digest| digest == tuned.digest);
        if !is_ours(&owner) {
            remove_if_there(&folder)?;
            fs_err::create_dir_all(&folder)?;
            Staging::write(&owner, tuned.digest.as_bytes())?;
        }
        Ok(folder)
    }
}

/// Where a candidate's steps are logged.
pub(super) fn trial_lines(tuned: &Slot) -> PathBuf {
    tuned.path.with_extension("trial.jsonl")
}
