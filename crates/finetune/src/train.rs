//! The training loop: rows to gradients to updates, step by step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{Module, StepGradients, StepReport, remove_if_there};
use dataset::{Encoded, Example, Sampler};
use serde::{Deserialize, Serialize};

use crate::bridge::matrix;
use crate::decoder::{Keep, Trainable};
use crate::observer::{Nobody, Observer};
use crate::optimizer::AdamW;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::state::{self, Owner};
use crate::stop;
use crate::{AdamWSettings, FinetuneError, LoraSettings, Model, Result, Schedule};

/// What trains.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Adapters alone.
    Lora(LoraSettings),
    /// Every weight.
    Full,
    /// The head, the norm before it and so many of the last layers (Lu et al., arXiv 2411.15558).
    ///
    /// A head that is the embedding too trains as both, which takes the gradient down to it.
    HeadAndLast(usize),
}

/// How a model is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// What trains.
    pub method: Method,
    /// How often every row is seen.
    pub epochs: f64,
    /// Stop after so many steps, if that is sooner; the schedule still spans all epochs.
    pub max_steps: Option<usize>,
    /// Rows of a forward pass.
    pub batch_rows: usize,
    /// Forward passes of a step.
    pub accumulate: usize,
    /// The optimizer's constants.
    pub adamw: AdamWSettings,
    /// The learning rate.
    pub schedule: Schedule,
    /// The largest norm of all gradients together.
    pub max_grad_norm: f64,
    /// Decides the rows' order and the initial adapters.
    pub seed: u64,
    /// Keep each layer's input alone for the backward pass and compute the rest again there: less
    /// memory, more time, the same gradients.
    pub remat: bool,
    /// Steps between two saved states; `None` for one a minute.
    pub save_every: Option<usize>,
}

/// A state that a training of a deeper model left, to go on from with some of its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The folder it was left in.
    pub folder: PathBuf,
    /// How many layers that model had.
    pub num_layers: usize,
    /// Each layer's number in that model.
    pub origin: Vec<usize>,
}

impl TrainSettings {
    fn keep(&self) -> Keep {
        if self.remat { Keep::LayerInputs } else { Keep::Activations }
    }
}

/// Every adapter's gradients at one step, in layer order.
pub type Gradients = Vec<((usize, Module), StepGradients)>;

/// Takes each step's adapter gradients, after clipping and before the optimizer's step.
pub trait GradientSink {
    /// One step's gradients.
    ///
    /// # Errors
    ///
    /// If they cannot be kept or used.
    fn step(&mut self, report: StepReport, gradients: &Arc<Gradients>) -> Result<()>;

    /// Whether it has seen enough; [`collect`](crate::collect) stops then.
    fn enough(&self) -> bool {
        false
    }
}

/// What one step did; a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: usize,
    /// Steps the run takes in all.
    pub total_steps: usize,
    /// What [`StepReport`] says.
    #[serde(flatten)]
    pub report: StepReport,
    /// Seconds the step took.
    pub seconds: f64,
    /// Seconds of these that went into handing its gradients on.
    #[serde(default)]
    pub hook_seconds: f64,
}

impl StepMetrics {
    /// Tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.report.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// What a whole training did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct TrainReport {
    pub steps: usize,
    pub rows: usize,
    pub skipped_rows: usize,
    pub trained_parameters: u64,
    pub tokens: usize,
    pub seconds: f64,
    pub last_loss: f64,
    pub peak_memory_bytes: Option<u64>,
}

