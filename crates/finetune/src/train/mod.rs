//! The training loop: rows to gradients to updates, step by step.

mod continuation;
mod gradients;
pub(crate) mod recipe;
mod report;
mod settings;
#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{StepReport, remove_if_there, sha256_bytes};
use collective::Group;
use dataset::{Encoded, Example, Sampler};

use crate::decoder::Trainable;
use crate::distil::Distillation;
use crate::evaluate::{EvalRows, Standing, standing, standing_together};
use crate::observer::{Nobody, Observer};
use crate::optimizer::AdamW;
use crate::replicas::Replicas;
use crate::state::{self, Source, Taken};
use crate::stop;
use crate::{
    ComputeType, DistilSettings, DistilTerms, FinetuneError, Model, Result, RunScale, Teacher,
};

pub use continuation::Continuation;
use gradients::adapter_gradients;
pub(crate) use gradients::{Gathered, Passes, backward, backward_part};
pub use recipe::Difference;
use recipe::Recipe;
pub use report::{GradientSink, Gradients, KeptStep, StepMetrics, TrainReport};
pub use settings::{LoraAndLayers, Method, TrainSettings};

/// A training under way.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    settings: TrainSettings,
    data: Arc<Encoded>,
    sampler: Sampler,
    adamw: AdamW,
    /// What a saved state must agree with to be taken up again.
    recipe: Recipe,
    distillation: Option<Distillation>,
    /// The other processes that train with this one.
    replicas: Option<Replicas>,
    /// The step it began at: another training's, if it went on from one.
    begun: usize,
    step: usize,
}

/// Time between two saved states.
const SAVE_EVERY: Duration = Duration::from_mins(1);

impl Trainer {
    /// Prepares a model to be trained on rows as
    /// [`Encoder::examples`](dataset::Encoder::examples) gives them.
    ///
    /// # Errors
    ///
    /// If the settings cannot be used or memory runs out.
    pub fn new(
        mut model: Model,
        settings: TrainSettings,
        data: impl Into<Arc<Encoded>>,
    ) -> Result<Self> {
        let data = data.into();
        let mut settings = settings;
        settings.restrict_to(model.config())?;
        let batch = settings.batch_rows * settings.accumulate;
        let norm = settings.max_grad_norm;
        if batch == 0 || settings.epochs <= 0.0 || norm <= 0.0 || settings.save_every == Some(0) {
            let what = "batch, accumulation, epochs, clipping norm and saves must be positive";
            return Err(FinetuneError::Settings(what.into()));
        }
        match &settings.method {
            Method::Lora(lora) => model.add_lora(lora, settings.seed)?,
            Method::LoraAndLayers(both) => {
                if both.full.is_empty() {
                    let what = "no layers are named that train in full; name some, or train with adapters alone";
                    return Err(FinetuneError::Settings(what.into()));
                }
                model.make_layers_trainable(&both.full)?;
                // None are left for adapters where all layers train in full.
                model.add_lora(&both.adapters(model.config().num_layers), settings.seed)?;
            }
            Method::Full => model.make_trainable(Trainable::All)?,
            Method::HeadAndLast(count) => model.make_trainable(Trainable::HeadAndLast(*count))?,
        }
        let adamw = AdamW::new(model.trained(), settings.adamw)?.masked(settings.update_share)?;
        let sampler = Sampler::new(data.examples.len(), batch, settings.seed);
        let frozen = model.frozen.rounding().name();
        let recipe = Recipe::of(&settings, model.config().num_layers, &data.examples);
        let recipe = recipe.with_frozen(frozen);
        let (distillation, replicas, begun, step) = (None, None, 0, 0);
        Ok(Self {
            model,
            settings,
            data,
            sampler,
            adamw,
            recipe,
            distillation,
            replicas,
            begun,
            step,
        })
    }

    /// Lets a teacher have a part in the loss of all steps from here on:
    ///
    /// ```text
    /// (1 − λ)·CE + λ·T²·KL_k + β·H
    /// ```
    ///
    /// with `CE` the mean token loss, `KL_k` the teacher's `k` largest probabilities and all others as one against
    /// the model's, on labelled tokens, and `H` the relative squared distance of states where layers were cut
    /// (docs/method.md §9). `β` falls to 0 over the first half of the steps that are taken from here on, which
    /// [`TrainSettings::max_steps`] may cut short. The teacher goes through every batch first.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::OtherTeacher`] if it has another vocabulary, tokenizer, device or other layers;
    /// [`FinetuneError::Settings`] if a weight cannot be used.
    pub fn with_teacher(mut self, teacher: Teacher, settings: DistilSettings) -> Result<Self> {
        let distillation = Distillation::new(teacher, settings, &mut self.model)?;
        let steps = self.begun..self.total_steps();
        self.recipe.teach(distillation.settings(), distillation.identity()?, steps);
        self.distillation = Some(distillation);
        Ok(self)
    }

