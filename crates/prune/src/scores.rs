//! `scores.json`: how important each layer is.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use checkpoint::{CheckpointError, Module, Record, Staging, StepGradients};
use igia::{StepPair, WeightScores, weight_scores};
use serde::{Deserialize, Serialize};

use crate::{PruneError, Result};

const FORMAT: &str = "gradpruner-scores";
const VERSION: u64 = 1;

/// What makes a layer important (method.md §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// The paper's: the sum of the layer's IGIA matrices.
    Igia,
    /// The authors' code's: the sum over steps of the norms of the simulated gradients.
    IgiaFro,
    /// `ShortGPT`'s block influence: how far the layer turns its input.
    Bi,
}

impl Criterion {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Igia, Self::IgiaFro, Self::Bi];

    /// Its name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Igia => "igia",
            Self::IgiaFro => "igia-fro",
            Self::Bi => "bi",
        }
    }
}

impl FromStr for Criterion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|criterion| criterion.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is no criterion; there are {known}")
        })
    }
}

/// Every layer's score under one criterion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    format: String,
    version: u64,
    /// What the scores measure.
    pub criterion: Criterion,
    /// The layers, in order.
    pub layers: Vec<LayerScore>,
}

/// One layer's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerScore {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Its score; higher is more important.
    pub score: f64,
    /// What each linear weight adds to it; empty for criteria of whole layers.
    #[serde(default)]
    pub modules: BTreeMap<Module, f64>,
}

impl Scores {
    /// Scores in layer order.
    pub fn new(criterion: Criterion, layers: Vec<LayerScore>) -> Self {
        Self { format: FORMAT.into(), version: VERSION, criterion, layers }
    }

    /// Layers from the least to the most important; of equal ones the later comes first.
    pub fn ranking(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by(|&x, &y| {
            self.layers[x].score.total_cmp(&self.layers[y].score).then(y.cmp(&x))
        });
        order
    }

    /// Reads `scores.json`.
    ///
    /// # Errors
    ///
    /// If it is no such file, layers are missing or out of order, or a score is not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let scores: Self = read_json(path)?;
        let fail = |what: String| {
            Err(PruneError::File { path: path.to_owned(), kind: "scores file", what })
        };
        if scores.format != FORMAT || scores.version != VERSION {
            return fail(format!("it says `{}` version {}", scores.format, scores.version));
        }
        for (expected, layer) in scores.layers.iter().enumerate() {
            if layer.layer != expected {
                return fail(format!("layer {} stands where {expected} belongs", layer.layer));
            }
            if !layer.score.is_finite() {
                return fail(format!("layer {expected} has the score {}", layer.score));
            }
        }
        Ok(scores)
    }

    /// Writes `scores.json`, whole or not at all.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}

/// Scores every layer of a record.
///
/// # Errors
///
/// If the record lacks a layer's gradients or what the criterion needs, or a gradient is not
/// finite.
pub fn score(record: &Record, criterion: Criterion) -> Result<Scores> {
    let layers = match criterion {
        Criterion::Bi => {
            let Some(activations) = record.activations() else {
                return Err(PruneError::NoActivations);
            };
            activations
                .block_influence
                .iter()
                .enumerate()
                .map(|(layer, &score)| LayerScore { layer, score, modules: BTreeMap::new() })
                .collect()
        }
        Criterion::Igia => gradient_scores(record, |scores| scores.igia)?,
        Criterion::IgiaFro => gradient_scores(record, |scores| scores.igia_fro)?,
    };
    Ok(Scores::new(criterion, layers))
}

fn gradient_scores(record: &Record, pick: impl Fn(WeightScores) -> f64) -> Result<Vec<LayerScore>> {
    let mut layers: Vec<LayerScore> = (0..record.num_layers())
        .map(|layer| LayerScore { layer, score: 0.0, modules: BTreeMap::new() })
        .collect();
    for (layer, module) in record.pairs() {
        let gradients = record.all_gradients(layer, module)?;
        let scores = weight_scores(&step_pairs(&gradients))
            .map_err(|source| not_scored(record, layer, module, source))?;
        layers[layer].modules.insert(module, pick(scores));
    }
    for layer in &mut layers {
        if layer.modules.is_empty() {
            let what = format!("it has no gradients of layer {}", layer.layer);
            return Err(PruneError::OtherModel { path: record.folder().to_owned(), what });
        }
        layer.score = layer.modules.values().sum();
    }
    Ok(layers)
}

/// A weight's gradients as the arithmetic takes them.
pub(crate) fn step_pairs(gradients: &[StepGradients]) -> Vec<StepPair<'_>> {
    gradients.iter().map(|pair| StepPair { b: pair.b.view(), a: pair.a.view() }).collect()
}

/// Names the step's file where the arithmetic knows only the step's number.
pub(crate) fn not_scored(
    record: &Record,
    layer: usize,
    module: Module,
    source: igia::ScoreError,
) -> PruneError {
    let path = match source {
        igia::ScoreError::NotFinite { step, .. } => record.step_path(step - 1),
        _ => record.folder(),
    };
    PruneError::Score { path: path.to_owned(), layer, module: module.to_string(), source }
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs_err::read_to_string(path).map_err(CheckpointError::from)?;
    serde_json::from_str(&text)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source }.into())
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
    text.push('\n');
    Ok(Staging::write(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_scores() {
        for name in testkit::GOLDEN {
            let record = Record::open(&testkit::fixture(&format!("{name}/record"))).unwrap();
            for criterion in [Criterion::Igia, Criterion::IgiaFro] {
                let found = score(&record, criterion).unwrap();
                let file = format!("{name}/scores_{}.json", criterion.name());
                let expected = Scores::read(&testkit::fixture(&file)).unwrap();
                assert_eq!(found.ranking(), expected.ranking(), "{name}");
                for (found, expected) in found.layers.iter().zip(&expected.layers) {
                    assert!((found.score / expected.score - 1.0).abs() < 1e-6, "{name}");
                    for (module, expected) in &expected.modules {
                        let found = found.modules[module];
                        assert!((found - expected).abs() <= 1e-6 * expected, "{name} {module}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_record_without_activations_has_no_block_influence() {
        let record = Record::open(&testkit::fixture("tiny_llama/record")).unwrap();
        assert!(matches!(score(&record, Criterion::Bi), Err(PruneError::NoActivations)));
    }

    #[test]
    fn of_equal_layers_the_later_is_less_important() {
        let layers = [1.0, 2.0, 1.0]
            .into_iter()
            .enumerate()
            .map(|(layer, score)| LayerScore { layer, score, modules: BTreeMap::new() })
            .collect();
        assert_eq!(Scores::new(Criterion::Igia, layers).ranking(), [2, 0, 1]);
    }
}
