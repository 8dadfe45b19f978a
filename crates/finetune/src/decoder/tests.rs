//! The decoder against what it must refuse, and its backward pass against automatic gradients.

use std::collections::BTreeSet;

use dataset::Example;

use checkpoint::Module;
use tch::Tensor;

use super::*;
use crate::bridge::values;
use crate::loss::{CrossEntropy, Objective};
use crate::observer::Nobody;
use crate::{LoraSettings, generate};

#[test]
fn tokens_beyond_the_embedding_are_refused_with_both_numbers() {
    let folder = testkit::fixture("tiny_llama/model");
    let model = load(&folder);
    assert!(model.all_logits(&[&[0, 255]]).is_ok());
    let error = model.all_logits(&[&[1, 2], &[256, 0]]).unwrap_err().to_string();
    assert!(error.contains("token 256, and the embedding has 256 tokens"), "{error}");
}

/// What trains has the checkpoint's values again, whatever the type of the products has made of them.
#[test]
fn what_trains_begins_as_it_is_stored() {
    for name in ["tiny_qwen2", "tiny_llama_tied"] {
        let folder = testkit::fixture(&format!("{name}/model"));
        let mut model = load(&folder);
        model.make_trainable(Trainable::HeadAndLast(2)).unwrap();
        let all = |model: &Model| -> Vec<Vec<f32>> {
            model.trained().iter().map(|(_, weight)| values(&weight.value).unwrap()).collect()
        };
        let stored = all(&model);
        let rounded = tch::no_grad(|| {
            for (_, weight) in model.trained() {
                let rounded = weight.value.to_kind(Kind::BFloat16);
                weight.value.shallow_clone().copy_(&rounded);
            }
            all(&model)
        });
        assert_ne!(rounded, stored);
        model.reread_trained().unwrap();
        assert_eq!(all(&model), stored);

        let copy = model.layers[1].with_trained_weights().unwrap();
        let weights = || -> Vec<Vec<f32>> {
            let all = copy.linears.values().filter_map(|linear| linear.weight.parameter());
            all.map(|weight| values(&weight.value).unwrap()).collect()
        };
        let stored = weights();
        for weight in copy.linears.values().filter_map(|linear| linear.weight.parameter()) {
            let _ = weight.value.shallow_clone().zero_();
        }
        assert_ne!(weights(), stored);
        model.reread_layer(1, &copy).unwrap();
        assert_eq!(weights(), stored);
    }
}

fn load(folder: &Path) -> Model {
    let device: DeviceChoice = testkit::device().parse().unwrap();
    Model::load(folder, device, ComputeType::F32).unwrap()
}

/// The families beside Llama's, and longer rotations; `benches/pytorch/families.py` makes them.
const FAMILIES: [&str; 8] =
    ["gemma2", "gemma3", "phi3", "phi4_mini", "olmo2", "smollm3", "granite", "qwen2_yarn"];

/// Logits, the loss, the gradient of every weight and a greedy reply are transformers'.
#[test]
fn families_are_those_of_transformers() {
    for name in FAMILIES {
        let folder = testkit::fixture(&format!("families/{name}"));
        let file = folder.join("logits.safetensors");
        let integers = |name: &str| -> Vec<u32> {
            testkit::tensor_i64(&file, name).1.into_iter().map(|id| id as u32).collect()
        };
        let ids = integers("input_ids");
        let mut model = load(&folder);
        let found = model.all_logits(&[&ids]).unwrap();
        let apart = testkit::relative_deviation(&found, &testkit::tensor_f32(&file, "logits").1);
        assert!(apart < 1e-5, "{name}: logits {apart}");
        let reply = generate(&model, &ids[..6], 8, &mut |_| {}).unwrap().tokens;
        assert_eq!(reply, integers("reply"), "{name}");

        model.make_trainable(Trainable::All).unwrap();
        let mut labelled = vec![true; ids.len()];
        labelled[0] = false;
        let row = Example::whole(ids, labelled);
        let batch = Packed::examples(&[&row], model.device).unwrap();
        let count = batch.num_predicted() as f64;
        let tokens = CrossEntropy { scale: 1.0 / count };
        let minimised = Objective { tokens: &tokens, states: None };
        let found = model
            .loss_and_gradients(&batch, &minimised, Keep::Activations, &mut Nobody)
            .unwrap()
            .tokens
            .negative_log_likelihood;
        let expected = f64::from(testkit::tensor_f32(&file, "loss").1[0]);
        assert!((found / count / expected - 1.0).abs() < 1e-5, "{name}: loss {found}");
        let file = folder.join("gradients.safetensors");
        let weights = model.trained();
        assert_eq!(weights.len(), testkit::tensor_names(&file).len(), "{name}");
        for (weight_name, weight) in weights {
            let found = values(weight.gradient.as_ref().unwrap()).unwrap();
            let (_, expected) = testkit::tensor_f32(&file, &weight_name);
            let apart = testkit::relative_deviation(&found, &expected);
            assert!(apart < 1e-5, "{name} {weight_name}: {apart}");
        }
    }
}