    /// Ties the states that it saves to this very model, so that no training of another one goes on from them. A training
    /// that goes on from another model's must not be tied.
    ///
    /// # Errors
    ///
    /// If the weights cannot be read.
    pub fn tied(mut self) -> Result<Self> {
        self.recipe.begin_with(self.model.identity_of_weights()?);
        Ok(self)
    }

    /// Trains together with the other processes of a group, each of which has the same model, rows and settings: every
    /// step's rows are dealt out among them, and the gradients are summed while the backward pass goes on. Steps and
    /// results are those of one process that takes all rows, but for the order of the sums. A teacher is in each of them. The
    /// first process saves.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Collective`] if a process is gone, or the group's backend cannot be used.
    pub fn with_group(mut self, group: Rc<Group>) -> Result<Self> {
        let layers = self.model.config().num_layers;
        let device = self.model.device();
        self.replicas = Some(Replicas::new(group, &self.adamw.slots, layers, device)?);
        Ok(self)
    }

    /// How many steps the schedule spans.
    pub fn scheduled_steps(&self) -> usize {
        let steps = self.settings.epochs * self.sampler.steps_per_epoch() as f64;
        (steps.round() as usize).max(1)
    }

    /// How many steps are taken.
    pub fn total_steps(&self) -> usize {
        self.scheduled_steps().min(self.settings.max_steps.unwrap_or(usize::MAX))
    }

    /// The rows of the first `steps` steps of an epoch, `most` of them at most.
    pub(crate) fn first_rows(&self, steps: usize, most: usize) -> Vec<&Example> {
        let steps = steps.min(self.sampler.steps_per_epoch());
        let rows = (0..steps).flat_map(|step| self.sampler.batch(step));
        rows.take(most).map(|row| &self.data.examples[row]).collect()
    }

    /// How the model stands on rows held out ([`standing`]); where several processes train, each looks at its share of them,
    /// and all find the same.
    ///
    /// # Errors
    ///
    /// As [`standing`]; if a process is gone.
    pub fn standing(
        &self,
        rows: &EvalRows,
        batch_tokens: usize,
        observe: &mut dyn FnMut(usize),
    ) -> Result<Standing> {
        match &self.replicas {
            Some(replicas) => {
                standing_together(replicas.group(), &self.model, rows, batch_tokens, observe)
            }
            None => standing(&self.model, rows, batch_tokens, observe),
        }
    }

