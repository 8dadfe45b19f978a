//! Layers chosen: evidence to a selection, with second thoughts if they are wanted.

use checkpoint::{Checkpoint, Record};
use evidence::{Evidence, EvidenceError, LossProbe, Need};
use selection::{Criterion, Keep, Refine, Request, Scores, Selection, Share, swap};

use crate::{PipelineError, Result};

/// Which layers are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What makes a layer go.
    pub criterion: Criterion,
    /// How many go.
    pub prune: Share,
    /// Which never do.
    pub keep: Keep,
    /// What is done to the choice.
    pub refine: Refine,
    /// For criteria that draw lots.
    pub seed: u64,
}

impl Choice {
    /// Whether it takes losses with layers skipped.
    pub fn needs_losses(&self) -> bool {
        self.criterion.needs(Need::Loss) || self.refine == Refine::Swap
    }

    /// The request for a model's layers.
    ///
    /// # Errors
    ///
    /// If the share is no layer or all, or too few layers may go.
    pub fn request(&self, num_layers: usize) -> Result<Request> {
        let Self { criterion, prune, keep, seed, .. } = *self;
        Ok(criterion.request(num_layers, prune, keep, seed)?)
    }

    /// Chooses by a record, and by the model and losses where it takes them.
    ///
    /// # Errors
    ///
    /// If evidence is missing or cannot be used.
    pub fn of_record(
        &self,
        record: &Record,
        model: Option<&Checkpoint>,
        mut losses: Option<&mut dyn LossProbe>,
    ) -> Result<Selection> {
        let num_layers = record.num_layers();
        if let Some(found) = model.map(Checkpoint::num_layers)
            && found != num_layers
        {
            return Err(PipelineError::Settings(format!(
                "the record is of a model of {num_layers} layers, and this one has {found}; name the model it was \
                 collected on"
            )));
        }
        let request = self.request(num_layers)?;
        let selection = {
            let mut seen = Evidence::of_record(record, self.criterion.all_needs())?;
            seen.model = model;
            // Lent, not given: the refinement wants it too.
            seen.losses = match &mut losses {
                Some(losses) => Some(&mut **losses),
                None => None,
            };
            self.criterion.select(&mut seen, &request)?
        };
        self.refined(selection, &request, losses)
    }

    /// Chooses by scores that are there already.
    ///
    /// # Errors
    ///
    /// As [`Choice::of_record`].
    pub fn of_scores(
        &self,
        scores: Scores,
        losses: Option<&mut dyn LossProbe>,
    ) -> Result<Selection> {
        let request = self.request(scores.layers.len())?;
        let removed = request.first_of(scores.ranking());
        self.refined(Selection { removed, scores: Some(scores) }, &request, losses)
    }

    fn refined(
        &self,
        selection: Selection,
        request: &Request,
        losses: Option<&mut dyn LossProbe>,
    ) -> Result<Selection> {
        match (self.refine, losses) {
            (Refine::None, _) => Ok(selection),
            (Refine::Swap, Some(losses)) => Ok(swap(selection, request, losses)?),
            (Refine::Swap, None) => {
                Err(EvidenceError::Missing { selector: "--refine swap", need: Need::Loss }.into())
            }
        }
    }
}
