//! Distillation as a whole: gradients against automatic ones, and what must be refused.

use std::collections::BTreeSet;
use std::path::Path;

use checkpoint::Module;
use dataset::Example;
use tch::{Kind, Tensor};

use super::*;
use crate::bridge::{number, values};
use crate::decoder::{Keep, Trainable};
use crate::observer::{LayerPass, Nobody, Observer};
use crate::train::tests::{golden_model, lora, rows, settings, weights_of};
use crate::weight::{Rounding, Weight};
use crate::{ComputeType, Continuation, DeviceChoice, LoraSettings, Origin, RunScale, Trainer};

const DISTIL: DistilSettings =
    DistilSettings { weight: 0.4, temperature: 2.0, top_k: 8, hidden: 0.7 };

/// A model without some layers, and which it keeps.
fn cut(name: &str, without: &[usize]) -> (Model, Vec<usize>) {
    let mut model = golden_model(name);
    for &layer in without.iter().rev() {
        model.layers.remove(layer);
        model.config.layers.remove(layer);
    }
    let origin = (0..model.config.num_layers).filter(|layer| !without.contains(layer)).collect();
    model.config.num_layers -= without.len();
    (model, origin)
}

/// The dense model with adapters that do something.
fn dense(name: &str) -> Model {
    let mut model = golden_model(name);
    let targets = BTreeSet::from(Module::SPLIT);
    model
        .add_lora(&LoraSettings { rank: 2, alpha: 4.0, targets, layers: None, dora: false }, 3)
        .unwrap();
    disturb(&model);
    model
}

/// Scales of runs of layers.
fn scales(of: &[(std::ops::RangeInclusive<usize>, f64)]) -> Vec<RunScale> {
    of.iter().map(|(run, factor)| RunScale { run: run.clone(), factor: *factor }).collect()
}

/// Makes what layers add to the stream smaller behind cuts.
fn shrink(student: &mut Model, origin: &[usize], scales: &[RunScale]) {
    for (layer, number) in student.layers.iter_mut().zip(origin) {
        let before = scales.iter().filter(|scale| scale.run.end() < number);
        let smaller: f64 = before.map(|scale| scale.factor).product();
        for module in [Module::OProj, Module::DownProj] {
            let linear = layer.linears.get_mut(&module).unwrap();
            *linear.weight.value_mut() = linear.weight.value() / smaller;
        }
    }
}

/// Moves every trained weight: `B` starts at zero, which would hide errors in `A`'s gradient. The same each time,
/// which libtorch's generator is not while other tests draw from it.
fn disturb(model: &Model) {
    for (number, (_, weight)) in model.trained().into_iter().enumerate() {
        let at = (Kind::Float, model.device);
        let phases = Tensor::arange(weight.value.numel() as i64, at) * 1.7 + number as f64;
        let noise = phases.sin() * 0.1;
        let moved = &weight.value + noise.view_as(&weight.value);
        weight.value.shallow_clone().copy_(&moved);
    }
}

/// Every layer's output.
struct Outputs(Vec<Tensor>);

impl Observer for Outputs {
    fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
        self.0.push(seen.output.shallow_clone());
        Ok(())
    }
}

