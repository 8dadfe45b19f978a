//! Norms of simulated gradients, from a record or from gradients as they come in (method.md §3).

use std::collections::BTreeMap;

use checkpoint::{ModuleName, Record, RecordedPair, StepGradients};
use igia::{ScoreError, StepPair, product_bound, product_norm_squared};
use rayon::prelude::*;

use crate::{EvidenceError, Result};

/// `‖G_i‖²_F` of each weight's simulated gradient `G_i = ∇B_i·∇A_i` at each step `i`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GradientNorms {
    weights: BTreeMap<(usize, ModuleName), WeightNorms>,
}

/// One linear weight's.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightNorms {
    /// `‖G_i‖²_F`, a number a step.
    pub squares: Vec<f64>,
    /// How many elements the weight has, `out · in`.
    pub elements: usize,
}

impl GradientNorms {
    /// The norms of a record.
    ///
    /// Gradients are read from the mapped files, all weights and steps in parallel; nothing is held but one
    /// number of each.
    ///
    /// # Errors
    ///
    /// If the record lacks a layer's gradients, or one is not finite.
    pub fn of_record(record: &Record) -> Result<Self> {
        let pairs: Vec<(usize, ModuleName)> = record.pairs().collect();
        let steps = record.num_steps();
        let squares: Vec<f64> = (0..pairs.len() * steps)
            .into_par_iter()
            // Step by step, as the files lie on the disk.
            .map(|at| Ok(scored(record, at / pairs.len(), &pairs[at % pairs.len()])?.1))
            .collect::<Result<_>>()?;
        let weights = pairs.iter().enumerate().map(|(number, place)| {
            let squares = squares.iter().skip(number).step_by(pairs.len()).copied().collect();
            let shape = record.shape(place.0, &place.1);
            let elements = shape.map_or(0, |(rows, columns)| rows * columns);
            (place.clone(), WeightNorms { squares, elements })
        });
        let found = Self { weights: weights.collect() };
        record.require_unchanged()?;
        for layer in 0..record.num_layers() {
            if !found.weights.keys().any(|(found, _)| *found == layer) {
                let path = record.folder().to_owned();
                return Err(EvidenceError::NoLayer { path, layer });
            }
        }
        Ok(found)
    }

    /// Adds one step's gradients, which must be of the same weights as those before.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Step`] if one is not finite.
    pub fn add(&mut self, step: &[((usize, ModuleName), StepGradients)]) -> Result<()> {
        let squares: Vec<f64> = step
            .par_iter()
            .map(|((layer, module), pair)| {
                product_norm_squared(&pair.b, &pair.a).map_err(|source| {
                    let (layer, module) = (*layer, module.to_string());
                    EvidenceError::Step { layer, module, source }
                })
            })
            .collect::<Result<_>>()?;
        for ((place, pair), square) in step.iter().zip(squares) {
            let elements = pair.b.nrows() * pair.a.ncols();
            let weight = WeightNorms { squares: Vec::new(), elements };
            self.weights.entry(place.clone()).or_insert(weight).squares.push(square);
        }
        Ok(())
    }

    /// Every weight, in layer order.
    pub fn weights(&self) -> impl Iterator<Item = ((usize, ModuleName), &WeightNorms)> {
        self.weights.iter().map(|(place, weight)| (place.clone(), weight))
    }

    /// How many steps there are.
    pub fn num_steps(&self) -> usize {
        self.weights.values().next().map_or(0, |weight| weight.squares.len())
    }

    /// The norms of the steps that are `wanted`, counted from 0.
    pub fn steps(&self, wanted: impl Fn(usize) -> bool) -> Self {
        let part = |weight: &WeightNorms| WeightNorms {
            squares: (0..)
                .zip(&weight.squares)
                .filter(|(i, _)| wanted(*i))
                .map(|(_, x)| *x)
                .collect(),
            elements: weight.elements,
        };
        let weights = self.weights.iter().map(|(place, weight)| (place.clone(), part(weight)));
        Self { weights: weights.collect() }
    }
}

/// One weight's gradients at one step, counted from 0, and their `‖G‖²`.
fn scored<'a>(
    record: &'a Record,
    step: usize,
    place: &(usize, ModuleName),
) -> Result<(RecordedPair<'a>, f64)> {
    let (layer, module) = place;
    let pair = record.gradients(step, *layer, module)?;
    let square = product_norm_squared(&pair.b, &pair.a)
        .map_err(|source| not_scored(record, step, place, source))?;
    Ok((pair, square))
}

