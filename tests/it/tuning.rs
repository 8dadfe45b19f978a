//! Fine-tuning that repairs: from a teacher, and beside cuts in full.

use std::path::Path;

use crate::support::{CHEAP, CHEAP_TRAINING, Desk};

/// The lines of a stage in a run's `metrics.jsonl`.
fn steps(run: &Path, stage: &str) -> Vec<serde_json::Value> {
    let lines = fs_err::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["stage"] == stage).collect()
}

/// The dense model is tuned first, alone, and teaches the pruned one, from collected steps that are every training's;
/// once more nothing is left to do.
#[test]
fn a_run_learns_from_its_dense_model() {
    let desk = Desk::new();
    let plain = format!("run --model model --train train.jsonl --prune 2 {CHEAP}");
    desk.run(&format!("{plain} --with-dense --out plain"));
    let taught = format!("{plain} --distil 0.7 --distil-hidden 0.3 --out taught");
    desk.run(&taught);
    let weights =
        |path: &str| fs_err::read(desk.at(path).join("adapter_model.safetensors")).unwrap();
    assert!(weights("taught/dense-adapter") == weights("plain/dense-adapter"));
    assert!(weights("taught/adapter") != weights("plain/adapter"));
    let of_student = steps(&desk.at("taught"), "finetune");
    assert_eq!(of_student.len(), 3);
    for (place, step) in of_student.iter().enumerate() {
        let figure = |name: &str| step["distil"][name].as_f64().unwrap();
        assert!(figure("divergence") > 0.0, "{step}");
        // Three steps, over whose first half it falls.
        let expected = [0.3, 0.1, 0.0][place];
        assert!((figure("hidden_weight") - expected).abs() < 1e-9, "{step}");
        let (loss, kl) = (step["loss"].as_f64().unwrap(), figure("divergence"));
        let sum = 0.3 * loss + 0.7 * 4.0 * kl + figure("hidden_weight") * figure("hidden");
        assert!((figure("objective") / sum - 1.0).abs() < 1e-9, "{step}");
    }
    for stage in ["collect", "dense-finetune"] {
        let untaught = steps(&desk.at("taught"), stage);
        assert!(untaught.len() == 3 && untaught.iter().all(|step| step["distil"].is_null()));
    }
    desk.run(&taught);
    let failure = desk.failure(&taught.replace("--distil 0.7", "--distil 0.6"));
    assert!(failure.contains("settings.training.distil.weight was 0.7 and is 0.6"), "{failure}");
}

/// Behind a scaled cut states are compared with the teacher's at the size they stand for: up to the first cut the student
/// is the same as without the repair, and what it is compared at is not.
#[test]
fn scaled_states_are_compared_at_their_size() {
    let desk = Desk::new();
    let hidden = |repair: &str, out: &str| {
        let flags = format!("--criterion last --repair {repair} --distil 0.7 --distil-hidden 0.3");
        desk.run(&format!(
            "run --model model --train train.jsonl --prune 2 {flags} --out {out} {CHEAP}"
        ));
        let steps = steps(&desk.at(out), "finetune");
        steps[0]["distil"]["hidden"].as_f64().unwrap()
    };
    let (dropped, scaled) = (hidden("drop", "d"), hidden("scale --repair-always", "s"));
    let scales = testkit::json(&desk.at("s/scales/scales.json"));
    assert_eq!(scales["cuts"].as_array().unwrap().len(), 1);
    let factor = scales["cuts"][0]["factor"].as_f64().unwrap();
    assert!((factor - 1.0).abs() > 0.01, "{factor}");
    // A mean of squares of `a·x − y` is a parabola over `a`, whose values at 1 and at the scale differ.
    assert!((scaled / dropped - 1.0).abs() > 1e-3, "{scaled}, {dropped}");
}