/// What all is made of, written down once more from whole models and whole probabilities, with a graph.
fn objective(student: &Model, teacher: &Model, origin: &Origin<'_>, batch: &Packed) -> Tensor {
    let Origin { layers: origin, scales } = *origin;
    let states = |model: &Model| {
        let mut outputs = Outputs(Vec::new());
        let last = model.hidden(batch, &mut outputs).unwrap();
        (outputs.0, model.head().logits(&last.index_select(0, &batch.predict)).unwrap())
    };
    let (own, z) = states(student);
    let (theirs, z_teacher) = tch::no_grad(|| states(teacher));
    let DistilSettings { weight, temperature, top_k, hidden } = DISTIL;
    let p = (z_teacher / temperature).softmax(-1, Kind::Float);
    let q = (&z / temperature).softmax(-1, Kind::Float);
    let (_, likeliest) = p.topk(top_k as i64, -1, true, true);
    let (p_k, q_k) = (p.gather(-1, &likeliest, false), q.gather(-1, &likeliest, false));
    let rest = |x: &Tensor| -(x.sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float) - 1.0);
    let kl = (&p_k * (&p_k / &q_k).log()).sum(Kind::Float)
        + (rest(&p_k) * (rest(&p_k) / rest(&q_k)).log()).sum(Kind::Float);
    let kl = kl / batch.num_predicted() as f64;
    let later: Vec<i64> = (0..batch.positions.len())
        .filter(|&at| batch.positions[at] > 0)
        .map(|at| at as i64)
        .collect();
    let later = Tensor::from_slice(&later);
    let squares = |x: &Tensor| x.square().sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float);
    let (mut apart, mut cuts) = (Tensor::from(0.0_f32), 0);
    for (layer, number) in origin.iter().enumerate() {
        let next = origin.get(layer + 1).copied().unwrap_or(theirs.len());
        if next > number + 1 {
            let larger = scales.iter().filter(|scale| *scale.run.end() < next);
            let larger: f64 = larger.map(|scale| scale.factor).product();
            let own = own[layer].index_select(0, &later) * larger;
            let theirs = theirs[next - 1].index_select(0, &later);
            apart += (squares(&(own - &theirs)) / squares(&theirs)).mean(Kind::Float);
            cuts += 1;
        }
    }
    let ce = z.cross_entropy_for_logits(&batch.targets) * (1.0 - weight);
    ce + kl * (weight * temperature.powi(2)) + apart * (hidden / f64::from(cuts.max(1)))
}

/// The written-out gradients, with `H` entering between layers, against libtorch's automatic ones; a cut after some
/// layer, two cuts, and one before the final norm; a stream that scales made smaller; weights and adapters, with layers computed again and not; in one
/// batch and in two.
#[test]
fn gradients_are_those_of_the_objective() {
    for (name, without, scales) in [
        ("tiny_llama", vec![2, 3], vec![]),
        ("tiny_qwen2", vec![1, 3, 4], vec![]),
        ("tiny_llama_tied", vec![4, 5], vec![]),
        ("tiny_llama", vec![0, 2, 4, 5], scales(&[(0..=0, 0.8), (2..=2, 1.75), (4..=5, 2.5)])),
    ] {
        for trains in [None, Some(Trainable::All), Some(Trainable::HeadAndLast(1))] {
            let ((mut student, origin), teacher) = (cut(name, &without), dense(name));
            shrink(&mut student, &origin, &scales);
            if let Some(trains) = trains {
                student.make_trainable(trains).unwrap();
            } else {
                let crate::Method::Lora(settings) = lora() else { panic!("it is LoRA") };
                student.add_lora(&settings, 1).unwrap();
                disturb(&student);
            }
            let examples: Vec<Example> = rows(name).examples.into_iter().take(4).collect();
            let mut examples: Vec<&Example> = examples.iter().collect();
            examples.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
            let batch = Packed::examples(&examples, student.device).unwrap();
            let leaves: Vec<Tensor> =
                student.trained().iter().map(|(_, x)| x.value.set_requires_grad(true)).collect();
            let of = Origin { layers: &origin, scales: &scales };
            let expected = objective(&student, &teacher, &of, &batch);
            expected.backward();
            let teacher = Teacher::dense(teacher, origin).with_scales(scales.clone());
            let distillation = Distillation::new(teacher, DISTIL, &mut student).unwrap();
            for (keep, batch_rows) in [(Keep::Activations, 4), (Keep::LayerInputs, 2)] {
                for (_, weight) in student.trained() {
                    let _ = weight.gradient.as_ref().unwrap().shallow_clone().zero_();
                }
                let lesson = Some(distillation.at(0, 0, 10));
                let passes = crate::train::Passes { batch_rows, keep, lesson };
                let found =
                    crate::train::backward(&student, &examples, passes, &mut Nobody).unwrap();
                let (found, value) = (found.distil.unwrap().objective, number(&expected).unwrap());
                assert!((found / value - 1.0).abs() < 1e-5, "{name}: {found}, {value}");
                for ((weight_name, weight), leaf) in student.trained().iter().zip(&leaves) {
                    let found = values(weight.gradient.as_ref().unwrap()).unwrap();
                    let expected = values(&leaf.grad()).unwrap();
                    let apart = testkit::relative_deviation(&found, &expected);
                    // The reference takes its tail as 1 less the rest, in f32.
                    assert!(apart < 3e-5, "{name} {trains:?} {keep:?} {weight_name}: {apart}");
                }
            }
        }
    }
}

