//! The decoder against independently computed logits, and against itself where two ways must agree.

#![expect(clippy::unwrap_used, reason = "a test stops at what should not be")]

use std::collections::BTreeSet;
use std::path::Path;

use checkpoint::{
    Adapter, Checkpoint, CheckpointWriter, Dtype, Module, TensorSpec, TensorView, narrow,
};
use dataset::{Encoded, Example, Place, RowCounts};
use gradpruner_finetune::{
    AdamWSettings, ComputeType, Decay, DeviceChoice, LoraSettings, Method, Model, Schedule,
    TrainSettings, Trainer, generate, generate_all, save_adapter, save_checkpoint,
};

fn load(folder: &Path) -> Model {
    let device: DeviceChoice = testkit::device().parse().unwrap();
    Model::load(folder, device, ComputeType::F32).unwrap()
}

/// Batch 1 of a golden model: each row's tokens without padding, and where they stand.
fn rows(name: &str) -> (Vec<Vec<u32>>, Vec<usize>, usize) {
    let file = testkit::fixture(&format!("{name}/batches.safetensors"));
    let (shape, ids) = testkit::tensor_i64(&file, "step1.input_ids");
    let (_, mask) = testkit::tensor_i64(&file, "step1.attention_mask");
    let width = shape[1];
    let places: Vec<usize> = (0..ids.len()).filter(|&at| mask[at] == 1).collect();
    let mut rows = vec![Vec::new(); shape[0]];
    for &at in &places {
        rows[at / width].push(ids[at] as u32);
    }
    (rows, places, width)
}

#[test]
fn golden_logits() {
    for name in testkit::GOLDEN {
        let (rows, places, _) = rows(name);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let file = testkit::fixture(&format!("{name}/logits.safetensors"));
        for (model, tensor) in [("model", "logits"), ("pruned", "pruned_logits")] {
            let found =
                load(&testkit::fixture(&format!("{name}/{model}"))).all_logits(&rows).unwrap();
            let (shape, all) = testkit::tensor_f32(&file, tensor);
            let vocabulary = shape[2];
            let expected: Vec<f32> = places
                .iter()
                .flat_map(|at| all[at * vocabulary..][..vocabulary].iter().copied())
                .collect();
            let apart = testkit::relative_deviation(&found, &expected);
            assert!(apart < 1e-5, "{name} {model}: {apart}");
        }
    }
}