/// Makes something of a model train.
type Way<'a> = &'a dyn Fn(&mut Model) -> Result<()>;

/// The written-out backward pass against libtorch's automatic one through the same forward
/// pass: every trained weight, in every family, with and without computing layers again.
#[test]
fn gradients_are_those_of_the_forward_pass() {
    let rows = [(0..11_u32), (3..7), (5..14)].map(|tokens| {
        let labelled = tokens.clone().map(|token| token % 3 == 1).collect();
        Example::whole(tokens.map(|token| token + 1).collect(), labelled)
    });
    let lora = LoraSettings {
        rank: 3,
        alpha: 5.0,
        targets: BTreeSet::from(Module::ALL),
        layers: Some(BTreeSet::from([1, 2])),
        dora: false,
    };
    let models = ["tiny_llama/model", "tiny_llama_tied/model", "tiny_qwen2/model"];
    let families = ["qwen3", "mistral_window", "llama_linear_rope"].into_iter().chain(FAMILIES);
    let families = families.map(|name| format!("families/{name}"));
    for name in models.map(str::to_owned).into_iter().chain(families) {
        let ways: [(&str, Way<'_>); 5] = [
            ("adapters", &|model| model.add_lora(&lora, 1)),
            ("DoRA", &|model| model.add_lora(&LoraSettings { dora: true, ..lora.clone() }, 1)),
            ("adapters and a layer", &|model| {
                model.add_lora(&lora, 1)?;
                model.make_layers_trainable(&BTreeSet::from([0]))
            }),
            ("all", &|model| model.make_trainable(Trainable::All)),
            ("the last two", &|model| model.make_trainable(Trainable::HeadAndLast(2))),
        ];
        for (trains, make_trainable) in ways {
            let folder = testkit::fixture(&name);
            let mut model = load(&folder);
            let has_windows = model.config.layers.iter().any(|layer| layer.window.is_some());
            if model.device.is_cuda() && has_windows {
                continue; // The automatic gradient of the GPU's attention forgets windows.
            }
            make_trainable(&mut model).unwrap();
            for (name, weight) in model.trained() {
                // `B` starts at zero, which would hide errors in `A`'s gradient.
                if name.contains("lora_") {
                    let noise = weight.value.randn_like() * 0.1;
                    weight.value.shallow_clone().copy_(&(&weight.value + noise));
                }
            }
            let batch = Packed::examples(&rows.each_ref(), model.device).unwrap();
            let leaves: Vec<Tensor> = model
                .trained()
                .iter()
                .map(|(_, weight)| weight.value.set_requires_grad(true))
                .collect();
            let hidden = model.hidden(&batch, &mut Nobody).unwrap();
            let logits = model.head().logits(&hidden.index_select(0, &batch.predict)).unwrap();
            let loss = logits.cross_entropy_for_logits(&batch.targets);
            loss.backward();
            let count = batch.num_predicted() as f64;
            for keep in [Keep::Activations, Keep::LayerInputs] {
                for (_, weight) in model.trained() {
                    let _ = weight.gradient.as_ref().unwrap().shallow_clone().zero_();
                }
                let tokens = CrossEntropy { scale: 1.0 / count };
                let minimised = Objective { tokens: &tokens, states: None };
                let found =
                    model.loss_and_gradients(&batch, &minimised, keep, &mut Nobody).unwrap();
                let expected = loss.double_value(&[]);
                let found = found.tokens.negative_log_likelihood;
                assert!((found / count / expected - 1.0).abs() < 1e-5, "{name}");
                for ((weight_name, weight), leaf) in model.trained().iter().zip(&leaves) {
                    let found = values(weight.gradient.as_ref().unwrap()).unwrap();
                    let expected = values(&leaf.grad()).unwrap();
                    let apart = testkit::relative_deviation(&found, &expected);
                    assert!(apart < 1e-5, "{name} {trains} {keep:?} {weight_name}: {apart}");
                }
            }
        }
    }
}
