//! The training loop against golden numbers, and against itself where it is cut short.

use std::collections::{BTreeMap, BTreeSet};

use checkpoint::{Adapter, AdapterConfig, AdapterPair, Module, ModuleName, Weights};
use dataset::{Place, RowCounts};
use igia::product_norm_squared;
use ndarray::Array2;

use super::*;
use crate::decoder::Keep;
use crate::{AdamWSettings, ComputeType, Decay, DeviceChoice, LoraSettings, Schedule};

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
        for module in Module::SPLIT {
            let name = format!("layers.{layer}.{module}");
            let a = matrix(format!("{name}.lora_A"));
            let b = matrix(format!("{name}.lora_B"));
            pairs.insert((layer, module), AdapterPair { a, b, magnitude: None });
        }
    }
    let shape = (
        settings["lora_rank"].as_u64().unwrap() as usize,
        settings["lora_alpha"].as_f64().unwrap(),
    );
    let modules = BTreeSet::from(Module::SPLIT);
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
        let device: DeviceChoice = testkit::device().parse().unwrap();
        let mut squares = [0.0; 6];
        for step in 1..=3 {
            let folder = testkit::fixture(&format!("{name}/model"));
            let mut model = Model::load(&folder, device, ComputeType::F32).unwrap();
            let adapter = golden_adapter(name, step, settings);
            model.add_adapter(&adapter, Path::new("")).unwrap();
            let adamw = AdamW::new(model.trained(), constants()).unwrap();
            let examples = golden_batch(name, step);
            // A row at a time, so that accumulation is tested too.
            let examples: Vec<_> = examples.iter().collect();
            let passes = Passes { batch_rows: 1, keep: Keep::Activations, lesson: None };
            let loss = backward(&model, &examples, passes, &mut Nobody).unwrap().loss;
            let norm = adamw.grad_norm().unwrap();
            let close = |found: f64, expected: &serde_json::Value| {
                let expected = expected.as_f64().unwrap();
                assert!((found / expected - 1.0).abs() < 1e-5, "{name}: {found} is not {expected}");
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
        let passes = Passes { batch_rows: 8, keep: Keep::Activations, lesson: None };
        let loss = backward(&model, &examples, passes, &mut Nobody).unwrap().loss;
        let gradients = adapter_gradients(&model).unwrap();
        let of_place = |found: &(usize, ModuleName)| found.0 == place.0 && found.1 == place.1;
        let (_, pair) = gradients.into_iter().find(|(found, _)| of_place(found)).unwrap();
        (loss, f64::from(pair.b[element]))
    };
    let step = 1e-2;
    let slope = (loss_at(step).0 - loss_at(-step).0) / (2.0 * f64::from(step));
    let (_, gradient) = loss_at(0.0);
    // The loss is an f32 near 12; over a step of 0.02 its rounding shows in the fourth digit.
    assert!((slope - gradient).abs() < 1e-3 * gradient.abs() + 1e-4, "{slope} is not {gradient}");
}

pub(crate) fn constants() -> AdamWSettings {
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
        update_share: None,
        seed: 7,
        remat: false,
        save_every: None,
    }
}

pub(crate) fn lora() -> Method {
    Method::Lora(LoraSettings {
        rank: 4,
        alpha: 8.0,
        targets: BTreeSet::from(Module::SPLIT),
        layers: None,
        dora: false,
    })
}

pub(crate) fn rows(name: &str) -> Encoded {
    let examples: Vec<_> = (1..=3).flat_map(|step| golden_batch(name, step)).collect();
    let place = |number| Place { file: Path::new("rows.jsonl").into(), number, is_line: true };
    let places = (1..=examples.len()).map(place).collect();
    Encoded { examples, places, counts: RowCounts::default() }
}

pub(crate) fn weights_of(model: &Model) -> Vec<Vec<f32>> {
    model.trained().iter().map(|(_, x)| crate::bridge::values(&x.value).unwrap()).collect()
}