/// `β` falls to 0 over the first half of the steps that the teacher is there for.
#[test]
fn the_weight_of_states_falls() {
    let at = |step, from| DISTIL.hidden_at(step, from, 20);
    let found = [at(0, 0), at(5, 0), at(10, 0), at(19, 0), at(4, 4), at(8, 4), at(12, 4)];
    let expected = [0.7, 0.35, 0.0, 0.0, 0.7, 0.35, 0.0];
    assert!(found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-12), "{found:?}");
    assert_eq!(DISTIL.hidden_at(0, 0, 0), 0.7);
}

fn trainer(distil: DistilSettings) -> Trainer {
    cut_short(distil, None)
}

/// A training that takes so many steps at most.
fn cut_short(distil: DistilSettings, max_steps: Option<usize>) -> Trainer {
    let ((student, origin), teacher) = (cut("tiny_llama", &[2, 3]), dense("tiny_llama"));
    let settings = crate::TrainSettings { max_steps, ..settings(lora()) };
    let trainer = Trainer::new(student, settings, rows("tiny_llama")).unwrap();
    trainer.with_teacher(Teacher::dense(teacher, origin), distil).unwrap()
}

/// `β` falls over the steps that are taken, not those of the schedule, and a state that was saved under another number of
/// them is another training's; unless `β` is 0 throughout.
#[test]
fn the_weight_of_states_falls_in_a_training_cut_short() {
    let mut short = cut_short(DISTIL, Some(4));
    assert!(short.scheduled_steps() > 2 * short.total_steps());
    let mut weights = Vec::new();
    let mut see = |metrics: &crate::StepMetrics| {
        weights.push(metrics.distil.unwrap().hidden_weight);
    };
    let folder = testkit::temporary_folder();
    let (saves, silent) = (folder.path().join("state"), folder.path().join("silent"));
    short.run_until(3, Some(&saves), &mut see).unwrap();
    short.run(None, None, &mut see).unwrap();
    assert_eq!(weights, [0.7, 0.35, 0.0, 0.0]);
    let refused = cut_short(DISTIL, Some(6)).run(None, Some(&saves), &mut |_| {}).unwrap_err();
    assert!(refused.to_string().contains("distil_steps was 4 and is 6;"), "{refused}");
    let unseen = DistilSettings { hidden: 0.0, ..DISTIL };
    cut_short(unseen, Some(2)).run_until(1, Some(&silent), &mut |_| {}).unwrap();
    let mut longer = cut_short(unseen, Some(3));
    longer.run(None, Some(&silent), &mut |_| {}).unwrap();
    assert_eq!(longer.steps_done(), 3);
}

/// The student comes closer to the teacher, a step's figures add up, an interrupted training goes on bit for bit, and
/// another teacher or weight is another training.
#[test]
fn a_student_learns_from_its_teacher() {
    let only = DistilSettings { weight: 1.0, ..DISTIL };
    let mut steps = Vec::new();
    let mut whole = trainer(only);
    whole.run(None, None, &mut |metrics| steps.push(*metrics)).unwrap();
    let terms: Vec<DistilTerms> = steps.iter().map(|metrics| metrics.distil.unwrap()).collect();
    let third = terms.len() / 3;
    let mean = |of: &[DistilTerms]| of.iter().map(|x| x.divergence).sum::<f64>() / of.len() as f64;
    assert!(mean(&terms[2 * third..]) < mean(&terms[..third]), "{terms:?}");
    for DistilTerms { divergence, hidden, hidden_weight, objective } in &terms {
        let sum = 4.0 * divergence + hidden_weight * hidden;
        assert!((objective / sum - 1.0).abs() < 1e-12);
        assert_eq!(*hidden_weight > 0.0, *hidden > 0.0);
    }

    let folder = testkit::temporary_folder();
    let saves = folder.path().join("state");
    let mut first = trainer(only);
    for _ in 0..4 {
        first.step(None, &mut Nobody).unwrap();
    }
    first.save(&saves).unwrap();
    let mut second = trainer(only);
    second.run(None, Some(&saves), &mut |_| {}).unwrap();
    assert_eq!(weights_of(second.model()), weights_of(whole.model()));

    first.save(&saves).unwrap();
    let refused = trainer(DISTIL).run(None, Some(&saves), &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("distil_weight was 1.0 and is 0.4;"), "{refused}");
    let (student, origin) = cut("tiny_llama", &[2, 3]);
    let other = Trainer::new(student, settings(lora()), rows("tiny_llama")).unwrap();
    let teacher = Teacher::dense(golden_model("tiny_llama"), origin);
    let mut other = other.with_teacher(teacher, only).unwrap();
    let refused = other.run(None, Some(&saves), &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("teacher_sha256 was "), "{refused}");
    let (student, origin) = cut("tiny_llama", &[2, 3]);
    let other = Trainer::new(student, settings(lora()), rows("tiny_llama")).unwrap();
    let teacher = Teacher::dense(dense("tiny_llama"), origin).with_scales(scales(&[(2..=3, 1.5)]));
    let mut other = other.with_teacher(teacher, only).unwrap();
    let refused = other.run(None, Some(&saves), &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("teacher_sha256 was "), "{refused}");
}