    /// Whether this process writes what the training leaves: of several, the first one does.
    pub fn writes(&self) -> bool {
        self.replicas.as_ref().is_none_or(Replicas::writes)
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Ends the training and returns the model.
    pub fn into_model(self) -> Model {
        self.model
    }

    /// Takes all remaining steps.
    ///
    /// With `saves`, a folder, the state is kept there from time to time, and before a step that
    /// fails with a number that is not finite; before the first step one that is there is taken up again. `observe` sees every step.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::NotFinite`] if a loss or gradient overflows; whatever the sink, the disk
    /// or libtorch refuse.
    pub fn run(
        &mut self,
        sink: Option<&mut dyn GradientSink>,
        saves: Option<&Path>,
        observe: &mut dyn FnMut(&StepMetrics),
    ) -> Result<TrainReport> {
        self.take_steps(usize::MAX, sink, saves, observe)
    }

    /// As [`Trainer::run`], but only until so many steps are behind it, those of an earlier call or process among
    /// them; with `saves` the state is left there, too. The model can then be looked at
    /// ([`standing`](crate::standing)), and the training goes on with the next call as if it had not paused, or never.
    ///
    /// The report is of the steps that this call took.
    ///
    /// # Errors
    ///
    /// As [`Trainer::run`].
    pub fn run_until(
        &mut self,
        step: usize,
        saves: Option<&Path>,
        observe: &mut dyn FnMut(&StepMetrics),
    ) -> Result<TrainReport> {
        let report = self.take_steps(step, None, saves, observe)?;
        if let Some(folder) = saves {
            self.save(folder)?;
        }
        Ok(report)
    }

    fn take_steps(
        &mut self,
        until: usize,
        sink: Option<&mut dyn GradientSink>,
        saves: Option<&Path>,
        observe: &mut dyn FnMut(&StepMetrics),
    ) -> Result<TrainReport> {
        crate::reset_peak_memory();
        let started = Instant::now();
        // After its first step it has nothing to take up, and of several processes another one may be writing there.
        if self.step == self.begun
            && let Some(folder) = saves
            && let Some(saved) = state::find(folder, &self.recipe)?
            && saved.step > self.step
        {
            let most = self.total_steps();
            if saved.step > most {
                tracing::warn!(
                    "{} steps are saved in `{}`, more than the {most} to take: the training ends there",
                    saved.step,
                    folder.display()
                );
            }
            saved.restore(&mut self.adamw, &Source::of)?;
            self.model.renew_magnitudes()?;
            self.step = saved.step;
        }
        if let Some(replicas) = &self.replicas {
            // Before the first of them writes there.
            let recipe = serde_json::json!([self.recipe, format!("{:?}", self.model.kind)]);
            let digest = sha256_bytes(recipe.to_string().as_bytes());
            replicas.require_alike(&digest, self.step)?;
        }
        let mut sink = sink;
        let (mut tokens, mut last_loss, mut saved) = (0, None, Instant::now());
        while self.step < until.min(self.total_steps()) {
            let is_time = saved.elapsed() > SAVE_EVERY;
            if let Some(replicas) = &self.replicas {
                replicas.wish_to_save(is_time);
            }
            // Reborrowed for each step.
            let sink = sink.as_mut().map(|sink| &mut **sink as &mut dyn GradientSink);
            let metrics = match (self.step(sink, &mut Nobody), saves) {
                (Err(error @ FinetuneError::NotFinite { .. }), Some(folder)) => {
                    // Nothing was updated yet: this is the last good state, unless the update before
                    // it broke the weights; then the older one stays. The error says more than
                    // that of saving.
                    let _ = self.save(folder);
                    return Err(error);
                }
                (metrics, _) => metrics?,
            };
            tokens += metrics.report.tokens;
            last_loss = Some(metrics.report.loss);
            observe(&metrics);
            let due = match self.settings.save_every {
                Some(steps) => self.step.is_multiple_of(steps),
                None => self.replicas.as_ref().map_or(is_time, Replicas::saves),
            };
            let asked = self.replicas.as_ref().map_or_else(stop::is_asked, Replicas::stops);
            let stops = asked && self.step < self.total_steps();
            match saves {
                Some(folder) if due || stops => {
                    self.save(folder)?;
                    saved = Instant::now();
                }
                _ => {}
            }
            match saves {
                Some(_) if stops => return Err(FinetuneError::Stopped { step: self.step }),
                None if stops => return Err(FinetuneError::StoppedUnsaved),
                _ => {}
            }
        }
        Ok(TrainReport {
            steps: self.step,
            rows: self.data.counts.rows - self.data.counts.left_out,
            skipped_rows: self.data.counts.left_out,
            trained_parameters: self
                .adamw
                .slots
                .iter()
                .map(|slot| slot.tensor.numel() as u64)
                .sum(),
            tokens,
            seconds: started.elapsed().as_secs_f64(),
            last_loss,
            peak_memory_bytes: crate::peak_memory_bytes(),
            kept: None,
        })
    }

    /// How many steps the state has behind it that this training has left in a folder, if it has.
    ///
    /// # Errors
    ///
    /// If the state is of another training, or cannot be read.
    pub fn saved_step(&self, folder: &Path) -> Result<Option<usize>> {
        Ok(state::find(folder, &self.recipe)?.map(|saved| saved.step))
    }

    fn taken(&self) -> Taken<'_> {
        let computed_in = self.model.compute_type();
        Taken { step: self.step, computed_in, recipe: &self.recipe }
    }

    /// The type in which the steps were computed whose state lies in a folder, if one does.
    ///
    /// # Errors
    ///
    /// If the state cannot be read.
    pub fn saved_compute_type(folder: &Path) -> Result<Option<ComputeType>> {
        state::computed_in(folder)
    }

