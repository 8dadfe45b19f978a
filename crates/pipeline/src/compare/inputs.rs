//! What a comparison reads, looked at before anything is computed: what would fail late is refused early, by name.

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, ModelConfig, locate, require_companions};
use dataset::{Encoder, Row};

use super::{Cell, CompareSettings};
use crate::cell::{Digests, digest_model, digest_teacher};
use crate::data::{digest_data, read_data};
use crate::stage::read_encoder;
use crate::{
    FinetuneMethod, HeldOut, LoraLayers, Named, PipelineError, Result, RunSettings, Sample,
    check_outputs,
};

/// What a comparison reads.
pub(super) struct Inputs {
    /// The model to prune.
    pub(super) dense: Unpruned,
    /// Those to compare with, as the settings list them.
    pub(super) baselines: Vec<Unpruned>,
    /// What stands for each set to evaluate on in recipes.
    pub(super) eval_digests: Vec<String>,
    /// What is held out to choose layers by; if for one cell then for all, so that all train on the same.
    pub(super) held_out: Option<HeldOut>,
}

/// A model as it came.
pub(super) struct Unpruned {
    pub(super) folder: PathBuf,
    pub(super) config: ModelConfig,
    pub(super) digests: Digests,
    /// The rows as its tokens.
    pub(super) samples: Samples,
}

/// Rows as a model's tokens, to foretell by.
pub(super) struct Samples {
    pub(super) train: Sample,
    /// Those of all sets, one after the other.
    pub(super) eval: Sample,
}

/// The rows, read once for all models.
struct Rows {
    train: Vec<Row>,
    train_digest: String,
    eval: Vec<Row>,
}

impl Inputs {
    /// Reads and checks all that cells need.
    pub(super) fn read(settings: &CompareSettings, folder: &Path) -> Result<Self> {
        let CompareSettings { base, baselines, evals, .. } = settings;
        let model = locate(&base.model)?;
        let mut inputs = vec![Named::of("--model", &*model), Named::of("--train", &*base.train)];
        let baselines: Vec<PathBuf> = baselines
            .iter()
            .map(|name| locate(name).map_err(|error| baseline_unusable(name)(error.into())))
            .collect::<Result<_>>()?;
        inputs.extend(baselines.iter().map(|folder| Named::of("--baseline", &**folder)));
        inputs.extend(evals.iter().map(|path| Named::of("--eval", &**path)));
        check_outputs(&[Named::of("--out", folder)], &inputs)?;
        let config = Checkpoint::open(&model)?.config()?.clone();
        for cell in settings.cells() {
            let of_cell = settings.of(&cell);
            of_cell.check(&config).map_err(unusable(|| flags(&cell)))?;
        }
        base.compute.resolve()?; // A device that cannot be used leaves no folder.
        let held_out = settings.held_out();
        let mut train = read_data(&base.train, &base.ignore_fields)
            .map_err(unusable(|| format!("--train {}", base.train.display())))?;
        if let Some(share) = held_out {
            (train, _) = share.split(train, base.seed)?;
        }
        let (mut eval, mut eval_digests) = (Vec::new(), Vec::new());
        for path in evals {
            let (mut rows, digest) =
                rows_of(path, base).map_err(unusable(|| format!("--eval {}", path.display())))?;
            eval.append(&mut rows);
            eval_digests.push(digest);
        }
        let rows = Rows { train, train_digest: digest_data(&base.train)?, eval };
        let dense = Unpruned::read(model, &rows, base)?;
        let read = |(name, folder): (&String, PathBuf)| {
            let read = Unpruned::read(folder, &rows, base);
            let read = read.and_then(|found| found.require_layers(settings).map(|()| found));
            read.map_err(baseline_unusable(name))
        };
        let baselines =
            settings.baselines.iter().zip(baselines).map(read).collect::<Result<_>>()?;
        Ok(Self { dense, baselines, eval_digests, held_out })
    }
}

impl Unpruned {
    /// A model's folder, which must be complete, and the rows as its tokenizer and chat template render them.
    fn read(folder: PathBuf, rows: &Rows, base: &RunSettings) -> Result<Self> {
        let config = Checkpoint::open(&folder)?.config()?.clone();
        require_companions(&folder)?;
        let encoder: Encoder = read_encoder(&folder)?;
        let max_tokens = base.training.max_tokens;
        let samples = Samples {
            train: Sample::training(&rows.train, &encoder, max_tokens)?,
            eval: Sample::evaluation(&rows.eval, &encoder, max_tokens)?,
        };
        let digests = Digests {
            model: digest_model(&folder)?,
            train: rows.train_digest.clone(),
            teacher: digest_teacher(&base.training, &folder)?,
        };
        Ok(Self { folder, config, digests, samples })
    }

    /// Refuses trainings of layers that it does not have.
    fn require_layers(&self, settings: &CompareSettings) -> Result<()> {
        let num_layers = self.config.num_layers;
        for (method, training) in &settings.trainings {
            let most = match (method, &training.lora_layers) {
                (FinetuneMethod::HeadAndLast(count), _) => *count,
                (FinetuneMethod::Lora, Some(LoraLayers::These(layers))) => {
                    layers.iter().max().map_or(0, |last| last.saturating_add(1))
                }
                _ => 0,
            };
            if most > num_layers {
                return Err(PipelineError::Settings(format!(
                    "it has {num_layers} layers, and the training by {method} asks for {most}"
                )));
            }
        }
        Ok(())
    }
}

/// The rows of a set that are evaluated, and what stands for the set in recipes.
fn rows_of(path: &Path, base: &RunSettings) -> Result<(Vec<Row>, String)> {
    let mut rows = read_data(path, &base.ignore_fields)?;
    rows.truncate(base.evaluation.max_rows.unwrap_or(usize::MAX));
    Ok((rows, digest_data(path)?))
}

/// An error with what it is about.
fn unusable(what: impl FnOnce() -> String) -> impl FnOnce(PipelineError) -> PipelineError {
    |source| PipelineError::Unusable { what: what(), source: Box::new(source) }
}

fn baseline_unusable(name: &str) -> impl FnOnce(PipelineError) -> PipelineError {
    unusable(move || format!("--baseline {name}"))
}

/// The flags that a cell comes from.
fn flags(cell: &Cell) -> String {
    let Cell { way, finetune, .. } = cell;
    let way = way.as_ref().map_or_else(String::new, |way| match way.paper {
        true => format!("--prune {} --paper ", way.prune),
        false => {
            format!("--prune {} --methods {} --repairs {} ", way.prune, way.criterion, way.repair)
        }
    });
    format!("{way}--finetune {finetune}")
}