/// Some layers in full and adapters on others; no layer has both.
pub(crate) fn lora_and_layers() -> Method {
    let Method::Lora(lora) = lora() else { panic!("it is LoRA") };
    Method::LoraAndLayers(LoraAndLayers { lora, full: BTreeSet::from([1, 2]) })
}

#[test]
fn layers_in_full_have_no_adapters() {
    let trainer =
        Trainer::new(golden_model("tiny_llama"), settings(lora_and_layers()), rows("tiny_llama"))
            .unwrap();
    for (number, layer) in trainer.model().layers.iter().enumerate() {
        let full = number == 1 || number == 2;
        assert_eq!(layer.norms.all().any(|norm| norm.weight.trains()), full);
        for linear in layer.linears.values() {
            assert_eq!((linear.weight.trains(), linear.lora.is_some()), (full, !full), "{number}");
        }
    }
    let refused = |full: BTreeSet<usize>, layers: Option<BTreeSet<usize>>| {
        let Method::Lora(lora) = lora() else { panic!("it is LoRA") };
        let both = LoraAndLayers { lora: LoraSettings { layers, ..lora }, full };
        let settings = settings(Method::LoraAndLayers(both));
        Trainer::new(golden_model("tiny_llama"), settings, rows("tiny_llama"))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(BTreeSet::new(), None).contains("no layers are named that train in full"));
    assert!(refused(BTreeSet::from([6]), None).contains("there is no layer 6 of 6"));
}

/// Where every layer that could have an adapter trains in full, those layers train and nothing else does.
#[test]
fn layers_in_full_may_leave_none_for_adapters() {
    for (full, layers) in
        [((0..6).collect::<BTreeSet<_>>(), None), (BTreeSet::from([1]), Some([1]))]
    {
        let Method::Lora(lora) = lora() else { panic!("it is LoRA") };
        let lora = LoraSettings { layers: layers.map(BTreeSet::from), ..lora };
        let method = Method::LoraAndLayers(LoraAndLayers { lora, full: full.clone() });
        let (model, rows) = (golden_model("tiny_llama"), rows("tiny_llama"));
        let mut trainer = Trainer::new(model, settings(method), rows).unwrap();
        let before = weights_of(trainer.model());
        // The first step's rate is 0.
        trainer.run_until(2, None, &mut |_| {}).unwrap();
        let layer = |name: &str| name.split('.').nth(2)?.parse::<usize>().ok();
        let trained: BTreeSet<Option<usize>> =
            trainer.model().trained().iter().map(|(name, _)| layer(name)).collect();
        assert_eq!(trained, full.iter().copied().map(Some).collect());
        let after = weights_of(trainer.model());
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        assert!(
            trainer
                .model()
                .layers
                .iter()
                .flat_map(|x| x.linears.values())
                .all(|x| x.lora.is_none())
        );
    }
}