/// Rounded weights tell one teacher from another, too, and are held once where they are the student's.
#[test]
fn a_teacher_in_few_bits() {
    let rounding = Rounding { layers_in_4bit: true, embedding_in_8bit: true };
    let load = |folder: &Path| {
        Model::load_rounded(folder, DeviceChoice::Cpu, ComputeType::F32, rounding).unwrap()
    };
    let folder = testkit::temporary_folder();
    let base = golden_model("tiny_llama").folder().to_owned();
    let target = folder.path().join("merged");
    crate::save_checkpoint(&dense("tiny_llama"), &target, 1 << 30).unwrap();
    let identity = |model: Model| Teacher::other(model).identity().unwrap();
    assert_eq!(identity(load(&base)), identity(load(&base)));
    assert_ne!(identity(load(&base)), identity(load(&target)));

    let only = DistilSettings { weight: 1.0, hidden: 0.0, ..DISTIL };
    let teacher = Teacher::dense(load(&base), (0..6).collect());
    let student = Trainer::new(load(&base), settings(lora()), rows("tiny_llama")).unwrap();
    let student = student.with_teacher(teacher, only).unwrap();
    for (number, layer) in student.model().layers.iter().enumerate() {
        for linear in layer.linears.values() {
            let Weight::Nf4(packed) = &linear.weight else { panic!("it is in four bits") };
            assert_eq!(packed.handles(), 2, "layer {number}");
        }
    }
}

/// A teacher joins where a training goes on from another's steps, whichever is said first.
#[test]
fn a_teacher_joins_a_training_under_way() {
    let folder = testkit::temporary_folder();
    let state = folder.path().join("state");
    let mut collected =
        Trainer::new(golden_model("tiny_llama"), settings(lora()), rows("tiny_llama")).unwrap();
    for _ in 0..3 {
        collected.step(None, &mut Nobody).unwrap();
    }
    collected.save(&state).unwrap();
    let from = |origin: Vec<usize>| {
        let folder = state.clone();
        Continuation { folder, num_layers: 6, origin, scales: Vec::new() }
    };
    let mut early = trainer(DISTIL);
    early.go_on(&from(vec![0, 1, 4, 5])).unwrap();
    let (student, origin) = cut("tiny_llama", &[2, 3]);
    let mut late = Trainer::new(student, settings(lora()), rows("tiny_llama")).unwrap();
    late.go_on(&from(origin.clone())).unwrap();
    let teacher = Teacher::dense(dense("tiny_llama"), origin);
    let mut late = late.with_teacher(teacher, DISTIL).unwrap();
    let found = [&mut early, &mut late].map(|trainer| {
        let step = trainer.step(None, &mut Nobody).unwrap();
        assert_eq!((step.step, step.distil.unwrap().hidden_weight), (4, DISTIL.hidden));
        (step.report, step.distil)
    });
    assert_eq!(found[0], found[1]);
    // Of the same recipe, too: one takes up what the other saved.
    let saves = folder.path().join("saves");
    early.save(&saves).unwrap();
    late.run(None, Some(&saves), &mut |_| {}).unwrap();
}

