//! A teacher: a second model, and what it says of a batch of the student's rows.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{ModelConfig, read_json, sha256_bytes};
use serde_json::Value;
use tch::Tensor;

use super::divergence::Likeliest;
use super::states::Target;
use crate::observer::{LayerPass, Observer};
use crate::pack::Packed;
use crate::{FinetuneError, Model, Origin, Result, RunScale};

/// A model to learn from, with its own adapters; it never trains.
///
/// On a CPU its frozen weights are read from the mapped file. Where they are the student's own (all but those that
/// a repair changed), the student reads them there too, so that they are in memory once; on a GPU they lie there
/// once. What it has besides are its adapters and, during a batch, one layer's activations, `k` numbers and tokens
/// a labelled token, and a state a token and cut.
#[derive(Debug)]
pub struct Teacher {
    pub(super) model: Model,
    /// Each student layer's number in the teacher.
    pub(super) origin: Option<Vec<usize>>,
    /// By how much the student's stream is smaller behind each cut; none if it is as large.
    scales: Vec<RunScale>,
}

/// What is wanted of a teacher for a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Asked {
    /// How many of the likeliest tokens, and at what temperature.
    pub(super) probabilities: Option<(usize, f64)>,
    /// Whether states where layers were cut.
    pub(super) states: bool,
}

/// What it says.
#[derive(Debug)]
pub(super) struct Targets {
    /// At the batch's labelled positions.
    pub(super) likeliest: Option<Likeliest>,
    /// By the student's layer whose output is held to them.
    pub(super) states: Option<BTreeMap<usize, Target>>,
    /// Where the tokens stand that are not the first of a row.
    pub(super) later: Tensor,
}

impl Teacher {
    /// A model that teaches one whose layers are its own: `origin` has, for each layer of the student, its number
    /// in the teacher.
    pub fn dense(model: Model, origin: Vec<usize>) -> Self {
        Self { model, origin: Some(origin), scales: Vec::new() }
    }

    /// Says by how much the student's stream is smaller behind each run of layers that is gone, if that was repaired by
    /// scales: its states are compared after they are multiplied by the product of those up to the cut.
    #[must_use]
    pub fn with_scales(self, scales: Vec<RunScale>) -> Self {
        Self { scales, ..self }
    }

    /// Any model of the student's tokenizer. Its states cannot be compared with the student's.
    pub fn other(model: Model) -> Self {
        Self { model, origin: None, scales: Vec::new() }
    }

    /// Refuses a teacher that does not say anything of this student's tokens.
    pub(super) fn require_fit(&self, student: &Model, states: bool) -> Result<()> {
        let (teacher, own) = (&self.model, student);
        let fail = |what: String| {
            Err(FinetuneError::OtherTeacher { path: teacher.folder().to_owned(), what })
        };
        Tokens::of(teacher).require_those_of(&Tokens::of(own))?;
        if teacher.device != own.device {
            return fail("it computes on another device than the student".into());
        }
        if let Some(origin) = &self.origin {
            let ascends = origin.windows(2).all(|pair| pair[0] < pair[1]);
            let within = origin.iter().all(|&layer| layer < teacher.config.num_layers);
            if origin.len() != own.config.num_layers || !ascends || !within {
                return fail(format!(
                    "{} layers cannot be the student's {} layers {origin:?}",
                    teacher.config.num_layers, own.config.num_layers
                ));
            }
        }
        if let Some(RunScale { run, factor }) = self.cuts().unfit_scale(teacher.config.num_layers) {
            return fail(format!(
                "the scale {factor} of layers {run:?} is not one of a run that the student lacks"
            ));
        }
        if states && (self.origin.is_none() || teacher.config.hidden_size != own.config.hidden_size)
        {
            return fail(
                "hidden states can only be compared with those of the model that layers were cut from; give \
                 them the weight 0"
                    .into(),
            );
        }
        Ok(())
    }