    /// How many steps are taken so far.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Removes what [`Trainer::run`] saved.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn forget_saves(folder: &Path) -> Result<()> {
        Ok(remove_if_there(folder)?)
    }

    /// Leaves the state as it is in `folder`, for [`Trainer::go_on`] and [`Trainer::run`]; of several processes, the first
    /// one does.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if !self.writes() {
            return state::require_finite(&self.adamw);
        }
        state::save(folder, self.taken(), &self.adamw)
    }

    /// Leaves the trained tensors as they are in `folder`, in place of those of fewer steps, for
    /// [`Trainer::take_weights`]; of several processes, the first one does.
    ///
    /// # Errors
    ///
    /// If the disk refuses, or a tensor is not finite.
    pub fn keep_weights(&self, folder: &Path) -> Result<()> {
        if !self.writes() {
            return state::require_finite(&self.adamw);
        }
        state::save_weights(folder, self.taken(), &self.adamw)
    }

    /// Gives the model the trained tensors that [`Trainer::keep_weights`] left, and says of which step they are. The
    /// optimizer's means and the step stay as they are: this ends a training.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::NoState`] if there are none, [`FinetuneError::OtherRun`] if they are another training's,
    /// [`FinetuneError::BrokenState`] if they are damaged.
    pub fn take_weights(&mut self, folder: &Path) -> Result<usize> {
        let kept = state::find(folder, &self.recipe)?;
        let kept = kept.ok_or_else(|| FinetuneError::NoState { path: folder.to_owned() })?;
        kept.restore_weights(&mut self.adamw)?;
        self.model.renew_magnitudes()?;
        Ok(kept.step)
    }

    /// Takes up what a training of the same settings and rows left: adapters, the optimizer's
    /// means (where the stream is smaller by scales, as [`Continuation`] says), the place in the data and in the schedule. A
    /// teacher joins from there on: that training had none.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::OtherRun`] if the state is of other settings or rows or a model of other depth,
    /// [`FinetuneError::BrokenState`] if it is damaged or of an older version, [`FinetuneError::NoState`] if
    /// there is none, [`FinetuneError::Settings`] if a scale is none of the layers that are gone.
    pub fn go_on(&mut self, from: &Continuation) -> Result<()> {
        let Continuation { folder, num_layers, .. } = from;
        if let Some(RunScale { run, factor }) = from.cuts().unfit_scale(*num_layers) {
            let what =
                format!("the scale {factor} of layers {run:?} is not one of a run that is gone");
            return Err(FinetuneError::Settings(what));
        }
        let saved = state::find(folder, &self.recipe.before(*num_layers))?;
        let saved = saved.ok_or_else(|| FinetuneError::NoState { path: folder.clone() })?;
        saved.restore(&mut self.adamw, &|name| from.source(name))?;
        self.model.renew_magnitudes()?;
        (self.step, self.begun) = (saved.step, saved.step);
        self.recipe.join_at(self.begun);
        Ok(())
    }

    /// One step: gradients of the mean token loss over the whole effective batch, clipped, handed
    /// to the sink, and applied.
    pub(crate) fn step(
        &mut self,
        sink: Option<&mut dyn GradientSink>,
        observer: &mut dyn Observer,
    ) -> Result<StepMetrics> {
        let started = Instant::now();
        let rows = self.sampler.batch(self.step);
        let examples: Vec<&Example> = rows.iter().map(|&row| &self.data.examples[row]).collect();
        let TrainSettings { batch_rows, .. } = self.settings;
        let total = self.total_steps();
        let lesson = self.distillation.as_ref().map(|of| of.at(self.step, self.begun, total));
        let passes = Passes { batch_rows, keep: self.settings.keep(), lesson };
        let Gathered { loss, distil, tokens } = match &self.replicas {
            Some(replicas) => replicas.backward(&self.model, &examples, passes)?,
            None => backward(&self.model, &examples, passes, observer)?,
        };
        self.require_finite("loss", loss, &rows)?;
        if let Some(DistilTerms { objective, .. }) = distil {
            self.require_finite("loss with the teacher's part", objective, &rows)?;
        }
        let grad_norm = self.adamw.grad_norm()?;
        self.require_finite("gradient's norm", grad_norm, &rows)?;
        self.adamw.clip(grad_norm, self.settings.max_grad_norm)?;
        let learning_rate = self.settings.schedule.rate(self.step, self.scheduled_steps());
        let report = StepReport { loss, grad_norm, learning_rate, tokens };
        let hooked = Instant::now();
        if let Some(sink) = sink {
            sink.step(report, &Arc::new(adapter_gradients(&self.model)?))?;
        }
        let hook_seconds = hooked.elapsed().as_secs_f64();
        self.adamw.update(learning_rate)?;
        self.model.renew_magnitudes()?;
        self.adamw.zero_gradients()?;
        self.step += 1;
        Ok(StepMetrics {
            step: self.step,
            total_steps: self.total_steps(),
            report,
            seconds: started.elapsed().as_secs_f64(),
            hook_seconds,
            distil,
        })
    }

    fn require_finite(&self, what: &'static str, found: f64, rows: &[usize]) -> Result<()> {
        if found.is_finite() {
            return Ok(());
        }
        let rows = rows.iter().map(|&row| self.data.places[row].clone()).collect();
        Err(FinetuneError::NotFinite { step: self.step + 1, what, found, rows })
    }
}
