//! All the evidence there is, and what is missing.

use std::fmt;
use std::path::Path;

use checkpoint::{Activations, Checkpoint, Record};

use crate::{
    EvidenceError, GradientNorms, HIDDEN, Hidden, LossProbe, Result, SENSITIVITY, Sensitivity,
};

/// A kind of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Norms of the first steps' gradients: a record's step files.
    Gradients,
    /// The layers' block influence: a record's `activations.json`.
    Activations,
    /// How alike hidden states are: a record's `hidden.json`.
    Hidden,
    /// How the loss answers to each layer: a record's `sensitivity.json`.
    Sensitivity,
    /// The model's weights.
    Weights,
    /// Losses with layers skipped.
    Loss,
}

impl Need {
    /// What to do when it is missing.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Gradients | Self::Activations | Self::Hidden | Self::Sensitivity => {
                "collect a record with this version"
            }
            Self::Weights => "name the model (--model)",
            Self::Loss => "name the model (--model) and rows (--train)",
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gradients => "the first steps' gradients",
            Self::Activations => "block influence",
            Self::Hidden => "how alike hidden states are",
            Self::Sensitivity => "how the loss answers to each layer",
            Self::Weights => "the model's weights",
            Self::Loss => "losses with layers skipped",
        })
    }
}

/// What selectors read.
///
/// Each kind may be absent; a selector that needs it gets an error that says so.
#[derive(Default)]
pub struct Evidence<'a> {
    /// How many layers the model has.
    pub num_layers: usize,
    /// Norms of the first steps' gradients.
    pub gradients: Option<GradientNorms>,
    /// The layers' block influence.
    pub activations: Option<Activations>,
    /// How alike hidden states are.
    pub hidden: Option<Hidden>,
    /// How the loss answers to each layer.
    pub sensitivity: Option<Sensitivity>,
    /// The model.
    pub model: Option<&'a Checkpoint>,
    /// Losses with layers skipped.
    pub losses: Option<&'a mut dyn LossProbe>,
}

impl fmt::Debug for Evidence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evidence").field("num_layers", &self.num_layers).finish_non_exhaustive()
    }
}

impl<'a> Evidence<'a> {
    /// What a record holds of the kinds that are wanted.
    ///
    /// # Errors
    ///
    /// If a wanted kind is there and cannot be used.
    pub fn of_record(record: &Record, wanted: &[Need]) -> Result<Self> {
        let wants = |need| wanted.contains(&need);
        let gradients =
            wants(Need::Gradients).then(|| GradientNorms::of_record(record)).transpose()?;
        let activations = record.activations().filter(|_| wants(Need::Activations)).cloned();
        let hidden = match wants(Need::Hidden) {
            true => Hidden::read(record.folder())?,
            false => None,
        };
        let sensitivity = match wants(Need::Sensitivity) {
            true => Sensitivity::read(record.folder())?,
            false => None,
        };
        let num_layers = record.num_layers();
        let files = [
            (HIDDEN, hidden.as_ref().map(Hidden::num_layers)),
            (SENSITIVITY, sensitivity.as_ref().map(Sensitivity::num_layers)),
        ];
        for (name, found) in files {
            if let Some(found) = found.filter(|&found| found != num_layers) {
                let what = format!("it has {found} layers, the gradients {num_layers}");
                return Err(EvidenceError::File { path: record.folder().join(name), what });
            }
        }
        Ok(Self { num_layers, gradients, activations, hidden, sensitivity, ..Self::default() })
    }

    /// As [`Evidence::of_record`], from the record's folder.
    ///
    /// # Errors
    ///
    /// If there is no record, or as there.
    pub fn open(folder: &Path, wanted: &[Need]) -> Result<Self> {
        Self::of_record(&Record::open(folder)?, wanted)
    }

    /// Norms of the first steps' gradients, for `selector`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Missing`] if they are not there.
    pub fn gradients(&self, selector: &'static str) -> Result<&GradientNorms> {
        self.gradients.as_ref().ok_or(missing(selector, Need::Gradients))
    }

    /// The layers' block influence, for `selector`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Missing`] if it is not there.
    pub fn activations(&self, selector: &'static str) -> Result<&Activations> {
        self.activations.as_ref().ok_or(missing(selector, Need::Activations))
    }

    /// How alike hidden states are, for `selector`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Missing`] if it is not there.
    pub fn hidden(&self, selector: &'static str) -> Result<&Hidden> {
        self.hidden.as_ref().ok_or(missing(selector, Need::Hidden))
    }

    /// How the loss answers to each layer, for `selector`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Missing`] if it is not there.
    pub fn sensitivity(&self, selector: &'static str) -> Result<&Sensitivity> {
        self.sensitivity.as_ref().ok_or(missing(selector, Need::Sensitivity))
    }

    /// The model, for `selector`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Missing`] if it is not there.
    pub fn model(&self, selector: &'static str) -> Result<&'a Checkpoint> {
        self.model.ok_or(missing(selector, Need::Weights))
    }

    /// Losses with layers skipped, for `selector`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Missing`] if nothing computes them.
    pub fn losses(&mut self, selector: &'static str) -> Result<&mut (dyn LossProbe + 'a)> {
        self.losses.as_deref_mut().ok_or(missing(selector, Need::Loss))
    }
}

fn missing(selector: &'static str, need: Need) -> EvidenceError {
    EvidenceError::Missing { selector, need }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerSensitivity, WeightSensitivity};

    /// A file that passes over another model left is no evidence of this one.
    #[test]
    fn files_of_another_model_are_refused() {
        let folder = testkit::temporary_folder();
        testkit::copy_folder(&testkit::fixture("tiny_qwen2/record"), folder.path());
        let layer = LayerSensitivity {
            state_gradient: 0.0,
            modules: checkpoint::Module::SPLIT
                .map(|module| (module, WeightSensitivity::default()))
                .into(),
        };
        let write = |layers: usize| {
            let text = Sensitivity::new(1, 1, vec![layer.clone(); layers]);
            let text = serde_json::to_string(&text).unwrap();
            fs_err::write(folder.path().join(SENSITIVITY), text).unwrap();
            Evidence::open(folder.path(), &[Need::Sensitivity])
        };
        assert_eq!(write(6).unwrap().sensitivity("exact").unwrap().num_layers(), 6);
        let error = write(5).unwrap_err().to_string();
        assert!(
            error.contains("sensitivity.json: not usable evidence: it has 5 layers"),
            "{error}"
        );
    }
}