/// What the golden models leave out: Qwen3's head norms, sliding windows by either rule, biases
/// everywhere, linearly scaled rotations.
#[test]
fn other_families() {
    for name in ["qwen3", "mistral_window", "qwen2_window", "llama_linear_rope"] {
        let folder = testkit::fixture(&format!("families/{name}"));
        let (_, ids) = testkit::tensor_i64(&folder.join("logits.safetensors"), "input_ids");
        let (_, expected) = testkit::tensor_f32(&folder.join("logits.safetensors"), "logits");
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let found = load(&folder).all_logits(&[&ids]).unwrap();
        let apart = testkit::relative_deviation(&found, &expected);
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

#[test]
fn f16_weights_are_read() {
    let folder = testkit::temporary_folder();
    let source = Checkpoint::open(&testkit::fixture("tiny_qwen2/model")).unwrap();
    let config = fs_err::read(source.folder().join("config.json")).unwrap();
    fs_err::write(folder.path().join("config.json"), config).unwrap();
    let views: Vec<_> = source.weights().iter().collect();
    let spec = |view: &TensorView<'_>| TensorSpec::new(view.name(), Dtype::F16, view.shape());
    let specs = views.iter().map(spec).collect();
    let writer = CheckpointWriter::create(folder.path(), specs, u64::MAX).unwrap();
    for view in &views {
        writer.write(view.name(), &narrow(&view.to_f32().unwrap(), Dtype::F16)).unwrap();
    }
    writer.finish().unwrap();
    let text: Vec<u32> = (1..30).collect();
    let exact = load(source.folder()).all_logits(&[&text]).unwrap();
    let apart =
        testkit::relative_deviation(&load(folder.path()).all_logits(&[&text]).unwrap(), &exact);
    // f16 has eleven bits.
    assert!(apart > 0.0 && apart < 0.01, "{apart}");
}

#[test]
fn rows_do_not_see_each_other() {
    let model = load(&testkit::fixture("tiny_llama/model"));
    let (one, two): (Vec<u32>, Vec<u32>) = ((3..20).collect(), (40..51).collect());
    let packed = model.all_logits(&[&one, &two]).unwrap();
    let apart: Vec<f32> = [&one, &two]
        .into_iter()
        .flat_map(|row| model.all_logits(&[row.as_slice()]).unwrap())
        .collect();
    assert!(testkit::relative_deviation(&packed, &apart) < 1e-6);
}

/// Generation with the cache says what a full pass over the text so far says, with and without a
/// sliding window shorter than the text.
#[test]
fn the_cache_changes_nothing() {
    let folder = testkit::temporary_folder();
    for window in [None, Some(4)] {
        let copy = folder.path().join(format!("{window:?}"));
        testkit::copy_folder(&testkit::fixture("tiny_mistral/model"), &copy);
        let mut config = testkit::json(&copy.join("config.json"));
        config["sliding_window"] = serde_json::json!(window);
        config["eos_token_id"] = serde_json::Value::Null;
        fs_err::write(copy.join("config.json"), config.to_string()).unwrap();
        let model = load(&copy);
        let prompt: Vec<u32> = (5..14).collect();
        let found = generate(&model, &prompt, 8, &mut |_| {}).unwrap().tokens;
        let mut text = prompt;
        for _ in 0..8 {
            let logits = model.all_logits(&[&text]).unwrap();
            let last = &logits[logits.len() - 128..];
            let best = (0..128).max_by(|&x, &y| last[x].total_cmp(&last[y])).unwrap();
            text.push(best as u32);
        }
        assert_eq!(found, text[9..], "{window:?}");
    }
}

/// By LongRoPE a text that outgrows the original context, 16 tokens here, is rotated otherwise from its first token on.
#[test]
fn the_cache_changes_nothing_where_rotations_change() {
    let folder = testkit::temporary_folder();
    testkit::copy_folder(&testkit::fixture("families/phi4_mini"), folder.path());
    let mut config = testkit::json(&folder.path().join("config.json"));
    config["eos_token_id"] = serde_json::Value::Null;
    fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = load(folder.path());
    let mut text: Vec<u32> = (5..18).collect();
    let found = generate(&model, &text, 20, &mut |_| {}).unwrap().tokens;
    for _ in 0..20 {
        let logits = model.all_logits(&[&text]).unwrap();
        let last = &logits[logits.len() - 80..];
        let best = (0..80).max_by(|&x, &y| last[x].total_cmp(&last[y])).unwrap();
        text.push(best as u32);
    }
    assert_eq!(found, text[13..]);
}

/// Several rows side by side are continued as each alone: of other lengths, that end sooner or later, with windows, caps and
/// rotations that change.
#[test]
fn rows_side_by_side_do_not_matter() {
    for name in ["tiny_qwen2/model", "tiny_mistral/model", "families/gemma2", "families/phi4_mini"]
    {
        let model = load(&testkit::fixture(name));
        let prompts: Vec<Vec<u32>> = (0..19)
            .map(|row| (0..3 + row % 7).map(|at| 3 + (row * 11 + at * 5) % 70).collect())
            .collect();
        let alone = |prompt: &Vec<u32>| generate(&model, prompt, 15, &mut |_| {}).unwrap().tokens;
        let expected: Vec<Vec<u32>> = prompts.iter().map(alone).collect();
        assert_eq!(generate_all(&model, &prompts, 15).unwrap(), expected, "{name}");
        assert!(generate_all(&model, &prompts, 0).unwrap().iter().all(Vec::is_empty));
        assert!(generate_all(&model, &[vec![3], vec![]], 5).is_err());
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let folder = testkit::temporary_folder();
    testkit::copy_folder(&testkit::fixture("tiny_mistral/model"), folder.path());
    let mut config = testkit::json(&folder.path().join("config.json"));
    config["sliding_window"] = serde_json::json!(1);
    fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
    // Who sees only itself says the same whatever came before; positions are relative.
    let model = load(folder.path());
    let logits = model.all_logits(&[&[9, 23, 9]]).unwrap();
    assert!(testkit::relative_deviation(&logits[..128], &logits[256..]) < 1e-5);
    let plain = load(&testkit::fixture("tiny_mistral/model")).all_logits(&[&[9, 23, 9]]).unwrap();
    assert!(testkit::relative_deviation(&plain[..128], &plain[256..]) > 1e-2);
}

fn trained(method: Method, source: &Path) -> Model {
    let settings = TrainSettings {
        method,
        epochs: 2.0,
        max_steps: None,
        batch_rows: 2,
        accumulate: 2,
        adamw: AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 },
        schedule: Schedule { peak: 1e-2, warmup: 0.0, decay: Decay::Cosine },
        max_grad_norm: 1.0,
        update_share: None,
        seed: 1,
        remat: false,
        save_every: None,
    };
    let examples: Vec<_> = (0..6)
        .map(|row| Example::whole((row..row + 9).collect(), (0..9).map(|at| at > 4).collect()))
        .collect();
    let place = |number| Place { file: Path::new("rows").into(), number, is_line: true };
    let places = (1..=6).map(place).collect();
    let data = Encoded { examples, places, counts: RowCounts::default() };
    let mut trainer = Trainer::new(load(source), settings, data).unwrap();
    trainer.run(None, None, &mut |_| {}).unwrap();
    trainer.into_model()
}

fn lora() -> Method {
    Method::Lora(LoraSettings {
        rank: 2,
        alpha: 4.0,
        targets: BTreeSet::from([Module::QProj, Module::DownProj]),
        layers: Some(BTreeSet::from([1, 2])),
        dora: false,
    })
}

#[test]
fn what_was_saved_computes_what_was_trained() {
    let folder = testkit::temporary_folder();
    let source = testkit::fixture("tiny_llama/model");
    let text: Vec<u32> = (1..12).collect();
    let model = trained(lora(), &source);
    let expected = model.all_logits(&[&text]).unwrap();
    let untrained = load(&source).all_logits(&[&text]).unwrap();
    assert!(testkit::relative_deviation(&untrained, &expected) > 1e-3);

    let path = folder.path().join("adapter");
    save_adapter(&model, "base", &path).unwrap();
    let mut reloaded = load(&source);
    reloaded.add_adapter(&Adapter::read(&path).unwrap(), &path).unwrap();
    assert_eq!(reloaded.all_logits(&[&text]).unwrap(), expected);

    let path = folder.path().join("merged");
    save_checkpoint(&model, &path, u64::MAX).unwrap();
    let merged = load(&path).all_logits(&[&text]).unwrap();
    assert!(testkit::relative_deviation(&merged, &expected) < 1e-5);

    let model = trained(Method::Full, &source);
    let path = folder.path().join("tuned");
    save_checkpoint(&model, &path, u64::MAX).unwrap();
    let expected = model.all_logits(&[&text]).unwrap();
    let found = load(&path).all_logits(&[&text]).unwrap();
    match found == expected {
        true => {}
        // A GPU normalises by other kernels while the weights of norms train.
        false if model.device().is_cuda() => {
            assert!(testkit::relative_deviation(&found, &expected) < 1e-5);
        }
        false => panic!("{found:?} is not {expected:?}"),
    }
}

#[test]
fn bf16_stays_near_f32() {
    for name in testkit::GOLDEN {
        let folder = testkit::fixture(&format!("{name}/model"));
        let text: Vec<u32> = (1..30).collect();
        let exact = load(&folder).all_logits(&[&text]).unwrap();
        let rough = Model::load(&folder, DeviceChoice::Cpu, ComputeType::BF16).unwrap();
        let apart = testkit::relative_deviation(&rough.all_logits(&[&text]).unwrap(), &exact);
        // bf16 has eight bits; six layers of rounding lose two to three of them.
        assert!(apart < 0.05, "{name}: {apart}");
    }
}