/// What is equal is held once: a handle on the teacher's memory, and not where a layer differs.
#[test]
fn equal_weights_are_held_once() {
    let ((mut student, origin), teacher) = (cut("tiny_llama", &[2, 3]), dense("tiny_llama"));
    let weight = |model: &Model, layer: usize| {
        model.layers[layer].linears[&Module::DownProj].weight.value().shallow_clone()
    };
    if let Some(linear) = student.layers[1].linears.get_mut(&Module::DownProj) {
        *linear.weight.value_mut() = linear.weight.value().copy() * 2.0;
    }
    let pointers = [weight(&teacher, 0), weight(&teacher, 1), weight(&teacher, 5)];
    let pointers = pointers.map(|weight| weight.data_ptr());
    let before = weight(&student, 0).data_ptr();
    let _distillation =
        Distillation::new(Teacher::dense(teacher, origin), DISTIL, &mut student).unwrap();
    assert_ne!(before, pointers[0]);
    assert_eq!(weight(&student, 0).data_ptr(), pointers[0]);
    assert_ne!(weight(&student, 1).data_ptr(), pointers[1]);
    assert_eq!(weight(&student, 3).data_ptr(), pointers[2]);
}

#[test]
fn teachers_that_do_not_fit_are_refused() {
    let refused = |teacher: Teacher, settings: DistilSettings| {
        let (mut student, _) = cut("tiny_llama", &[2, 3]);
        Distillation::new(teacher, settings, &mut student).unwrap_err().to_string()
    };
    let check = |found: &str, expected: &str| assert!(found.contains(expected), "{found}");
    let dense = |origin: &[usize]| Teacher::dense(golden_model("tiny_llama"), origin.to_vec());
    check(&refused(dense(&[0, 1, 4]), DISTIL), "cannot be the student's 4 layers [0, 1, 4]");
    check(&refused(dense(&[0, 1, 4, 6]), DISTIL), "cannot be the student's 4 layers");
    check(&refused(dense(&[0, 4, 1, 5]), DISTIL), "cannot be the student's 4 layers");
    for (run, factor) in [(2..=4, 1.5), (2..=3, 0.0), (2..=6, 1.5)] {
        let scaled = dense(&[0, 1, 4, 5]).with_scales(scales(&[(run, factor)]));
        check(&refused(scaled, DISTIL), "is not one of a run that the student lacks");
    }
    let other = || Teacher::other(golden_model("tiny_llama"));
    check(&refused(other(), DISTIL), "hidden states can only be compared");
    let mut more = golden_model("tiny_llama");
    more.config.vocab_size += 8;
    let more = refused(Teacher::other(more), DistilSettings { hidden: 0.0, ..DISTIL });
    check(&more, "its vocabulary has 264 tokens, and that of");
    for (settings, expected) in [
        (DistilSettings { weight: 1.1, ..DISTIL }, "from 0 to 1"),
        (DistilSettings { weight: f64::NAN, ..DISTIL }, "from 0 to 1"),
        (DistilSettings { temperature: 0.0, ..DISTIL }, "above 0"),
        (DistilSettings { hidden: -1.0, ..DISTIL }, "0 or above"),
        (DistilSettings { top_k: 0, ..DISTIL }, "at least one"),
        (DistilSettings { weight: 0.0, hidden: 0.0, ..DISTIL }, "teaches nothing"),
    ] {
        check(&refused(other(), settings), expected);
    }
}

/// Tokenizers are compared by what they number, not by how they are spelt.
#[test]
fn another_tokenizer_is_refused_by_name() {
    let folder = testkit::temporary_folder();
    let load = |at: &Path, tokenizer: &serde_json::Value| {
        testkit::copy_folder(&testkit::fixture("tiny_llama/model"), at);
        fs_err::write(at.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Model::load(at, DeviceChoice::Cpu, ComputeType::F32).unwrap()
    };
    let tokenizer = |b: u32, padding: bool| {
        serde_json::json!({
            "padding": padding,
            "added_tokens": [{"id": 0, "content": "<s>"}],
            "model": {"vocab": {"a": 1, "b": b}},
        })
    };
    let settings = DistilSettings { hidden: 0.0, ..DISTIL };
    let mut student = load(&folder.path().join("student"), &tokenizer(2, true));
    let same = load(&folder.path().join("same"), &tokenizer(2, false));
    assert!(Distillation::new(Teacher::other(same), settings, &mut student).is_ok());
    let other = load(&folder.path().join("stranger"), &tokenizer(3, true));
    let refused = Distillation::new(Teacher::other(other), settings, &mut student);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("stranger: this model cannot be the teacher"), "{refused}");
    assert!(refused.contains("its tokenizer is not that of"), "{refused}");
}