#[test]
fn training_learns_and_repeats_bit_for_bit() {
    for method in [lora(), lora_and_layers(), Method::Full] {
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
    let trainer =
        || Trainer::new(golden_model("tiny_llama"), settings(lora()), rows("tiny_llama")).unwrap();
    let mut whole = trainer();
    whole.run(None, None, &mut |_| {}).unwrap();

    let mut first = trainer();
    for _ in 0..4 {
        first.step(None, &mut Nobody).unwrap();
    }
    first.save(&saves).unwrap();
    let (until, mut stopped) = (folder.path().join("until"), trainer());
    stopped.run_until(4, Some(&until), &mut |_| {}).unwrap();
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

    assert_eq!(Trainer::saved_compute_type(&saves).unwrap(), Some(ComputeType::F32));
    assert_eq!(Trainer::saved_compute_type(folder.path()).unwrap(), None);
    let shorter = TrainSettings { max_steps: Some(3), ..settings(lora()) };
    let mut shorter =
        Trainer::new(golden_model("tiny_llama"), shorter, rows("tiny_llama")).unwrap();
    // A training that was stopped may be ended sooner than it is.
    assert_eq!(shorter.run(None, Some(&until), &mut |_| {}).unwrap().last_loss, None);
    assert_eq!(shorter.steps_done(), 4);
    let other = TrainSettings { seed: 8, ..settings(lora()) };
    let mut other = Trainer::new(golden_model("tiny_llama"), other, rows("tiny_llama")).unwrap();
    let refused = other.run(None, Some(&saves), &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("saved by another training: seed was 7 and is 8; "), "{refused}");
}

/// A training that pauses takes the same steps, in one process or in two, and each pause leaves its state.
#[test]
fn a_paused_training_goes_on_bit_for_bit() {
    let folder = testkit::temporary_folder();
    let saves = folder.path().join("state");
    let trainer =
        || Trainer::new(golden_model("tiny_llama"), settings(lora()), rows("tiny_llama")).unwrap();
    let mut whole = trainer();
    let all = whole.run(None, None, &mut |_| {}).unwrap();

    let (mut first, mut steps) = (trainer(), Vec::new());
    let mut see = |metrics: &StepMetrics| steps.push(metrics.step);
    let paused = first.run_until(3, Some(&saves), &mut see).unwrap();
    assert_eq!(paused.steps, 3);
    assert!(saves.join("step-000003").exists());
    let again = first.run_until(3, Some(&saves), &mut see).unwrap();
    assert_eq!((again.steps, again.tokens), (3, 0));
    first.run_until(5, Some(&saves), &mut see).unwrap();
    let mut second = trainer();
    // It is behind the state, and then ahead of it.
    second.run_until(4, Some(&saves), &mut see).unwrap();
    assert_eq!(second.step, 5);
    second.run_until(6, None, &mut see).unwrap();
    let end = second.run(None, Some(&saves), &mut see).unwrap();
    assert_eq!((end.steps, second.total_steps()), (all.steps, all.steps));
    assert_eq!(steps, (1..=all.steps).collect::<Vec<_>>());
    assert_eq!(weights_of(second.model()), weights_of(whole.model()));
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

    let collecting =
        crate::CollectSettings { steps: 4, train: settings(lora()), state: Some(state.clone()) };
    let (model, rows) = (golden_model("tiny_llama"), rows("tiny_llama"));
    let listeners = crate::Listeners { sink: &mut Nothing, observe: &mut |_| {} };
    crate::collect(model, &collecting, rows, listeners).unwrap();
    let num_layers = whole.model.layers.len();
    let from = |origin: Vec<usize>| {
        let folder = state.clone();
        Continuation { folder, num_layers, origin, scales: Vec::new() }
    };
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
    let mut trainer = Trainer::new(golden_model("tiny_llama"), broken, rows("tiny_llama")).unwrap();
    let folder = testkit::temporary_folder();
    let saves = folder.path().join("state");
    let found = trainer.run(None, Some(&saves), &mut |_| {});
    let Err(FinetuneError::NotFinite { step, rows, .. }) = found else {
        panic!("it must be refused");
    };
    assert!(step > 1 && rows.len() == 2);
    assert!(saves.join(format!("step-{:06}", step - 1)).exists(), "the last good state");
}

/// Weights kept aside come back as they were; another training's are refused.
#[test]
fn kept_weights_come_back() {
    let folder = testkit::temporary_folder();
    let kept = folder.path().join("best");
    let trainer = |seed| {
        let settings = TrainSettings { seed, ..settings(lora()) };
        Trainer::new(golden_model("tiny_llama"), settings, rows("tiny_llama")).unwrap()
    };
    let mut one = trainer(7);
    assert!(matches!(one.take_weights(&kept), Err(FinetuneError::NoState { .. })));
    one.run_until(2, None, &mut |_| {}).unwrap();
    one.keep_weights(&kept).unwrap();
    let expected = weights_of(one.model());
    one.run_until(4, None, &mut |_| {}).unwrap();
    assert_ne!(weights_of(one.model()), expected);
    assert_eq!(one.take_weights(&kept).unwrap(), 2);
    assert_eq!(weights_of(one.model()), expected);
    let mut other = trainer(8);
    assert!(matches!(other.take_weights(&kept), Err(FinetuneError::OtherRun { .. })));
}