fn not_scored(
    record: &Record,
    step: usize,
    (layer, module): &(usize, ModuleName),
    source: ScoreError,
) -> EvidenceError {
    let (path, module) = (record.step_path(step).to_owned(), module.to_string());
    EvidenceError::Score { path, step: step + 1, layer: *layer, module, source }
}

/// Refuses gradients that are not finite, whose squares might overflow f32, or whose squares are on
/// average below its smallest normal number: the kernels take it for granted that they are not.
///
/// # Errors
///
/// [`EvidenceError::Score`] with the step that is to blame.
pub fn require_single_precision(record: &Record, layer: usize, module: &ModuleName) -> Result<()> {
    let at = &(layer, module.clone());
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
pub fn step_pairs<'a>(gradients: &'a [RecordedPair<'_>]) -> Vec<StepPair<'a>> {
    gradients.iter().map(|pair| StepPair { b: pair.b.view(), a: pair.a.view() }).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use checkpoint::{DataSource, Dtype, ModelSource, Module, RecordWriter};

    use super::*;

    fn rewrite(record: &Record, target: &Path, dtype: Dtype, change: &dyn Fn(&mut StepGradients)) {
        let mut writer = RecordWriter::create(target, dtype).unwrap();
        let manifest = record.manifest().unwrap().clone();
        for (step, entry) in manifest.steps.iter().enumerate() {
            let mut pairs = step_of(record, step);
            for (_, pair) in &mut pairs {
                change(pair);
            }
            writer.step(entry.report, &pairs).unwrap();
        }
        let name = String::new;
        let sources = (
            ModelSource { name: name(), config_sha256: name() },
            DataSource { path: name(), sha256: name(), rows: 0 },
        );
        writer.finish(manifest.num_layers, manifest.lora, 0, sources, None).unwrap();
    }

    fn step_of(record: &Record, step: usize) -> Vec<((usize, ModuleName), StepGradients)> {
        let pairs = record.pairs().map(|(layer, module)| {
            let pair = record.gradients(step, layer, &module).unwrap();
            let (a, b) = (pair.a.into_owned(), pair.b.into_owned());
            ((layer, module), StepGradients { a, b })
        });
        pairs.collect()
    }

    #[test]
    fn steps_as_they_come_in_are_the_records() {
        let record = Record::open(&testkit::fixture("tiny_qwen2/record")).unwrap();
        let expected = GradientNorms::of_record(&record).unwrap();
        let mut found = GradientNorms::default();
        for step in 0..record.num_steps() {
            found.add(&step_of(&record, step)).unwrap();
        }
        assert_eq!(found, expected);
        assert_eq!((found.num_steps(), found.steps(|step| step == 1).num_steps()), (3, 1));
    }

    /// A record stored as BF16 has the norms of its rounded gradients.
    #[test]
    fn short_gradients_are_scored_as_they_are_stored() {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("record");
        let whole = Record::open(&testkit::fixture("tiny_qwen2/record")).unwrap();
        rewrite(&whole, &path, Dtype::BF16, &|_| {});
        let short = Record::open(&path).unwrap();
        short.verify().unwrap();
        let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
        for ((layer, module), found) in GradientNorms::of_record(&short).unwrap().weights() {
            for (step, found) in found.squares.iter().enumerate() {
                let pair = whole.gradients(step, layer, &module).unwrap();
                let (b, a) = (pair.b.mapv(rounded), pair.a.mapv(rounded));
                let pair = StepPair { b: b.view(), a: a.view() };
                let expected = igia::reference::product_norm_squared(&pair);
                assert!((found - expected).abs() <= 1e-12 * expected, "layer {layer} {module}");
            }
        }
    }

    #[test]
    fn gradients_beyond_single_precision_are_refused() {
        let folder = testkit::temporary_folder();
        let whole = Record::open(&testkit::fixture("tiny_qwen2/record")).unwrap();
        let check = |name: &str, change: &dyn Fn(&mut StepGradients)| {
            let path = folder.path().join(name);
            rewrite(&whole, &path, Dtype::F32, change);
            let record = Record::open(&path).unwrap();
            match require_single_precision(&record, 1, &Module::UpProj.into()) {
                Err(EvidenceError::Score { layer: 1, source, .. }) => Some(source),
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
}