/// A training under way.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    settings: TrainSettings,
    data: Encoded,
    sampler: Sampler,
    adamw: AdamW,
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
    pub fn new(mut model: Model, settings: TrainSettings, data: Encoded) -> Result<Self> {
        let batch = settings.batch_rows * settings.accumulate;
        let norm = settings.max_grad_norm;
        if batch == 0 || settings.epochs <= 0.0 || norm <= 0.0 || settings.save_every == Some(0) {
            let what = "batch, accumulation, epochs, clipping norm and saves must be positive";
            return Err(FinetuneError::Settings(what.into()));
        }
        match &settings.method {
            Method::Lora(lora) => model.add_lora(lora, settings.seed)?,
            Method::Full => model.make_trainable(Trainable::All)?,
            Method::HeadAndLast(count) => model.make_trainable(Trainable::HeadAndLast(*count))?,
        }
        let adamw = AdamW::new(model.trained(), settings.adamw)?;
        let sampler = Sampler::new(data.examples.len(), batch, settings.seed);
        Ok(Self { model, settings, data, sampler, adamw, step: 0 })
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
    /// fails with a number that is not finite; it is taken up again if it is there. `observe` sees every step.
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
        crate::reset_peak_memory();
        let started = Instant::now();
        let owner = self.owner();
        if let Some(folder) = saves
            && let Some(step) = state::restore(folder, &owner, &mut self.adamw, &str::to_owned)?
        {
            self.step = step;
        }
        let mut sink = sink;
        let (mut tokens, mut last_loss, mut saved) = (0, f64::NAN, Instant::now());
        while self.step < self.total_steps() {
            // Reborrowed for each step.
            let sink = sink.as_mut().map(|sink| &mut **sink as &mut dyn GradientSink);
            let metrics = match (self.step(sink, &mut Nobody), saves) {
                (Err(error @ FinetuneError::NotFinite { .. }), Some(folder)) => {
                    // Nothing was updated yet: this is the last good state, unless the update before
                    // it broke the weights; then the older one stays. The error says more than
                    // that of saving.
                    let _ = state::save(folder, self.step, &owner, &self.adamw);
                    return Err(error);
                }
                (metrics, _) => metrics?,
            };
            tokens += metrics.report.tokens;
            last_loss = metrics.report.loss;
            observe(&metrics);
            let due = match self.settings.save_every {
                Some(steps) => self.step.is_multiple_of(steps),
                None => saved.elapsed() > SAVE_EVERY,
            };
            let stops = stop::is_asked() && self.step < self.total_steps();
            match saves {
                Some(folder) if due || stops => {
                    state::save(folder, self.step, &owner, &self.adamw)?;
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
        })
    }

    /// How many steps are taken so far.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// As [`Trainer::run`], but stops after a step, counted from 1, and leaves the state there in `saves`; a later run
    /// with these goes on as if it had never stopped.
    ///
    /// # Errors
    ///
    /// As [`Trainer::run`].
    pub fn run_until(
        &mut self,
        step: usize,
        saves: &Path,
        observe: &mut dyn FnMut(&StepMetrics),
    ) -> Result<()> {
        let most = self.settings.max_steps.replace(step.min(self.total_steps()));
        let found = self.run(None, Some(saves), observe);
        self.settings.max_steps = most;
        found?;
        self.save(saves)
    }

    /// Removes what [`Trainer::run`] saved.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn forget_saves(folder: &Path) -> Result<()> {
        Ok(remove_if_there(folder)?)
    }

    /// Leaves the state as it is in `folder`, for [`Trainer::go_on`] and [`Trainer::run`].
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<()> {
        state::save(folder, self.step, &self.owner(), &self.adamw)
    }

    /// Takes up what a training of the same settings and rows left: adapters, the optimizer's
    /// means, the place in the data and in the schedule.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::OtherRun`] if the state is of other settings or another model,
    /// [`FinetuneError::NoState`] if there is none.
    pub fn go_on(&mut self, from: &Continuation) -> Result<()> {
        let Continuation { folder, num_layers, origin } = from;
        let owner = Owner { num_layers: *num_layers, ..self.owner() };
        let origin = |name: &str| {
            let old = name.strip_prefix("layers.").and_then(|rest| {
                let (number, rest) = rest.split_once('.')?;
                let old = origin.get(number.parse::<usize>().ok()?)?;
                Some(format!("layers.{old}.{rest}"))
            });
            old.unwrap_or_else(|| name.to_owned())
        };
        let step = state::restore(folder, &owner, &mut self.adamw, &origin)?;
        self.step = step.ok_or_else(|| FinetuneError::NoState { path: folder.clone() })?;
        Ok(())
    }

    /// What a saved state must agree with to be taken up again.
    fn owner(&self) -> Owner {
        // None of these changes a step: whoever ran out of memory may begin to compute again, and a
        // training may be cut shorter or longer.
        let settings = TrainSettings {
            remat: false,
            save_every: None,
            max_steps: None,
            ..self.settings.clone()
        };
        Owner {
            settings: format!("{settings:?} {}", self.data.examples.len()),
            num_layers: self.model.config().num_layers,
        }
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
        let passes = (self.settings.batch_rows, self.settings.keep());
        let (loss, tokens) = backward(&self.model, &examples, passes, observer)?;
        self.require_finite("loss", loss, &rows)?;
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
        self.adamw.zero_gradients()?;
        self.step += 1;
        Ok(StepMetrics {
            step: self.step,
            total_steps: self.total_steps(),
            report,
            seconds: started.elapsed().as_secs_f64(),
            hook_seconds,
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

/// Adds the gradient of the mean token loss over all examples to what trains, a few rows at a time;
/// returns that loss and how many tokens went through the model.
pub(crate) fn backward(
    model: &Model,
    examples: &[&Example],
    (batch_rows, keep): (usize, Keep),
    observer: &mut dyn Observer,
) -> Result<(f64, usize)> {
    let labels: usize = examples
        .iter()
        .map(|example| example.labelled.iter().filter(|&&labelled| labelled).count())
        .sum();
    let scale = 1.0 / labels as f64;
    let (mut loss, mut tokens) = (0.0, 0);
    for rows in examples.chunks(batch_rows) {
        // Rows of like length side by side: attention pads them to one another.
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let batch = Packed::examples_rounded(&rows, model.device)?;
        loss += model.loss_and_gradients(&batch, (scale, keep), observer)? * scale;
        tokens += batch.num_tokens();
    }
    Ok((loss, tokens))
}

/// Every adapter's gradients as they are now, in layer order.
pub(crate) fn adapter_gradients(model: &Model) -> Result<Gradients> {
    let gradient = |x: &Parameter| matrix(x.gradient.as_ref().unwrap_or(&x.value));
    let mut found = Vec::new();
    for (number, layer) in model.layers.iter().enumerate() {
        for (&module, linear) in &layer.linears {
            if let Some(lora) = &linear.lora {
                let (a, b) = (gradient(&lora.a)?, gradient(&lora.b)?);
                found.push(((number, module), StepGradients { a, b }));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use checkpoint::{Adapter, AdapterConfig, AdapterPair, Weights};
    use dataset::{Place, RowCounts};
    use igia::product_norm_squared;
    use ndarray::Array2;

    use super::*;
    use crate::{ComputeType, Decay, DeviceChoice};

    /// One golden batch, its padding stripped.
    pub(crate) fn golden_batch(name: &str, step: usize) -> Vec<Example> {
        let file = testkit::fixture(&format!("{name}/batches.safetensors"));
        let read = |what: &str| testkit::tensor_i64(&file, &format!("step{step}.{what}"));
        let (shape, ids) = read("input_ids");
        let ((_, labels), (_, mask)) = (read("labels"), read("attention_mask"));
        let &[rows, width] = shape.as_slice() else { panic!("two dimensions") };
        (0..rows)
            .map(|row| {
                let at = (0..width).map(|column| row * width + column).filter(|&at| mask[at] == 1);
                let at: Vec<usize> = at.collect();
                let mut labelled: Vec<bool> = at.iter().map(|&at| labels[at] != -100).collect();
                labelled[0] = false;
                Example::whole(at.iter().map(|&at| ids[at] as u32).collect(), labelled)
            })
            .collect()
    }

    /// The golden adapters before a step.
    fn golden_adapter(name: &str, step: usize, settings: &serde_json::Value) -> Adapter {
        let file = testkit::fixture(&format!("{name}/lora_before_step{step}.safetensors"));
        let weights = Weights::open_file(&file).unwrap();
        let matrix = |name: String| {
            let view = weights.get(&name).unwrap();
            let shape = (view.shape()[0], view.shape()[1]);
            Array2::from_shape_vec(shape, view.to_f32().unwrap()).unwrap()
        };
        let mut pairs = BTreeMap::new();
        for layer in 0..6 {
            for module in Module::ALL {
                let name = format!("layers.{layer}.{module}");
                let a = matrix(format!("{name}.lora_A"));
                let b = matrix(format!("{name}.lora_B"));
                pairs.insert((layer, module), AdapterPair { a, b });
            }
        }
        let shape = (
            settings["lora_rank"].as_u64().unwrap() as usize,
            settings["lora_alpha"].as_f64().unwrap(),
        );
        let modules = BTreeSet::from(Module::ALL);
        let config = AdapterConfig::lora("", shape, &modules, &(0..6).collect(), 6);
        Adapter { config, pairs }
    }

    pub(crate) fn golden_model(name: &str) -> Model {
        let folder = testkit::fixture(&format!("{name}/model"));
        Model::load(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap()
    }

    /// Losses, norms and clipped gradients of each step from its given state, and the scores that
    /// follow from them.
    #[test]
    fn golden_gradients() {
        for name in testkit::GOLDEN {
            let expected = testkit::json(&testkit::fixture(&format!("{name}/expected.json")));
            let settings = &expected["settings"];
            let mut squares = [0.0; 6];
            for step in 1..=3 {
                let mut model = golden_model(name);
                let adapter = golden_adapter(name, step, settings);
                model.add_adapter(&adapter, Path::new("")).unwrap();
                let adamw = AdamW::new(model.trained(), constants()).unwrap();
                let examples = golden_batch(name, step);
                // A row at a time, so that accumulation is tested too.
                let (loss, _) = backward(
                    &model,
                    &examples.iter().collect::<Vec<_>>(),
                    (1, Keep::Activations),
                    &mut Nobody,
                )
                .unwrap();
                let norm = adamw.grad_norm().unwrap();
                let close = |found: f64, expected: &serde_json::Value| {
                    let expected = expected.as_f64().unwrap();
                    assert!(
                        (found / expected - 1.0).abs() < 1e-5,
                        "{name}: {found} is not {expected}"
                    );
                };
                close(loss, &expected["losses"][step - 1]);
                close(norm, &expected["grad_norms_before_clipping"][step - 1]);
                adamw.clip(norm, settings["max_grad_norm"].as_f64().unwrap()).unwrap();
                let record = testkit::fixture(&format!("{name}/record/step-{step:05}.safetensors"));
                for ((layer, module), pair) in adapter_gradients(&model).unwrap() {
                    for (side, found) in [("A", &pair.a), ("B", &pair.b)] {
                        let tensor = format!("layers.{layer}.{module}.lora_{side}");
                        let (_, expected) = testkit::tensor_f32(&record, &tensor);
                        let found: Vec<f32> = found.iter().copied().collect();
                        let apart = testkit::relative_deviation(&found, &expected);
                        assert!(apart < 1e-5, "{name} step {step} {tensor}: {apart}");
                    }
                    squares[layer] += product_norm_squared(&pair.b, &pair.a).unwrap() / 3.0;
                }
            }
            for (layer, found) in squares.into_iter().enumerate() {
                let expected = expected["score_igia"][layer].as_f64().unwrap();
                assert!((found / expected - 1.0).abs() < 1e-5, "{name} layer {layer}");
            }
        }
    }

    /// The gradient of one adapter element against the slope of the loss.
    #[test]
    fn finite_differences() {
        let name = "tiny_qwen2";
        let expected = testkit::json(&testkit::fixture(&format!("{name}/expected.json")));
        let adapter = golden_adapter(name, 2, &expected["settings"]);
        let examples = golden_batch(name, 2);
        let examples: Vec<_> = examples.iter().collect();
        let (place, element) = ((3, Module::GateProj), (5, 2));
        let loss_at = |shift: f32| {
            let mut adapter = adapter.clone();
            adapter.pairs.get_mut(&place).unwrap().b[element] += shift;
            let mut model = golden_model(name);
            model.add_adapter(&adapter, Path::new("")).unwrap();
            let (loss, _) =
                backward(&model, &examples, (8, Keep::Activations), &mut Nobody).unwrap();
            let gradients = adapter_gradients(&model).unwrap();
            let (_, pair) = gradients.into_iter().find(|(found, _)| *found == place).unwrap();
            (loss, f64::from(pair.b[element]))
        };
        let step = 1e-2;
        let slope = (loss_at(step).0 - loss_at(-step).0) / (2.0 * f64::from(step));
        let (_, gradient) = loss_at(0.0);
        // The loss is an f32 near 12; over a step of 0.02 its rounding shows in the fourth digit.
        assert!(
            (slope - gradient).abs() < 1e-3 * gradient.abs() + 1e-4,
            "{slope} is not {gradient}"
        );
    }

    fn constants() -> AdamWSettings {
        AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 }
    }

    pub(crate) fn settings(method: Method) -> TrainSettings {
        TrainSettings {
            method,
            epochs: 3.0,
            max_steps: None,
            batch_rows: 2,
            accumulate: 1,
            adamw: constants(),
            schedule: Schedule { peak: 1e-3, warmup: 0.1, decay: Decay::Linear },
            max_grad_norm: 1.0,
            seed: 7,
            remat: false,
            save_every: None,
        }
    }

    pub(crate) fn lora() -> Method {
        Method::Lora(LoraSettings {
            rank: 4,
            alpha: 8.0,
            targets: BTreeSet::from(Module::ALL),
            layers: None,
        })
    }

    pub(crate) fn rows(name: &str) -> Encoded {
        let examples: Vec<_> = (1..=3).flat_map(|step| golden_batch(name, step)).collect();
        let place = |number| Place { file: Path::new("rows.jsonl").into(), number, is_line: true };
        let places = (1..=examples.len()).map(place).collect();
        Encoded { examples, places, counts: RowCounts::default() }
    }

    fn weights_of(model: &Model) -> Vec<Vec<f32>> {
        model.trained().iter().map(|(_, x)| crate::bridge::values(&x.value).unwrap()).collect()
    }

    #[test]
    fn training_learns_and_repeats_bit_for_bit() {
        for method in [lora(), Method::Full] {
            let run = || {
                let mut losses = Vec::new();
                let mut trainer = Trainer::new(
                    golden_model("tiny_llama"),
                    settings(method.clone()),
                    rows("tiny_llama"),
                )
                .unwrap();
                trainer.run(None, None, &mut |metrics| losses.push(metrics.report.loss)).unwrap();
                (losses, weights_of(trainer.model()))
            };
            let (losses, weights) = run();
            let per_epoch = losses.len() / 3;
            let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
            assert!(mean(&losses[2 * per_epoch..]) < mean(&losses[..per_epoch]), "{losses:?}");
            assert_eq!(run(), (losses, weights));
        }
    }

    #[test]
    fn an_interrupted_training_goes_on_bit_for_bit() {
        let folder = testkit::temporary_folder();
        let saves = folder.path().join("state");
        let trainer = || {
            Trainer::new(golden_model("tiny_llama"), settings(lora()), rows("tiny_llama")).unwrap()
        };
        let mut whole = trainer();
        whole.run(None, None, &mut |_| {}).unwrap();

        let mut first = trainer();
        for _ in 0..4 {
            first.step(None, &mut Nobody).unwrap();
        }
        first.save(&saves).unwrap();
        let (until, mut stopped) = (folder.path().join("until"), trainer());
        stopped.run_until(4, &until, &mut |_| {}).unwrap();
        assert_eq!(stopped.steps_done(), 4);
        let (mut on, mut steps) = (trainer(), Vec::new());
        on.run(None, Some(&until), &mut |metrics| steps.push(metrics.step)).unwrap();
        assert_eq!(steps.first(), Some(&5));
        assert_eq!(weights_of(on.model()), weights_of(whole.model()));
        let (mut second, mut steps) = (trainer(), Vec::new());
        second.settings.remat = true;
        second.run(None, Some(&saves), &mut |metrics| steps.push(metrics.step)).unwrap();
        assert_eq!(steps.first(), Some(&5));
        assert_eq!(weights_of(second.model()), weights_of(whole.model()));

        let other = TrainSettings { seed: 8, ..settings(lora()) };
        let mut other =
            Trainer::new(golden_model("tiny_llama"), other, rows("tiny_llama")).unwrap();
        let refused = other.run(None, Some(&saves), &mut |_| {});
        assert!(matches!(refused, Err(FinetuneError::OtherRun { .. })));
    }

    /// Takes gradients and does nothing with them.
    struct Nothing;
    impl GradientSink for Nothing {
        fn step(&mut self, _: StepReport, _: &Arc<Gradients>) -> Result<()> {
            Ok(())
        }
    }

    /// From a collected state the same model goes on bit for bit, and a pruned one has its layers'.
    #[test]
    fn collected_steps_are_a_trainings_first() {
        let folder = testkit::temporary_folder();
        let state = folder.path().join("state");
        let trainer = |model| Trainer::new(model, settings(lora()), rows("tiny_llama")).unwrap();
        let mut whole = trainer(golden_model("tiny_llama"));
        whole.run(None, None, &mut |_| {}).unwrap();

        let collecting = crate::CollectSettings {
            steps: 4,
            train: settings(lora()),
            state: Some(state.clone()),
        };
        let (model, rows) = (golden_model("tiny_llama"), rows("tiny_llama"));
        crate::collect(model, &collecting, rows, &mut Nothing, &mut |_| {}).unwrap();
        let num_layers = whole.model.layers.len();
        let from = |origin: Vec<usize>| Continuation { folder: state.clone(), num_layers, origin };
        let mut dense = trainer(golden_model("tiny_llama"));
        dense.go_on(&from((0..num_layers).collect())).unwrap();
        let at_four: BTreeMap<String, Vec<f32>> = dense
            .adamw
            .slots
            .iter()
            .map(|slot| (slot.name.clone(), crate::bridge::values(&slot.mean).unwrap()))
            .collect();
        dense.run(None, None, &mut |_| {}).unwrap();
        assert_eq!(weights_of(dense.model()), weights_of(whole.model()));

        let mut shorter = golden_model("tiny_llama");
        shorter.layers.remove(0);
        shorter.config.num_layers -= 1;
        let mut pruned = trainer(shorter);
        pruned.go_on(&from((1..num_layers).collect())).unwrap();
        assert_eq!(pruned.step, 4);
        for slot in &pruned.adamw.slots {
            let (number, rest) = slot.name["layers.".len()..].split_once('.').unwrap();
            let old = format!("layers.{}.{rest}", number.parse::<usize>().unwrap() + 1);
            assert_eq!(crate::bridge::values(&slot.mean).unwrap(), at_four[&old], "{old}");
        }
        let mut steps = Vec::new();
        pruned.run(None, None, &mut |metrics| steps.push(metrics.step)).unwrap();
        assert_eq!(steps.first(), Some(&5));

        let missing = Continuation { folder: folder.path().join("none"), ..from(vec![]) };
        let refused = pruned.go_on(&missing);
        assert!(matches!(refused, Err(FinetuneError::NoState { .. })));
    }

    #[test]
    fn a_loss_that_overflows_names_the_rows() {
        let mut broken = settings(Method::Full);
        broken.schedule = Schedule { peak: 1e30, warmup: 0.0, decay: Decay::Constant };
        let mut trainer =
            Trainer::new(golden_model("tiny_llama"), broken, rows("tiny_llama")).unwrap();
        let folder = testkit::temporary_folder();
        let saves = folder.path().join("state");
        let found = trainer.run(None, Some(&saves), &mut |_| {});
        let Err(FinetuneError::NotFinite { step, rows, .. }) = found else {
            panic!("it must be refused");
        };
        assert!(step > 1 && rows.len() == 2);
        assert!(saves.join(format!("step-{:06}", step - 1)).exists(), "the last good state");
    }
}
