//! Bad input: one clear error, exit 1, nothing left behind.

use expect_test::{Expect, expect};
use serde_json::json;

use crate::support::{CHEAP, Desk, text};

/// Runs a command that must fail as expected and leave the folder as it was.
fn check(desk: &Desk, arguments: &str, expected: &Expect) {
    let before = desk.listing();
    expected.assert_eq(&desk.failure(arguments));
    assert_eq!(desk.listing(), before, "{arguments} left something behind");
}

#[test]
fn a_model_that_is_not_there() {
    check(
        &Desk::new(),
        "prune --model nowhere --plan plan.json --out o",
        &expect![[r#"
            exit 1
            error: cannot prune `nowhere`
              because: there is no folder `nowhere` here, and a hub name has the form `owner/model`; check the spelling
        "#]],
    );
    check(
        &Desk::new(),
        "prune --model model --plan plan.json --out o",
        &expect![[r#"
            exit 1
            error: cannot use `plan.json`
              because: failed to open file `plan.json`: No such file or directory (os error 2)
        "#]],
    );
    check(
        &Desk::new(),
        "eval --model nowhere --data test.jsonl",
        &expect![[r#"
            exit 1
            error: cannot evaluate `nowhere` on `test.jsonl`
              because: there is no folder `nowhere` here, and a hub name has the form `owner/model`; check the spelling
        "#]],
    );
}

#[test]
fn a_missing_shard() {
    let desk = Desk::new();
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    desk.write("model/model.safetensors.index.json", &index.to_string());
    check(
        &desk,
        &format!("collect --model model --train train.jsonl --out r {}", collect_flags()),
        &expect![[r#"
            exit 1
            error: cannot collect gradients of `model` on `train.jsonl`
              because: model: shard `model-00001-of-00002.safetensors` is missing, the index names it; fetch the checkpoint again
        "#]],
    );
}

fn collect_flags() -> &'static str {
    "--device cpu --steps 2"
}

#[test]
fn a_truncated_file() {
    let desk = Desk::new();
    let path = desk.at("model/model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    fs_err::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    check(
        &desk,
        &format!("run --model model --train train.jsonl --prune 2 --out r {CHEAP}"),
        &expect![[r#"
            exit 1
            error: the run in `r` did not begin
              because: model/model.safetensors: not a complete safetensors file; it may be truncated, fetch it again
              because: incomplete metadata, file not fully covered
        "#]],
    );
}

#[test]
fn a_shape_that_contradicts_the_config() {
    let desk = Desk::new();
    let mut config = testkit::json(&desk.at("model/config.json"));
    config["intermediate_size"] = json!(96);
    desk.write("model/config.json", &config.to_string());
    check(
        &desk,
        "inspect ./model",
        &expect![[r#"
            exit 1
            error: cannot inspect `./model`
              because: ./model/model.safetensors: `model.layers.0.mlp.gate_proj.weight` is [128, 64], config.json implies [96, 64]; are both of one model?
        "#]],
    );
}

#[test]
fn a_bad_line_and_no_lines() {
    let desk = Desk::new();
    desk.write("bad.jsonl", "{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"prompt\": \"q\"\n");
    desk.write("empty.jsonl", "\n");
    check(
        &desk,
        &format!("run --model model --train bad.jsonl --prune 2 --out r {CHEAP}"),
        &expect![[r#"
            exit 1
            error: the run in `r` did not begin
              because: bad.jsonl line 2: not JSON: EOF while parsing an object at column 14; is the row spread over several lines, or the file truncated?
        "#]],
    );
    check(
        &desk,
        "finetune --model model --train empty.jsonl --out a --device cpu",
        &expect![[r#"
            exit 1
            error: cannot fine-tune `model` on `empty.jsonl`
              because: empty.jsonl: there are no rows in it
        "#]],
    );
}

#[test]
fn too_little_memory() {
    let desk = Desk::new();
    let failure = desk.failure(&format!(
        "run --model model --train train.jsonl --prune 2 --memory 1MB --out r {CHEAP}"
    ));
    assert!(failure.starts_with("exit 1\n"), "{failure}");
    assert!(
        failure.contains("memory is too short") && failure.contains("1 MB are free"),
        "{failure}"
    );
    assert!(!desk.at("r/record").exists());
}

#[test]
fn pruning_all_layers() {
    let desk = Desk::new();
    check(
        &desk,
        &format!("run --model model --train train.jsonl --prune 100% --out r {CHEAP}"),
        &expect![[r#"
            exit 1
            error: the run in `r` did not begin
              because: --prune 100% is 6 of 6 layers, and at least one must stay
        "#]],
    );
}

#[test]
fn a_plan_that_cannot_hold() {
    let desk = Desk::new();
    let plan = json!({
        "format": "gradpruner-plan", "version": 1, "num_layers": 6, "pruned": [0, 3],
        "merges": [{"into": 1, "from": [0]}], "density": 0.2, "rule": "same-sign",
    });
    desk.write("plan.json", &plan.to_string());
    check(
        &desk,
        "prune --model model --plan plan.json --record r --out o",
        &expect![[r#"
            exit 1
            error: cannot use `plan.json`
              because: the plan cannot hold: layer 0 cannot be merged: no layer stands before it
        "#]],
    );
}

/// A desk with a plan that merges and a golden record of the tiny model.
fn pruning_desk() -> Desk {
    let desk = Desk::new();
    for (name, at) in [("record", "r"), ("model", "model")] {
        let _ = fs_err::remove_dir_all(desk.at(at));
        testkit::copy_folder(&testkit::fixture(&format!("tiny_llama/{name}")), &desk.at(at));
    }
    let plan = fs_err::read_to_string(testkit::fixture("tiny_llama/plan.json")).unwrap();
    desk.write("plan.json", &plan);
    desk
}

const PRUNE: &str = "prune --model model --plan plan.json --record r --out o";

/// The first write beyond a limit on the size of files fails, as on a disk that is full.
#[test]
fn a_disk_that_fills_up_midway() {
    let desk = pruning_desk();
    // Without merging, so that it is always copying that fails.
    let plan = fs_err::read_to_string(desk.at("plan.json")).unwrap();
    let mut plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    plan["merges"] = json!([]);
    desk.write("plan.json", &plan.to_string());
    let before = desk.listing();
    let program = env!("CARGO_BIN_EXE_gradpruner");
    let mut command = std::process::Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f 256; exec {program} {PRUNE}");
    let output = command.arg("-c").arg(script).current_dir(desk.at("")).output().unwrap();
    expect![[r#"
        error: cannot prune `model`
          because: failed to copy from `model/model.safetensors` to `.o.partial/model.safetensors`: File too large (os error 27)
    "#]]
    .assert_eq(&text(&output.stderr));
    assert_eq!((output.status.code(), desk.listing()), (Some(1), before));
}

#[test]
fn targets_that_cannot_be_written() {
    let desk = pruning_desk();
    desk.write("file", "precious");
    let under = |target: &str| PRUNE.replace("--out o", &format!("--out {target}"));
    check(
        &desk,
        &under("file/o"),
        &expect![[r#"
            exit 1
            error: cannot prune `model`
              because: --out `file/o` cannot be written
              because: not a directory
        "#]],
    );
    check(
        &desk,
        &under("r"),
        &expect![[r#"
            exit 1
            error: cannot prune `model`
              because: --out `r` is --record `r`; choose another place for the result
        "#]],
    );
    check(
        &desk,
        &under("file"),
        &expect![[r#"
            exit 1
            error: cannot prune `model`
              because: file exists already; remove it or choose another name
        "#]],
    );
}

#[test]
fn a_record_that_is_not_finite() {
    let desk = pruning_desk();
    let file = desk.at("r/step-00002.safetensors");
    let mut bytes = fs_err::read(&file).unwrap();
    let (_, target) = testkit::tensor_bytes(&file, "layers.4.self_attn.k_proj.lora_A");
    let at = bytes.windows(target.len()).position(|window| window == target).unwrap();
    bytes[at + 4..at + 8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs_err::write(&file, bytes).unwrap();
    check(
        &desk,
        "score r",
        &expect![[r#"
            exit 1
            error: cannot score `r`
              because: r/step-00002.safetensors: step 2, layer 4 self_attn.k_proj cannot be scored
              because: a gradient is not finite (NaN); the loss overflowed there, lower the learning rate or compute in f32
        "#]],
    );
}

#[test]
fn a_record_of_another_model() {
    let desk = pruning_desk();
    fs_err::remove_dir_all(desk.at("r")).unwrap();
    testkit::copy_folder(&testkit::fixture("tiny_qwen2/record"), &desk.at("r"));
    check(
        &desk,
        PRUNE,
        &expect![[r#"
            exit 1
            error: cannot prune `model`
              because: r: the record does not fit the model: layer 0 self_attn.q_proj is (48, 48) there and (64, 64) in the model
        "#]],
    );
    // Steps that disagree: one of another record among them.
    let other = fs_err::read(testkit::fixture("tiny_llama/record/step-00002.safetensors")).unwrap();
    fs_err::write(desk.at("r/step-00002.safetensors"), other).unwrap();
    check(
        &desk,
        "score r",
        &expect![[r#"
            exit 1
            error: cannot score `r`
              because: r/step-00002.safetensors: not a usable gradient record: layer 0 self_attn.q_proj has another shape or rank than in r/step-00001.safetensors
        "#]],
    );
}

#[test]
fn a_target_that_exists() {
    let desk = Desk::new();
    desk.write("a", "precious");
    check(
        &desk,
        "finetune --model model --train train.jsonl --out a --device cpu",
        &expect![[r#"
            exit 1
            error: cannot fine-tune `model` on `train.jsonl`
              because: a exists already; remove it or choose another name
        "#]],
    );
    assert_eq!(fs_err::read_to_string(desk.at("a")).unwrap(), "precious");
}

#[test]
fn wrong_usage_exits_with_2() {
    let desk = Desk::new();
    assert!(desk.failure("plan s.json").starts_with("exit 2\n"));
    assert!(desk.failure("plan s.json --prune x").starts_with("exit 2\nerror: invalid value 'x'"));
    for wrong in [
        "--lr nan",
        "--lr inf",
        "--lr 0",
        "--warmup 2",
        "--weight-decay=-1",
        "--alpha inf",
        "--max-grad-norm nan",
        "--epochs 0",
        "--rank 18446744073709551615",
        "--max-length 18446744073709551615",
        "--batch 0",
    ] {
        let flag = wrong.split([' ', '=']).next().unwrap();
        let failure = desk.failure(&format!("finetune --model m --train t --out o {wrong}"));
        assert!(failure.starts_with("exit 2\nerror: invalid value "), "{wrong}: {failure}");
        assert!(failure.contains(flag), "{wrong}: {failure}");
    }
}

#[test]
fn results_that_would_overwrite_one_another() {
    let desk = Desk::new();
    for (arguments, expected) in [
        ("--out a --merged a", "--merged `a` is --out `a`"),
        ("--out a --merged a/b", "--merged `a/b` lies inside --out `a`"),
        ("--out model/a", "--out `model/a` lies inside --model `model`"),
        ("--out a --metrics train.jsonl", "--metrics `train.jsonl` is --train `train.jsonl`"),
    ] {
        let command = "finetune --model model --train train.jsonl --device cpu";
        let before = desk.listing();
        assert_eq!(
            desk.failure(&format!("{command} {arguments}")),
            format!(
                "exit 1\nerror: cannot fine-tune `model` on `train.jsonl`\n  because: {expected}; \
                 choose another place for the result\n"
            )
        );
        assert_eq!(desk.listing(), before);
    }
    check(
        &desk,
        "eval --model model --data test.jsonl --out test.jsonl",
        &expect![[r#"
            exit 1
            error: cannot evaluate `model` on `test.jsonl`
              because: --out `test.jsonl` is --data `test.jsonl`; choose another place for the result
        "#]],
    );
}

#[test]
fn a_plan_in_place_of_its_scores() {
    let desk = Desk::new();
    desk.write("scores.json", "{}");
    check(
        &desk,
        "plan scores.json --prune 2 --out scores.json",
        &expect![[r#"
            exit 1
            error: cannot plan from `scores.json`
              because: --out `scores.json` is the evidence `scores.json`; choose another place for the result
        "#]],
    );
}

#[test]
fn pruning_no_layer_and_a_rank_that_is_too_large() {
    let desk = Desk::new();
    check(
        &desk,
        &format!("run --model model --train train.jsonl --prune 5% --out r {CHEAP}"),
        &expect![[r#"
            exit 1
            error: the run in `r` did not begin
              because: --prune 5% of 6 layers rounds to none; prune at least 1 layer, or 9%
        "#]],
    );
    check(
        &desk,
        "finetune --model model --train train.jsonl --device cpu --dtype f32 --rank 65 --out a --quiet",
        &expect![[r#"
            exit 1
            error: cannot fine-tune `model` on `train.jsonl`
              because: the settings cannot be used: a LoRA rank of 65 is more than the smaller side of `self_attn.k_proj`, 32
        "#]],
    );
}
