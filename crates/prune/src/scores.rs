//! `scores.json`: how important each layer is.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use checkpoint::{CheckpointError, MOST_LAYERS, Module, Record, RecordedPair, Staging};
use igia::{ScoreError, StepPair, WeightScores, product_bound, product_norm_squared};
use rayon::prelude::*;
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
        let scores: Self = checkpoint::read_json(path)?;
        let fail = |what: String| {
            Err(PruneError::File { path: path.to_owned(), kind: "scores file", what })
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
        write_json(path, self)
    }
}

/// Scores every layer of a record.
///
/// Gradients are read from the mapped files, all weights and steps in parallel; nothing is held
/// but one number of each.
///
/// # Errors
///
/// If the record lacks a layer's gradients or what the criterion needs, or a gradient is not
/// finite.
pub fn score(record: &Record, criterion: Criterion) -> Result<Scores> {
    if criterion == Criterion::Bi {
        let activations = record.activations().ok_or(PruneError::NoActivations)?;
        let layers = activations.block_influence.iter().enumerate();
        let layers =
            layers.map(|(layer, &score)| LayerScore { layer, score, modules: BTreeMap::new() });
        return Ok(Scores::new(criterion, layers.collect()));
    }
    let pairs: Vec<(usize, Module)> = record.pairs().collect();
    let steps = record.num_steps();
    let squares: Vec<f64> = (0..pairs.len() * steps)
        .into_par_iter()
        // Step by step, as the files lie on the disk.
        .map(|at| norm_squared(record, at / pairs.len(), pairs[at % pairs.len()]))
        .collect::<Result<_>>()?;
    let of_pair = |number: usize| squares.iter().skip(number).step_by(pairs.len()).copied();
    let norms = pairs.iter().enumerate().map(|(number, &at)| (at, of_pair(number).collect()));
    let scores = scores_of_norms(&norms.collect(), criterion);
    record.require_unchanged()?;
    for layer in 0..record.num_layers() {
        if scores.layers.get(layer).is_none_or(|found| found.layer != layer) {
            let what = format!("it has no gradients of layer {layer}");
            return Err(PruneError::OtherModel { path: record.folder().to_owned(), what });
        }
    }
    Ok(scores)
}

/// Layer scores from the `‖G_i‖²` of each weight and step.
///
/// # Panics
///
/// If the criterion is block influence, which is not made of gradients.
pub fn scores_of_norms(
    norms: &BTreeMap<(usize, Module), Vec<f64>>,
    criterion: Criterion,
) -> Scores {
    let mut layers: BTreeMap<usize, BTreeMap<Module, f64>> = BTreeMap::new();
    for (&(layer, module), squares) in norms {
        let WeightScores { igia, igia_fro } = WeightScores::of_steps(squares);
        let score = match criterion {
            Criterion::Igia => igia,
            Criterion::IgiaFro => igia_fro,
            Criterion::Bi => panic!("block influence is not made of gradients"),
        };
        layers.entry(layer).or_default().insert(module, score);
    }
    let layers = layers.into_iter().map(|(layer, modules)| LayerScore {
        layer,
        score: modules.values().sum(),
        modules,
    });
    Scores::new(criterion, layers.collect())
}

/// `‖G‖²` of one weight at one step, counted from 0.
fn norm_squared(record: &Record, step: usize, at: (usize, Module)) -> Result<f64> {
    Ok(scored(record, step, at)?.1)
}

/// One weight's gradients at one step, and their `‖G‖²`.
fn scored(
    record: &Record,
    step: usize,
    (layer, module): (usize, Module),
) -> Result<(RecordedPair<'_>, f64)> {
    let pair = record.gradients(step, layer, module)?;
    let square = product_norm_squared(&pair.b, &pair.a)
        .map_err(|source| not_scored(record, step, (layer, module), source))?;
    Ok((pair, square))
}

fn not_scored(
    record: &Record,
    step: usize,
    (layer, module): (usize, Module),
    source: ScoreError,
) -> PruneError {
    let (path, module) = (record.step_path(step).to_owned(), module.to_string());
    PruneError::Score { path, step: step + 1, layer, module, source }
}

/// Refuses gradients that are not finite, whose squares might overflow f32, or whose squares are on
/// average below its smallest normal number: the kernels take it for granted that they are not.
pub(crate) fn require_finite(record: &Record, layer: usize, module: Module) -> Result<()> {
    let at = (layer, module);
    // The square of each step, and what no element's exceeds while it is summed.
    let squares: Vec<(f64, f64)> = (0..record.num_steps())
        .into_par_iter()
        .map(|step| {
            let (pair, square) = scored(record, step, at)?;
            Ok((square, product_bound(&pair.b, &pair.a).powi(2)))
        })
        .collect::<Result<_>>()?;
    let largest = (0..squares.len()).max_by(|&x, &y| squares[x].1.total_cmp(&squares[y].1));
    let Some((step, (rows, columns))) = largest.zip(record.shape(layer, module)) else {
        return Ok(());
    };
    let refuse = |source| Err(not_scored(record, step, at, source));
    let found: f64 = squares.iter().map(|(_, bound)| bound).sum();
    if found > f64::from(f32::MAX) / 2.0 {
        return refuse(ScoreError::TooLarge { found });
    }
    let found: f64 = squares.iter().map(|(square, _)| square).sum();
    let mean = found / (rows * columns * squares.len()) as f64;
    // Gradients that are zero are no mistake: then all elements are of one importance.
    match found > 0.0 && mean < f64::from(f32::MIN_POSITIVE) {
        true => refuse(ScoreError::TooSmall { found: mean }),
        false => Ok(()),
    }
}