/// Adapters that a training goes on from are made smaller behind scaled cuts as the weights under them are. Most of what they
/// are comes from the collected steps, the first half of all, since the rate falls along a cosine.
#[test]
fn adapters_behind_scaled_cuts_are_scaled_too() {
    let desk = Desk::new();
    let cheap = CHEAP.replace("--epochs 1", "--epochs 5").replace("--steps 3", "--steps 15");
    for (repair, out) in [("drop", "d"), ("scale --repair-always", "s")] {
        let flags = format!("--prune 2 --criterion last --repair {repair} --out {out}");
        desk.run(&format!("run --model model --train train.jsonl {flags} {cheap}"));
        assert_eq!(steps(&desk.at(out), "finetune")[0]["step"], 16);
    }
    let scales = testkit::json(&desk.at("s/scales/scales.json"));
    let cut = &scales["cuts"][0];
    let (behind, factor) = (cut["first"].as_u64().unwrap(), cut["factor"].as_f64().unwrap());
    let file = |out: &str| desk.at(out).join("adapter/adapter_model.safetensors");
    let mut seen = 0;
    for name in testkit::tensor_names(&file("d")) {
        let layer = name.split('.').find_map(|part| part.parse::<u64>().ok()).unwrap();
        if !name.contains("lora_B") || layer < behind {
            continue;
        }
        let [dropped, found] = ["d", "s"].map(|out| testkit::tensor_f32(&file(out), &name).1);
        let apart = |divisor: f64| -> f64 {
            let both = dropped.iter().zip(&found);
            let squares = both.map(|(x, y)| (f64::from(*x) / divisor - f64::from(*y)).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let adds = name.contains("o_proj") || name.contains("down_proj");
        let (at_size, unscaled) = (apart(factor), apart(1.0));
        assert_eq!(adds, at_size < 0.5 * unscaled, "{name}: {at_size}, {unscaled}");
        seen += 1;
    }
    assert_eq!(seen, 7);
}

/// `finetune` takes a teacher by its name; one is needed, and hidden states want the model that was cut.
#[test]
fn a_teacher_by_name() {
    let desk = Desk::new();
    desk.run(&format!(
        "run --model model --train train.jsonl --prune 2 --finetune none --out r {CHEAP}"
    ));
    let alone = format!("finetune --model r/pruned --train train.jsonl {CHEAP_TRAINING}");
    desk.run(&format!("{alone} --out plain"));
    desk.run(&format!("{alone} --distil --teacher model --update-share 0.5 --out taught"));
    let weights =
        |path: &str| fs_err::read(desk.at(path).join("adapter_model.safetensors")).unwrap();
    assert!(weights("taught") != weights("plain"));
    let failure = desk.failure(&format!("{alone} --distil --out a"));
    assert!(failure.contains("--distil needs a model to learn from: --teacher MODEL"), "{failure}");
    let failure =
        desk.failure(&format!("{alone} --distil --distil-hidden 1 --teacher model --out a"));
    assert!(failure.contains("hidden states can only be compared"), "{failure}");
    let failure = desk.failure(&format!("{alone} --teacher model --out a"));
    assert!(failure.contains("--distil"), "{failure}");
}

/// Layers beside cuts in full and adapters on the others leave one checkpoint, of the dense model too.
#[test]
fn layers_beside_cuts_train_in_full() {
    let desk = Desk::new();
    let run = |finetune: &str, out: &str| {
        let flags = format!("--keep first:2,last:2 --finetune {finetune} --with-dense --out {out}");
        desk.run(&format!("run --model model --train train.jsonl --prune 1 {flags} {CHEAP}"));
    };
    run("lora+cuts", "r");
    assert!(desk.at("r/tuned/model.safetensors").exists());
    assert!(desk.at("r/dense-tuned/model.safetensors").exists() && !desk.at("r/adapter").exists());
    let plan = testkit::json(&desk.at("r/plan.json"));
    let pruned = plan["pruned"][0].as_u64().unwrap() as usize;
    let norm = |folder: &str, layer: usize| {
        let name = format!("model.layers.{layer}.input_layernorm.weight");
        testkit::tensor_bytes(&desk.at(folder).join("model.safetensors"), &name)
    };
    // A norm has no adapter: it moves where a layer trains in full alone.
    for layer in 0..5 {
        let beside = layer + 1 == pruned || layer == pruned;
        assert_eq!(norm("r/tuned", layer) != norm("r/pruned", layer), beside, "layer {layer}");
    }
    let failure =
        desk.failure("finetune --model model --train train.jsonl --method lora+cuts --out a");
    assert!(failure.contains("only a run knows what was cut"), "{failure}");
}

/// Where every layer that stays is beside a cut all of them train in full, and nothing has an adapter: one layer left, two,
/// and four with a cut between each two.
#[test]
fn all_layers_may_be_beside_cuts() {
    let desk = Desk::new();
    let run = |prune: &str, out: &str| {
        let flags = format!("--prune {prune} --repair drop --finetune lora+cuts");
        desk.run(&format!("run --model model --train train.jsonl {flags} --out {out} {CHEAP}"));
    };
    run("5 --keep none", "one");
    run("4 --keep first:1,last:1", "two");
    let text = fs_err::read_to_string(desk.at("two/plan.json")).unwrap();
    let mut plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    plan["pruned"] = serde_json::json!([1, 4]);
    fs_err::create_dir(desk.at("four")).unwrap();
    desk.write("four/plan.json", &plan.to_string());
    run("4 --keep none", "four");
    for (out, left) in [("one", 1), ("two", 2), ("four", 4)] {
        let plan = testkit::json(&desk.at(&format!("{out}/plan.json")));
        let pruned = plan["pruned"].as_array().unwrap();
        let gone = |layer: u64| layer < 6 && pruned.contains(&layer.into());
        let stays = (0..6).filter(|layer| !gone(*layer));
        let beside = stays.filter(|&layer| gone(layer.wrapping_sub(1)) || gone(layer + 1));
        let weights = |folder: &str, name: &str| {
            testkit::tensor_bytes(&desk.at(&format!("{out}/{folder}/model.safetensors")), name).1
        };
        let moved = |name: &str| weights("pruned", name) != weights("tuned", name);
        let norm = |layer: usize| format!("model.layers.{layer}.input_layernorm.weight");
        assert!((0..left).all(|layer| moved(&norm(layer))), "{out}");
        // A pair at either end that nothing was cut from is not beside a cut.
        assert_eq!(beside.count(), left, "{out}: {plan}");
        assert!(!moved("model.embed_tokens.weight") && !moved("model.norm.weight"), "{out}");
    }
}
