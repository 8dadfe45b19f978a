//! Learning from a teacher too: the dense model with its own adapters, or another of the same tokenizer.
//!
//! ```text
//! (1 − λ)·CE + λ·T²·KL_k + β·H
//! ```
//!
//! `KL_k` is in [`divergence`], `H` in [`states`], what the teacher says of a batch in [`teacher`].

mod divergence;
mod same;
mod states;
mod teacher;
#[cfg(test)]
mod tests;

use dataset::Example;
use serde::{Deserialize, Serialize};

use crate::loss::{Objective, PassSums};
use crate::pack::Packed;
use crate::{FinetuneError, Model, Result};

use divergence::Distilled;
use states::Boundaries;
use teacher::Asked;
pub use teacher::{Teacher, require_same_tokens};

/// How much a teacher counts, and in what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DistilSettings {
    /// `λ`, from 0 to 1: the divergence's share of the loss; the labels' is `1 − λ`.
    pub weight: f64,
    /// `T`: logits of both are divided by it before they are compared.
    pub temperature: f64,
    /// `k`: how many of the teacher's probabilities are compared one by one; all others are one bucket.
    pub top_k: usize,
    /// `β` of the first step: the weight of hidden states where layers were cut. It falls to 0 in a straight
    /// line over the first half of the steps taken.
    pub hidden: f64,
}

impl DistilSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] with the first that cannot be used.
    pub fn check(&self) -> Result<()> {
        let Self { weight, temperature, top_k, hidden } = *self;
        let fail = |what: &str| Err(FinetuneError::Settings(what.into()));
        if !(0.0..=1.0).contains(&weight) {
            return fail("the weight of distillation must be from 0 to 1");
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return fail("the temperature of distillation must be above 0");
        }
        if !(hidden >= 0.0 && hidden.is_finite()) {
            return fail("the weight of hidden states must be 0 or above");
        }
        if top_k == 0 {
            return fail("at least one of the teacher's probabilities must be compared");
        }
        if weight == 0.0 && hidden == 0.0 {
            return fail("a teacher whose weights are all 0 teaches nothing");
        }
        Ok(())
    }

    /// `β` at a step counted from 0, of `total` that are taken, where the teacher joined at step `from`.
    fn hidden_at(&self, step: usize, from: usize, total: usize) -> f64 {
        let half = total.saturating_sub(from) as f64 / 2.0;
        let gone = step.saturating_sub(from) as f64;
        self.hidden * (1.0 - gone / half.max(f64::MIN_POSITIVE)).max(0.0)
    }
}

/// What a step's loss was made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DistilTerms {
    /// `KL_k`, a mean over labelled tokens.
    pub divergence: f64,
    /// `H`, a mean over tokens and cuts; 0 once `β` is, as it is not computed then.
    pub hidden: f64,
    /// `β` at this step.
    pub hidden_weight: f64,
    /// `(1 − λ)·CE + λ·T²·KL_k + β·H`, what the step's gradient is of.
    pub objective: f64,
}

/// A teacher and how much it counts.
#[derive(Debug)]
pub(crate) struct Distillation {
    teacher: Teacher,
    settings: DistilSettings,
}

impl Distillation {
    /// Takes a teacher on. Where its frozen weights are the student's, the student reads them in the teacher's
    /// place.
    pub(crate) fn new(
        teacher: Teacher,
        settings: DistilSettings,
        student: &mut Model,
    ) -> Result<Self> {
        settings.check()?;
        teacher.require_fit(student, settings.hidden > 0.0)?;
        same::share_weights(&teacher, student)?;
        Ok(Self { teacher, settings })
    }

    pub(crate) fn settings(&self) -> &DistilSettings {
        &self.settings
    }

    /// What tells this teacher from another.
    pub(crate) fn identity(&self) -> Result<String> {
        self.teacher.identity()
    }

    /// What is to be learned at a step counted from 0, of `total` that are taken, where the teacher joined at step `from`.
    pub(crate) fn at(&self, step: usize, from: usize, total: usize) -> Lesson<'_> {
        Lesson { of: self, hidden_weight: self.settings.hidden_at(step, from, total) }
    }
}

/// One step's part of a distillation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lesson<'a> {
    of: &'a Distillation,
    hidden_weight: f64,
}

/// What makes means of a step's sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scales {
    /// One by the labelled tokens of all the step's rows.
    pub(crate) labelled: f64,
    /// One by those of their tokens that are not the first of a row; 0 if there are none.
    pub(crate) later: f64,
}

impl Scales {
    /// Of all of a step's rows.
    pub(crate) fn of(examples: &[&Example]) -> Self {
        let sum = |of: fn(&Example) -> usize| examples.iter().map(|row| of(row)).sum::<usize>();
        let later = sum(|row| row.tokens.len().saturating_sub(1));
        Self {
            labelled: 1.0 / sum(Example::learned) as f64,
            later: if later == 0 { 0.0 } else { 1.0 / later as f64 },
        }
    }
}

impl Lesson<'_> {
    /// Adds the gradients of a batch's part of the objective to what trains.
    pub(crate) fn learn(
        &self,
        batch: &Packed,
        scales: Scales,
        pass: &mut dyn FnMut(&Objective<'_>) -> Result<PassSums>,
    ) -> Result<PassSums> {
        let Distillation { teacher, settings } = self.of;
        let cuts = teacher.num_cuts();
        let asked = Asked {
            probabilities: (settings.weight > 0.0)
                .then_some((settings.top_k, settings.temperature)),
            states: self.hidden_weight > 0.0 && scales.later > 0.0 && cuts > 0,
        };
        let targets = teacher.targets(batch, asked)?;
        let tokens =
            Distilled { likeliest: targets.likeliest.as_ref(), settings, scale: scales.labelled };
        let states = targets.states.as_ref().map(|states| Boundaries {
            states,
            later: &targets.later,
            scale: scales.later / cuts as f64,
            weight: self.hidden_weight,
        });
        let states = states.as_ref().map(|states| states as &dyn crate::loss::StateLoss);
        pass(&Objective { tokens: &tokens, states })
    }

    /// The step's figures, of the sums over all its batches.
    pub(crate) fn terms(&self, sums: PassSums, scales: Scales) -> DistilTerms {
        let DistilSettings { weight, temperature, .. } = self.of.settings;
        let loss = sums.tokens.negative_log_likelihood * scales.labelled;
        let divergence = sums.tokens.divergence * scales.labelled;
        let (hidden, hidden_weight) = (sums.states, self.hidden_weight);
        let objective = (1.0 - weight) * loss
            + weight * temperature.powi(2) * divergence
            + hidden_weight * hidden;
        DistilTerms { divergence, hidden, hidden_weight, objective }
    }
}