/// A weight's gradients as the arithmetic takes them.
pub(crate) fn step_pairs<'a>(gradients: &'a [RecordedPair<'_>]) -> Vec<StepPair<'a>> {
    gradients.iter().map(|pair| StepPair { b: pair.b.view(), a: pair.a.view() }).collect()
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
    text.push('\n');
    Ok(Staging::write(path, text.as_bytes())?)
}

#[cfg(test)]
pub(crate) mod tests {
    use checkpoint::{DataSource, Dtype, ModelSource, RecordWriter, StepGradients};

    use super::*;

    /// Writes a record's gradients of some modules as BF16.
    pub(crate) fn rewrite_short(record: &Record, target: &Path, keep: &dyn Fn(Module) -> bool) {
        rewrite(record, target, Dtype::BF16, keep, &|_| {});
    }

    fn rewrite(
        record: &Record,
        target: &Path,
        dtype: Dtype,
        keep: &dyn Fn(Module) -> bool,
        change: &dyn Fn(&mut StepGradients),
    ) {
        let mut writer = RecordWriter::create(target, dtype).unwrap();
        let manifest = record.manifest().unwrap().clone();
        for (step, entry) in manifest.steps.iter().enumerate() {
            let pairs: Vec<_> = record
                .pairs()
                .filter(|&(_, module)| keep(module))
                .map(|(layer, module)| {
                    let pair = record.gradients(step, layer, module).unwrap();
                    let (a, b) = (pair.a.into_owned(), pair.b.into_owned());
                    let mut pair = StepGradients { a, b };
                    change(&mut pair);
                    ((layer, module), pair)
                })
                .collect();
            writer.step(entry.report, &pairs).unwrap();
        }
        let name = String::new;
        let sources = (
            ModelSource { name: name(), config_sha256: name() },
            DataSource { path: name(), sha256: name(), rows: 0 },
        );
        writer.finish(manifest.num_layers, manifest.lora, 0, sources, None).unwrap();
    }

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

    /// A record stored as BF16 has the scores of its rounded gradients.
    #[test]
    fn short_gradients_are_scored_as_they_are_stored() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("record");
        let whole = Record::open(&testkit::fixture("tiny_qwen2/record")).unwrap();
        rewrite_short(&whole, &path, &|_| true);
        let short = Record::open(&path).unwrap();
        short.verify().unwrap();
        let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
        let found = score(&short, Criterion::Igia).unwrap();
        for (layer, module) in whole.pairs() {
            let squares: f64 = (0..whole.num_steps())
                .map(|step| {
                    let pair = whole.gradients(step, layer, module).unwrap();
                    let (b, a) = (pair.b.mapv(rounded), pair.a.mapv(rounded));
                    igia::reference::product_norm_squared(&StepPair { b: b.view(), a: a.view() })
                })
                .sum();
            let expected = squares / whole.num_steps() as f64;
            let found = found.layers[layer].modules[&module];
            assert!((found - expected).abs() <= 1e-12 * expected, "layer {layer} {module}");
        }
    }

    #[test]
    fn gradients_beyond_single_precision_are_refused() {
        let folder = testkit::temporary_folder();
        let whole = Record::open(&testkit::fixture("tiny_qwen2/record")).unwrap();
        let (layer, module) = (1, Module::UpProj);
        let check = |name: &str, change: &dyn Fn(&mut StepGradients)| {
            let path = folder.path().join(name);
            rewrite(&whole, &path, Dtype::F32, &|_| true, change);
            match require_finite(&Record::open(&path).unwrap(), layer, module) {
                Err(PruneError::Score { layer: 1, source, .. }) => Some(source),
                other => other.map(|()| None).unwrap(),
            }
        };
        assert_eq!(check("same", &|_| {}), None);
        // Zeros are small on purpose.
        assert_eq!(check("zeros", &|pair| pair.a.fill(0.0)), None);
        let small = check("small", &|pair| pair.a *= 1e-16);
        assert!(matches!(small, Some(ScoreError::TooSmall { .. })), "{small:?}");
        // Terms that cancel in f64 and would be infinite in f32.
        let large = check("large", &|pair| {
            pair.b.fill(1e30);
            pair.a.fill(0.0);
            pair.a.row_mut(0).fill(1e30);
            pair.a.row_mut(1).fill(-1e30);
        });
        assert!(matches!(large, Some(ScoreError::TooLarge { .. })), "{large:?}");
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