    /// Where the student's layers come from.
    fn cuts(&self) -> Origin<'_> {
        Origin { layers: self.origin.as_deref().unwrap_or_default(), scales: &self.scales }
    }

    /// What tells it from another: of every weight its first values, its adapters whole, and scales.
    pub(super) fn identity(&self) -> Result<String> {
        let mut all = vec![self.model.identity(i64::MAX)?];
        for RunScale { run, factor } in &self.scales {
            all.push(format!("{run:?} {factor}\n"));
        }
        Ok(sha256_bytes(all.concat().as_bytes()))
    }

    /// How many cuts the student has.
    pub(super) fn num_cuts(&self) -> usize {
        self.ends().len()
    }

    /// The student's layers before cuts, by the teacher's layer with which each removed run ends.
    ///
    /// A run before the first layer has none, and nothing of the student could come closer to its output.
    fn ends(&self) -> BTreeMap<usize, usize> {
        let origin = self.origin.as_deref().unwrap_or_default();
        let after = origin.iter().skip(1).copied().chain([self.model.config.num_layers]);
        let next = origin.iter().zip(after).enumerate();
        next.filter(|(_, (own, after))| *own + 1 < *after)
            .map(|(layer, (_, after))| (after - 1, layer))
            .collect()
    }

    /// What it says of a batch.
    pub(super) fn targets(&self, batch: &Packed, asked: Asked) -> Result<Targets> {
        let _guard = tch::no_grad_guard();
        let later = later(batch)?.f_to_device(self.model.device)?;
        let ends = if asked.states { self.ends() } else { BTreeMap::new() };
        let mut keeper =
            StateKeeper { ends, cuts: self.cuts(), later: &later, states: BTreeMap::new() };
        let hidden = self.model.hidden(batch, &mut keeper)?;
        let states = keeper.states;
        let likeliest = match asked.probabilities {
            Some((k, temperature)) => {
                let of = |logits: Tensor| Likeliest::of(&logits, k, temperature);
                Some(Likeliest::join(&self.model.head().each_chunk(&hidden, batch, of)?)?)
            }
            None => None,
        };
        Ok(Targets { likeliest, states: asked.states.then_some(states), later })
    }
}

/// Keeps the states where removed runs end.
struct StateKeeper<'a> {
    /// The student's layer by the teacher's.
    ends: BTreeMap<usize, usize>,
    cuts: Origin<'a>,
    later: &'a Tensor,
    /// By the student's layer.
    states: BTreeMap<usize, Target>,
}

impl Observer for StateKeeper<'_> {
    fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
        if let Some(&layer) = self.ends.get(&seen.layer) {
            let state = seen.output.f_index_select(0, self.later)?;
            let smaller = self.cuts.smaller_before(seen.layer + 1);
            self.states.insert(layer, Target { state, smaller });
        }
        Ok(())
    }
}

/// Where the tokens of a batch stand that are neither the first of a row nor filling.
fn later(batch: &Packed) -> Result<Tensor> {
    let tokens = batch.positions.iter().take(batch.num_tokens()).enumerate();
    let later = tokens.filter(|&(_, &position)| position != 0).map(|(at, _)| at as i64);
    Ok(Tensor::f_from_slice(&later.collect::<Vec<_>>())?)
}

/// Refuses a teacher whose tokens are not the student's, by their folders.
///
/// # Errors
///
/// [`FinetuneError::OtherTeacher`] if its vocabulary or its tokenizer is another; if a file cannot be read.
pub fn require_same_tokens(teacher: &Path, student: &Path) -> Result<()> {
    Tokens::read(teacher)?.require_those_of(&Tokens::read(student)?)
}

/// What a model's tokens are known by.
struct Tokens<'a> {
    folder: &'a Path,
    vocabulary: usize,
}

impl<'a> Tokens<'a> {
    fn of(model: &'a Model) -> Self {
        Self { folder: model.folder(), vocabulary: model.config.vocab_size }
    }

    fn read(folder: &'a Path) -> Result<Self> {
        Ok(Self { folder, vocabulary: ModelConfig::read(folder)?.vocab_size })
    }

    fn require_those_of(&self, student: &Self) -> Result<()> {
        let of = student.folder.display();
        let what = if self.vocabulary != student.vocabulary {
            let (own, others) = (self.vocabulary, student.vocabulary);
            format!("its vocabulary has {own} tokens, and that of `{of}` {others}")
        } else if same_tokenizer(self.folder, student.folder)? {
            return Ok(());
        } else {
            format!("its tokenizer is not that of `{of}`")
        };
        Err(FinetuneError::OtherTeacher { path: self.folder.to_owned(), what })
    }
}

/// Whether two model folders give the same tokens the same numbers. Where either has no tokenizer, their
/// vocabularies' sizes must do.
fn same_tokenizer(one: &Path, other: &Path) -> Result<bool> {
    let [one, other] = [one, other].map(|folder| folder.join("tokenizer.json"));
    if !one.exists() || !other.exists() {
        return Ok(true);
    }
    let read = |path: &Path| -> Result<Value> { Ok(read_json(path)?) };
    let (one, other) = (read(&one)?, read(&other)?);
    // How it is spelt, how texts are cut to length and decoded again does not matter.
    let added = |of: &Value| -> Vec<(Value, Value)> {
        let all = of["added_tokens"].as_array().into_iter().flatten();
        all.map(|token| (token["id"].clone(), token["content"].clone())).collect()
    };
    let vocabulary = |of: &Value| of["model"]["vocab"].clone();
    Ok(vocabulary(&one) == vocabulary(&other) && added(&one) == added(&other))
}
