//! Fine-tuning that repairs: from a teacher, and beside cuts in full.

use std::collections::BTreeSet;
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

/// rsLoRA's factor is LoRA's with a larger alpha, which is what PEFT reads.
#[test]
fn rslora_is_a_larger_alpha() {
    let desk = Desk::new();
    let train = CHEAP_TRAINING.replace("--rank 2", "--rank 4 --alpha 6");
    let command = format!("finetune --model model --train train.jsonl {train}");
    desk.run(&format!("{command} --rslora --out stabilised"));
    desk.run(&format!("{} --out plain", command.replace("--alpha 6", "--alpha 12")));
    let read = |path: &str| fs_err::read(desk.at(path)).unwrap();
    let weights = |out: &str| read(&format!("{out}/adapter_model.safetensors"));
    assert!(weights("stabilised") == weights("plain"));
    let config = testkit::json(&desk.at("stabilised/adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &12.0.into()));
}

/// Adapters train on weights in few bits, which evaluations see as well; weights in few bits do not train.
#[test]
fn frozen_weights_in_few_bits() {
    let desk = Desk::new();
    let ways = ["", "--load-in-4bit", "--load-in-4bit --embedding-in-8bit"];
    let finetune = format!("finetune --model model --train train.jsonl {CHEAP_TRAINING}");
    let eval = "eval --model model --data test.jsonl --device cpu --dtype f32";
    let mut seen = Vec::new();
    for (number, way) in ways.iter().enumerate() {
        desk.run(&format!("{finetune} {way} --out tuned{number}"));
        let weights = desk.at(&format!("tuned{number}/adapter_model.safetensors"));
        let found = desk.json(&format!("{eval} {way} --adapter tuned{number}"));
        seen.push((fs_err::read(weights).unwrap(), found["perplexity"].as_f64().unwrap()));
    }
    for (one, other) in [(0, 1), (1, 2)] {
        let ((weights, perplexity), (others, than)) = (&seen[one], &seen[other]);
        assert!(weights != others && perplexity != than);
        assert!((perplexity / than - 1.0).abs() < 0.2, "{perplexity} {than}");
    }
    let failure = desk.failure(&format!("{finetune} {} --method full --out a", ways[2]));
    assert!(failure.contains("--load-in-4bit"), "{failure}");
    let failure = desk.failure(&format!("{finetune} --embedding-in-8bit --out a"));
    assert!(failure.contains("--load-in-4bit"), "{failure}");
}

/// `DoRA` is trained from the start, and its adapter is read and merged; what is collected for a run's scores stays `LoRA`.
#[test]
fn dora_is_read_and_merged() {
    let desk = Desk::new();
    let run = format!("run --model model --train train.jsonl --prune 2 --save-merged {CHEAP}");
    desk.run(&format!("{run} --dora --out r"));
    let config = testkit::json(&desk.at("r/adapter/adapter_config.json"));
    assert_eq!(config["use_dora"], true);
    let eval = "eval --data test.jsonl --device cpu --dtype f32";
    let perplexity =
        |model: &str| desk.json(&format!("{eval} --model {model}"))["perplexity"].as_f64().unwrap();
    let [tuned, merged, pruned] =
        ["r/pruned --adapter r/adapter", "r/merged", "r/pruned"].map(perplexity);
    assert!((tuned / merged - 1.0).abs() < 1e-4, "{tuned} {merged}");
    assert!((tuned / pruned - 1.0).abs() > 1e-3, "{tuned} {pruned}");
    let said = desk.run("inspect r/adapter");
    assert!(said.contains("DoRA of rank 2"), "{said}");
    let failure = desk.failure(&format!("{run} --dora --finetune full --out x"));
    assert!(failure.contains("--dora applies to adapters, and `full` trains none"), "{failure}");
    assert!(!desk.at("x").exists());
    // Adapters of another kind do not go on from those.
    let failure = desk.failure(&format!("{run} --out r"));
    assert!(failure.contains("dora"), "{failure}");
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

/// The layers that an adapter is on.
fn adapted(folder: &Path) -> BTreeSet<usize> {
    let bytes = fs_err::read(folder.join("adapter_model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let number = |name: &String| {
        let (_, rest) = name.split_once(".layers.")?;
        rest.split('.').next()?.parse().ok()
    };
    header.as_object().unwrap().keys().filter_map(number).collect()
}

/// Of the layers in `open`, each its number in the dense model, the places of the half with the highest scores, of equal
/// ones the earlier: those that fewer than half of the others beat.
fn highest(scores: &serde_json::Value, origin: &[usize], open: &[usize]) -> BTreeSet<usize> {
    let score = |place: usize| scores["layers"][origin[place]]["score"].as_f64().unwrap();
    let beats = |one: usize, other: usize| {
        score(one) > score(other) || (score(one) == score(other) && one < other)
    };
    let place = |&one: &usize| open.iter().filter(|&&other| beats(other, one)).count();
    open.iter().copied().filter(|one| 2 * place(one) < open.len()).collect()
}

/// The layers that a run's plan keeps, by their numbers in the dense model of six.
fn kept(run: &Path) -> Vec<usize> {
    let plan = testkit::json(&run.join("plan.json"));
    let pruned: Vec<u64> =
        plan["pruned"].as_array().unwrap().iter().map(|layer| layer.as_u64().unwrap()).collect();
    (0..6).filter(|&layer| !pruned.contains(&(layer as u64))).collect()
}

/// Adapters go on the half with the highest scores: those that pruned, else those by `igia`; the training begins anew.
#[test]
fn adapters_go_where_scores_are_highest() {
    let desk = Desk::new();
    let run = |criterion: &str, rest: &str, out: &str| {
        desk.run(&format!(
            "run --model model --train train.jsonl --prune 1 --choose 4 --criterion {criterion} --lora-layers auto \
             {rest} --out {out} {CHEAP}"
        ));
        kept(&desk.at(out))
    };
    let origin = run("magnitude", "--with-dense", "own");
    let by_igia = |out: &str| {
        desk.run(&format!("score {out}/record --criterion igia --out {out}-igia.json"));
        testkit::json(&desk.at(&format!("{out}-igia.json")))
    };
    let own = testkit::json(&desk.at("own/scores.json"));
    let (five, six) = ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]);
    let expected = highest(&own, &origin, &five);
    assert_eq!((adapted(&desk.at("own/adapter")), expected.len()), (expected, 3));
    assert_eq!(adapted(&desk.at("own/dense-adapter")), highest(&by_igia("own"), &six, &six));
    assert_eq!(steps(&desk.at("own"), "finetune")[0]["step"], 1);
    let settings = fs_err::read_to_string(desk.at("own/run.toml")).unwrap();
    assert!(settings.contains("lora_layers = \"auto\""), "{settings}");
    // Once more nothing is left to do, and the settings are as good as the flags.
    let before = fs_err::read_to_string(desk.at("own/metrics.jsonl")).unwrap();
    desk.run("run --config own/run.toml --out own");
    assert_eq!(fs_err::read_to_string(desk.at("own/metrics.jsonl")).unwrap(), before);

    let origin = run("angular", "", "none");
    assert_eq!(adapted(&desk.at("none/adapter")), highest(&by_igia("none"), &origin, &five));

    // A comparison trains the same.
    desk.run(&format!(
        "compare --model model --train train.jsonl --eval test.jsonl --prune 1 --methods angular --lora-layers auto \
         --out c {CHEAP}"
    ));
    let weights = |folder: &Path| fs_err::read(folder.join("adapter_model.safetensors")).ok();
    let store = fs_err::read_dir(desk.at("c/store")).unwrap().map(|entry| entry.unwrap().path());
    let trained: Vec<_> = store
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("dense-"))
        .filter_map(|path| weights(&path))
        .collect();
    assert!(trained.len() == 1 && Some(&trained[0]) == weights(&desk.at("none/adapter")).as_ref());

    // A winner goes on from its trial, which trained the same layers.
    let origin = run("race:last+magnitude", "", "race");
    assert_eq!(adapted(&desk.at("race/adapter")), highest(&by_igia("race"), &origin, &five));
    let numbers: Vec<_> =
        steps(&desk.at("race"), "finetune").iter().map(|step| step["step"].as_u64()).collect();
    assert_eq!(numbers, (1..=5).map(Some).collect::<Vec<_>>());
}

/// Layers beside cuts train in full; of the others half get adapters.
#[test]
fn adapters_go_beside_layers_in_full() {
    let desk = Desk::new();
    desk.run(&format!(
        "run --model model --train train.jsonl --prune 1 --keep first:2,last:2 --finetune lora+cuts \
         --lora-layers auto --out r {CHEAP}"
    ));
    let origin = kept(&desk.at("r"));
    let gone = (0..6).find(|layer| !origin.contains(layer)).unwrap();
    let open: Vec<usize> = (0..5).filter(|&place| place + 1 != gone && place != gone).collect();
    let scores = testkit::json(&desk.at("r/scores.json"));
    let weight = |folder: &str, layer: usize| {
        let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
        testkit::tensor_bytes(&desk.at(folder).join("model.safetensors"), &name)
    };
    let moved = |&layer: &usize| weight("r/tuned", layer) != weight("r/pruned", layer);
    let found: BTreeSet<usize> = open.iter().copied().filter(moved).collect();
    assert_eq!((found, open.len()), (highest(&scores, &origin, &open), 3));
}

/// Layers that are named stand in run.toml as before, and a run taken up again finds them there.
#[test]
fn named_layers_are_those_of_the_run_file() {
    let desk = Desk::new();
    let command = format!(
        "run --model model --train train.jsonl --prune 2 --lora-layers 3,0 --out r {CHEAP}"
    );
    desk.run(&command);
    let settings = fs_err::read_to_string(desk.at("r/run.toml")).unwrap();
    let numbers: String = settings
        .split_once("\nlora_layers = [")
        .unwrap()
        .1
        .chars()
        .take_while(|&c| c != ']')
        .collect();
    let numbers: Vec<&str> =
        numbers.split(',').map(str::trim).filter(|number| !number.is_empty()).collect();
    assert_eq!(numbers, ["3", "0"]);
    assert_eq!(adapted(&desk.at("r/adapter")), BTreeSet::from([0, 3]));
    desk.run("run --config r/run.toml --out r");
    let failure = desk.failure(&command.replace("3,0", "3,1"));
    assert!(failure.contains("settings.training.lora_layers"), "{failure}");
    desk.write("r/run.toml", &settings.replace("\nlora_layers = [", "\nlora_layers = [\"some\", "));
    let failure = desk.failure("run --config r/run.toml --out s");
    assert!(failure.contains("they must be layers' numbers, or \"auto\""), "{failure}");
}

/// Scores to go by are a run's.
#[test]
fn a_training_alone_names_its_layers() {
    let desk = Desk::new();
    let alone = format!("finetune --model model --train train.jsonl --out a {CHEAP_TRAINING}");
    let failure = desk.failure(&format!("{alone} --lora-layers auto"));
    assert!(failure.contains("--lora-layers auto goes by the scores"), "{failure}");
    let failure = desk.failure(&format!("{alone} --lora-layers 1,some"));
    assert!(failure.contains("`1,some` is neither layers such as 0,1,5 nor auto"), "{failure}");
    desk.run(&format!("{alone} --lora-layers 1,4"));
    assert_eq!(adapted(&desk.at("a")), BTreeSet::from([1, 4]));
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
