//! `scores.json`: how important each layer is.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{MOST_LAYERS, ModuleName};
use serde::{Deserialize, Serialize};

use crate::{Criterion, Result, SelectionError};

const FORMAT: &str = "gradpruner-scores";
const VERSION: u64 = 1;

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
    pub modules: BTreeMap<ModuleName, f64>,
}

impl Scores {
    /// Scores in layer order.
    pub fn new(criterion: Criterion, layers: Vec<LayerScore>) -> Self {
        Self { format: FORMAT.into(), version: VERSION, criterion, layers }
    }

    /// Scores of whole layers, in order.
    pub fn of_layers(criterion: Criterion, scores: &[f64]) -> Self {
        let layers = scores.iter().enumerate().map(|(layer, &score)| LayerScore {
            layer,
            score,
            modules: BTreeMap::new(),
        });
        Self::new(criterion, layers.collect())
    }

    /// Scores that are the sums of what each linear weight adds to its layer's.
    pub fn of_weights(
        criterion: Criterion,
        weights: impl Iterator<Item = ((usize, impl Into<ModuleName>), f64)>,
    ) -> Self {
        let mut layers: BTreeMap<usize, BTreeMap<ModuleName, f64>> = BTreeMap::new();
        for ((layer, module), score) in weights {
            layers.entry(layer).or_default().insert(module.into(), score);
        }
        let layers = layers.into_iter().map(|(layer, modules)| LayerScore {
            layer,
            score: modules.values().sum(),
            modules,
        });
        Self::new(criterion, layers.collect())
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
        let scores: Self = checkpoint::read_json(path)?;
        let fail = |what: String| {
            Err(SelectionError::File { path: path.to_owned(), kind: "scores file", what })
        };
        if scores.format != FORMAT || scores.version != VERSION {
            return fail(format!("it says `{}` version {}", scores.format, scores.version));
        }
        if !(1..=MOST_LAYERS).contains(&scores.layers.len()) {
            let found = scores.layers.len();
            return fail(format!("it scores {found} layers; 1 to {MOST_LAYERS} are supported"));
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
        Ok(checkpoint::write_json(path, self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_layers_the_later_is_less_important() {
        let scores = Scores::of_layers(Criterion::IGIA, &[1.0, 2.0, 1.0]);
        assert_eq!(scores.ranking(), [2, 0, 1]);
    }
}
