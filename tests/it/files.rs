//! Files that are not what they say, that lead elsewhere, or that hold numbers no model has: each is
//! refused in a sentence, whichever command meets it.

use fs_err::os::unix::fs::symlink;
use std::process::Stdio;

use expect_test::expect;
use serde_json::{Value, json};

use crate::support::{CHEAP, CHEAP_TRAINING, Desk, text};

/// What commands that must fail say, one after the other; none leaves anything behind.
fn failures(desk: &Desk, commands: &[&str]) -> String {
    let before = desk.listing();
    let said: String = commands.iter().map(|command| desk.failure(command)).collect();
    assert_eq!(desk.listing(), before, "{commands:?} left something behind");
    said
}

/// Changes a JSON file of a desk.
fn edit(desk: &Desk, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value = testkit::json(&desk.at(file));
    change(&mut value);
    desk.write(file, &value.to_string());
}

/// What a command says of the tiny model with one key of its configuration set.
fn with_key(command: &str, key: &str, value: Value) -> String {
    let desk = Desk::new();
    edit(&desk, "model/config.json", |config| config[key] = value);
    failures(&desk, &[command])
}

#[test]
fn models_of_another_kind() {
    let said = [
        ("model_type", json!("gpt2")),
        ("quantization_config", json!({"quant_method": "fp8", "activation_scheme": "dynamic"})),
        ("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_4bit": true})),
        ("vision_config", json!({"hidden_size": 64})),
        ("text_config", json!({"hidden_size": 64})),
        ("num_local_experts", json!(8)),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4.0})),
        ("partial_rotary_factor", json!(0.5)),
    ]
    .map(|(key, value)| {
        with_key("collect --model ./model --train train.jsonl --out record", key, value)
    })
    .concat();
    expect![[r#"
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: `model_type` is `gpt2`; llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, smollm3 and granite are trained here; for other decoders `score`, `plan` and `prune` work with gradients that your own trainer recorded
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: the checkpoint is quantised (`quantization_config`, fp8); use the model's original in BF16, F16 or F32
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: the checkpoint is quantised (`quantization_config`, bitsandbytes); `gradpruner convert DIR --out NEW` makes an ordinary one of it
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: the model is multimodal (`vision_config`) and only text models are trained here; `score`, `plan` and `prune` work with gradients that your own trainer recorded
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: the model is multimodal (`text_config`) and only text models are trained here; `score`, `plan` and `prune` work with gradients that your own trainer recorded
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: the model is a Mixture-of-Experts (`num_local_experts` is 8) and only dense models are trained here; `score`, `plan` and `prune` work with gradients that your own trainer recorded
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: `architectures` is LlamaForSequenceClassification, and only causal language models (…ForCausalLM) are trained here
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: rope type `dynamic` is not supported; default, linear, llama3, yarn and longrope are
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/config.json: `partial_rotary_factor` is 0.5; only 1 is supported
    "#]].assert_eq(&said);
}

#[test]
fn numbers_no_model_has() {
    let said = [
        ("num_hidden_layers", json!(1_u64 << 32)),
        ("num_attention_heads", json!(1_u64 << 63)),
        ("head_dim", json!(1 << 20)),
        ("vocab_size", json!(u64::MAX)),
        ("sliding_window", json!(1_u64 << 60)),
        ("rms_norm_eps", json!("small")),
    ]
    .map(|(key, value)| match key {
        "sliding_window" => {
            let desk = Desk::new();
            edit(&desk, "model/config.json", |config| {
                (config["model_type"], config[key]) = ("mistral".into(), value);
            });
            failures(&desk, &["inspect ./model"])
        }
        _ => with_key("inspect ./model", key, value),
    })
    .concat();
    expect![[r#"
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: `num_hidden_layers` is 4294967296; 10000 is the most that is supported
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: `num_attention_heads` is 9223372036854775808; 1048576 is the most that is supported
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: 4 heads of 1048576 are 4194304 wide; 1048576 is the most that is supported
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: `vocab_size` is 18446744073709551615; 16777216 is the most that is supported
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: `sliding_window` is 1152921504606846976; 4294967296 is the most that is supported
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: `rms_norm_eps` must be a number
    "#]].assert_eq(&said);

    let desk = Desk::new();
    edit(&desk, "model/config.json", |config| config["vocab_size"] = json!(1_u64 << 63));
    let plan = json!({
        "format": "gradpruner-plan", "version": 1, "num_layers": 1_u64 << 32, "pruned": [3],
        "merges": [], "density": 0.2, "rule": "same-sign",
    });
    desk.write("plan.json", &plan.to_string());
    let said = failures(
        &desk,
        &[
            "estimate --model ./model",
            "inspect ./plan.json",
            "prune --model model --plan plan.json --out o",
        ],
    );
    expect![[r#"
        exit 1
        error: cannot tell what a run of `./model` would need
          because: ./model/config.json: `vocab_size` is 9223372036854775808; 16777216 is the most that is supported
        exit 1
        error: cannot inspect `./plan.json`
          because: the plan cannot hold: it is for 4294967296 layers; 1 to 10000 are supported
        exit 1
        error: cannot use `plan.json`
          because: the plan cannot hold: it is for 4294967296 layers; 1 to 10000 are supported
    "#]].assert_eq(&said);
}

#[test]
fn weights_in_other_formats() {
    let desk = Desk::new();
    fs_err::remove_file(desk.at("model/model.safetensors")).unwrap();
    let mut said = String::new();
    for file in ["pytorch_model.bin", "model-q4.gguf", "adapter_config.json", "notes.txt"] {
        let file = format!("model/{file}");
        desk.write(&file, "");
        said.push_str(&failures(&desk, &["eval --model model --data test.jsonl --device cpu"]));
        fs_err::remove_file(desk.at(&file)).unwrap();
    }
    desk.write("model.gguf", "");
    said.push_str(&failures(&desk, &["eval --model model.gguf --data test.jsonl --device cpu"]));
    expect![[r#"
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: model: holds `pytorch_model.bin` and no safetensors; convert it once with transformers: `AutoModelForCausalLM.from_pretrained(…, dtype="auto").save_pretrained(…)`
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: model: a model as GGUF (`model-q4.gguf`); turn it into a folder with `gradpruner convert`
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: model: an adapter and no model; give the model it belongs to, and the adapter by `--adapter`
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: model: neither `model.safetensors` nor `model.safetensors.index.json` is there; is this a folder in Hugging Face layout?
        exit 1
        error: cannot evaluate `model.gguf` on `test.jsonl`
          because: model.gguf: a model as GGUF (`model.gguf`); turn it into a folder with `gradpruner convert`
    "#]].assert_eq(&said);
}

/// A tensor stored in a quantiser's type, and one that belongs to no layer of the model.
#[test]
fn tensors_of_another_checkpoint() {
    let desk = Desk::new();
    let path = desk.at("model/model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let renamed = |from: &str, to: &str| {
        let (length, rest) = bytes.split_at(8);
        let size = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let header = text(&rest[..size]).trim_end().replacen(from, to, 1);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &rest[size..]].concat()
    };
    let mut said = String::new();
    for (from, to) in [
        ("layers.5.mlp.up_proj.weight", "layers.6.mlp.up_proj.weight"),
        ("layers.5.mlp.up_proj.weight", "layers.5.mlp.up_proj.qweight"),
        ("layers.5.mlp.up_proj.weight", "layers.4.mlp.up_proj.weight"),
        (r#""dtype":"F32""#, r#""dtype":"I32""#),
    ] {
        let changed = renamed(from, to);
        assert_ne!(changed, bytes, "{from}");
        fs_err::write(&path, changed).unwrap();
        said.push_str(&failures(&desk, &["inspect ./model"]));
    }
    expect![[r#"
        exit 1
        error: cannot inspect `./model`
          because: ./model/model.safetensors: holds `model.layers.6.mlp.up_proj.weight`, which a llama model with this config.json does not use; is config.json of this model?
        exit 1
        error: cannot inspect `./model`
          because: ./model/model.safetensors: the weights are quantised (`model.layers.5.mlp.up_proj.qweight` is F32); use the model's original in BF16, F16 or F32
        exit 1
        error: cannot inspect `./model`
          because: ./model/model.safetensors: not a complete safetensors file; it may be truncated, fetch it again
          because: invalid offset for tensor `model.layers.4.post_attention_layernorm.weight`
        exit 1
        error: cannot inspect `./model`
          because: ./model/model.safetensors: the weights are quantised (`lm_head.weight` is I32); use the model's original in BF16, F16 or F32
    "#]].assert_eq(&said);
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding() {
    let desk = Desk::new();
    edit(&desk, "model/tokenizer.json", |tokenizer| {
        tokenizer["model"]["vocab"]["extra"] = 299.into();
    });
    let said = failures(
        &desk,
        &[
            "generate --model ./model --prompt hello --device cpu",
            "eval --model ./model --data test.jsonl --device cpu",
            "collect --model ./model --train train.jsonl --out r --device cpu --steps 2",
            &format!("finetune --model ./model --train train.jsonl --out a {CHEAP_TRAINING}"),
            "estimate --model ./model --train train.jsonl",
        ],
    );
    expect![[r#"
        exit 1
        error: cannot generate with `./model`
          because: ./model/tokenizer.json: it has more tokens than the model's embedding (tokenizer 300, embedding 256); use the model's own tokenizer, or save the model with its embedding resized
        exit 1
        error: cannot evaluate `./model` on `test.jsonl`
          because: ./model/tokenizer.json: it has more tokens than the model's embedding (tokenizer 300, embedding 256); use the model's own tokenizer, or save the model with its embedding resized
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: ./model/tokenizer.json: it has more tokens than the model's embedding (tokenizer 300, embedding 256); use the model's own tokenizer, or save the model with its embedding resized
        exit 1
        error: cannot fine-tune `./model` on `train.jsonl`
          because: ./model/tokenizer.json: it has more tokens than the model's embedding (tokenizer 300, embedding 256); use the model's own tokenizer, or save the model with its embedding resized
        exit 1
        error: cannot tell what a run of `./model` would need
          because: ./model/tokenizer.json: it has more tokens than the model's embedding (tokenizer 300, embedding 256); use the model's own tokenizer, or save the model with its embedding resized
    "#]].assert_eq(&said);
    let run = format!("run --model ./model --train train.jsonl --prune 2 --out r {CHEAP}");
    assert!(desk.failure(&run).contains("(tokenizer 300, embedding 256)"));

    // The other way round the embedding is padded.
    edit(&desk, "model/tokenizer.json", |tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.retain(|_, id| id.as_u64().unwrap() < 255);
    });
    desk.run("generate --model ./model --prompt hello --device cpu --max-new-tokens 2");
}

#[test]
fn a_share_that_is_no_layer() {
    let desk = Desk::new();
    let layers: Vec<_> = (0..4).map(|layer| json!({"layer": layer, "score": layer})).collect();
    let scores =
        json!({"format": "gradpruner-scores", "version": 1, "criterion": "igia", "layers": layers});
    desk.write("scores.json", &scores.to_string());
    let said = failures(
        &desk,
        &[
            "plan scores.json --prune 10%",
            "plan scores.json --prune 0",
            "estimate --model ./model --prune 2%",
            "collect --model ./model --train train.jsonl --prune 0 --out r --device cpu",
            "collect --model ./model --train train.jsonl --prune 1% --out r --device cpu",
            &format!("run --model model --train train.jsonl --prune 1% --out r {CHEAP}"),
        ],
    );
    expect![[r#"
        exit 1
        error: cannot plan from `scores.json`
          because: --prune 10% of 4 layers rounds to none; prune at least 1 layer, or 13%
        exit 1
        error: cannot plan from `scores.json`
          because: --prune 0 of 4 layers rounds to none; prune at least 1 layer, or 13%
        exit 1
        error: cannot tell what a run of `./model` would need
          because: --prune 2% of 6 layers rounds to none; prune at least 1 layer, or 9%
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: --prune 0 of 6 layers rounds to none; prune at least 1 layer, or 9%
        exit 1
        error: cannot collect gradients of `./model` on `train.jsonl`
          because: --prune 1% of 6 layers rounds to none; prune at least 1 layer, or 9%
        exit 1
        error: the run in `r` did not begin
          because: --prune 1% of 6 layers rounds to none; prune at least 1 layer, or 9%
    "#]]
    .assert_eq(&said);
}

#[test]
fn links_out_of_the_models_folder() {
    let desk = Desk::new();
    desk.write("secret", "secret");
    symlink("../secret", desk.at("model/generation_config.txt")).unwrap();
    let plan = json!({
        "format": "gradpruner-plan", "version": 1, "num_layers": 6, "pruned": [3], "merges": [],
        "density": 0.2, "rule": "same-sign",
    });
    desk.write("plan.json", &plan.to_string());
    let said = failures(
        &desk,
        &[
            "prune --model model --plan plan.json --out o",
            &format!(
                "finetune --model model --train train.jsonl --method full --out a {CHEAP_TRAINING}"
            ),
            &format!("run --model model --train train.jsonl --prune 2 --out r {CHEAP}"),
        ],
    );
    let said = said.replace(&desk.at("").canonicalize().unwrap().display().to_string(), "…");
    expect![[r#"
        exit 1
        error: cannot prune `model`
          because: model/generation_config.txt: a link out of the model's folder, to …/secret; put the file itself there, or remove the link
        exit 1
        error: cannot fine-tune `model` on `train.jsonl`
          because: model/generation_config.txt: a link out of the model's folder, to …/secret; put the file itself there, or remove the link
        exit 1
        error: the run in `r` did not begin
          because: model/generation_config.txt: a link out of the model's folder, to …/secret; put the file itself there, or remove the link
    "#]].assert_eq(&said);
    // What copies nothing reads on.
    desk.run("eval --model model --data test.jsonl --device cpu");
}

#[test]
fn records_that_lie() {
    let said: String = [
        ("/steps/1/file", json!("../r/step-00002.safetensors")),
        ("/steps/1/file", json!("step-00001.safetensors")),
        ("/steps/1/step", json!(1)),
        ("/steps/1/step", json!(7)),
        ("/num_layers", json!(1_u64 << 32)),
        ("/lora/rank", json!(u64::MAX)),
    ]
    .into_iter()
    .map(|(at, value)| {
        let desk = Desk::new();
        testkit::copy_folder(&testkit::fixture("tiny_llama/record"), &desk.at("r"));
        edit(&desk, "r/manifest.json", |manifest| *manifest.pointer_mut(at).unwrap() = value);
        failures(&desk, &["score r"])
    })
    .collect();
    expect![[r#"
        exit 1
        error: cannot score `r`
          because: r: not a usable gradient record: manifest.json names `../r/step-00002.safetensors`, which is not a plain file name
        exit 1
        error: cannot score `r`
          because: r: not a usable gradient record: manifest.json names `step-00001.safetensors` for two steps
        exit 1
        error: cannot score `r`
          because: r: not a usable gradient record: manifest.json has step 1 where step 2 belongs
        exit 1
        error: cannot score `r`
          because: r: not a usable gradient record: manifest.json has step 7 where step 2 belongs
        exit 1
        error: cannot score `r`
          because: r: not a usable gradient record: manifest.json says 4294967296 layers; 1 to 10000 are supported
        exit 1
        error: cannot score `r`
          because: r: not a usable gradient record: manifest.json says rank 18446744073709551615; 1 to 1048576 are supported
    "#]].assert_eq(&said);
}

#[test]
fn a_key_given_twice() {
    let desk = Desk::new();
    let config = fs_err::read_to_string(desk.at("model/config.json")).unwrap();
    desk.write("model/config.json", &config.replacen('{', r#"{"hidden_size": 32,"#, 1));
    expect![[r#"
        exit 1
        error: cannot inspect `./model`
          because: ./model/config.json: gives two values for one name; remove one of them
          because: `hidden_size` is given twice at line 1 column 90
    "#]]
    .assert_eq(&failures(&desk, &["inspect ./model"]));
}

/// A trained adapter whose configuration asks for more than it is computed with.
#[test]
fn adapters_that_would_compute_something_else() {
    let desk = Desk::new();
    desk.run(&format!("finetune --model model --train train.jsonl --out a {CHEAP_TRAINING}"));
    let whole = testkit::json(&desk.at("a/adapter_config.json"));
    let eval = "eval --model model --adapter a --data test.jsonl --device cpu --dtype f32";
    let mut said = String::new();
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("use_dora", json!(true)),
        ("layers_to_transform", json!([0, 1])),
        ("init_lora_weights", json!("pissa")),
        ("rank_pattern", json!({"q_proj": 4})),
        ("r", json!(u64::MAX)),
    ] {
        let mut changed = whole.clone();
        changed[key] = value;
        desk.write("a/adapter_config.json", &changed.to_string());
        said.push_str(&failures(&desk, &[eval]));
    }
    expect![[r#"
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_config.json: not a usable PEFT adapter: `peft_type` is `IA3`; only LORA is supported
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_config.json: not a usable PEFT adapter: `bias` is "all", and biases of adapters are not supported
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_config.json: not a usable PEFT adapter: `modules_to_save` is ["lm_head"], which is not supported
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_model.safetensors: not a usable PEFT adapter: layer 0 self_attn.q_proj has no lora_magnitude_vector
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_model.safetensors: not a usable PEFT adapter: `layers_to_transform` leaves out layer 2, but the file has matrices for it
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_config.json: not a usable PEFT adapter: `init_lora_weights` is "pissa", which may change the base model's weights; save the adapter with PEFT's `path_initial_model_for_weight_conversion`
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_model.safetensors: not a usable PEFT adapter: layer 0 self_attn.q_proj is not of rank 4
        exit 1
        error: cannot evaluate `model` on `test.jsonl`
          because: a/adapter_config.json: not a usable PEFT adapter: the rank `r` is not between 1 and 1048576
    "#]].assert_eq(&said);

    // What scales the adapter is used: rank 2 of alpha 16 by √2 is what alpha 16·√2 would be.
    let perplexity = |changes: &[(&str, Value)]| {
        let mut changed = whole.clone();
        for (key, value) in changes {
            changed[key] = value.clone();
        }
        desk.write("a/adapter_config.json", &changed.to_string());
        desk.json(eval)["perplexity"].as_f64().unwrap()
    };
    let alpha = whole["lora_alpha"].as_f64().unwrap();
    let plain = perplexity(&[]);
    let by_root = perplexity(&[("use_rslora", json!(true))]);
    let by_alpha = perplexity(&[("lora_alpha", json!(alpha * 2_f64.sqrt()))]);
    assert!((by_root / by_alpha - 1.0).abs() < 1e-6 && (by_root / plain - 1.0).abs() > 1e-6);
    let targets = whole["target_modules"].as_array().unwrap();
    let each: serde_json::Map<_, _> =
        targets.iter().map(|name| (name.as_str().unwrap().into(), alpha.into())).collect();
    let by_pattern = perplexity(&[("lora_alpha", json!(1.0)), ("alpha_pattern", each.into())]);
    assert_eq!(by_pattern, plain);
}

#[test]
fn generating_with_weights_that_are_no_numbers() {
    let desk = Desk::new();
    let path = desk.at("model/model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let (_, target) = testkit::tensor_bytes(&path, "model.layers.2.mlp.up_proj.weight");
    let at = bytes.windows(target.len()).position(|window| window == target).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs_err::write(&path, bytes).unwrap();
    let said = failures(
        &desk,
        &[
            "generate --model model --prompt hello --device cpu",
            "eval --model model --data test.jsonl --device cpu --dtype f32",
        ],
    );
    expect![[r#"
        exit 1
        error: cannot generate with `model`
          because: the model's output is not a number: it overflows; compute in f32, or look whether its weights are sound
        exit 1
          computing in f32 on cpu, 1 thread
        error: cannot evaluate `model` on `test.jsonl`
          because: the model's output is not a number: it overflows; compute in f32, or look whether its weights are sound
    "#]].assert_eq(&said);
}

/// Standard output on a disk that is full.
#[test]
fn results_that_cannot_be_written() {
    let desk = Desk::new();
    let said: String = [
        "inspect ./model",
        "inspect ./model --json",
        "generate --model model --prompt hello --device cpu --max-new-tokens 2 --quiet",
        "completions bash",
    ]
    .map(|command| {
        let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = Stdio::from(full.into_file());
        let output = desk.command(command).stdout(full).output().unwrap();
        format!("exit {}\n{}", output.status.code().unwrap(), text(&output.stderr))
    })
    .concat();
    expect![[r#"
        exit 1
        error: the result could not be written to standard output
          because: No space left on device (os error 28)
        exit 1
        error: the result could not be written to standard output
          because: No space left on device (os error 28)
        exit 1
        error: the result could not be written to standard output
          because: No space left on device (os error 28)
        exit 1
        error: the result could not be written to standard output
          because: No space left on device (os error 28)
    "#]]
    .assert_eq(&said);
}

/// The library panics on these; nothing but the error is printed.
#[test]
fn tokenizers_that_make_their_library_panic() {
    let desk = Desk::new();
    let whole = fs_err::read_to_string(desk.at("model/tokenizer.json")).unwrap();
    let mut said = String::new();
    for (key, value) in [
        ("decoder", r#"{"type": "Strip", "content": " ", "start": 1e400, "stop": 0}"#),
        ("normalizer", r#"{"type": "Replace", "pattern": {"String": ""}, "content": "x"}"#),
    ] {
        let mut raw: Value = serde_json::from_str(&whole).unwrap();
        raw[key] = "here".into();
        desk.write("model/tokenizer.json", &raw.to_string().replace("\"here\"", value));
        said.push_str(&failures(&desk, &["generate --model model --prompt hello --device cpu"]));
    }
    expect![[r#"
        exit 1
        error: cannot generate with `model`
          because: model/tokenizer.json: not a usable tokenizer: not JSON: number out of range at line 1 column 610
        exit 1
        error: cannot generate with `model`
          because: model/tokenizer.json: not a usable tokenizer: the library that reads it gave up: index out of bounds: the len is 3 but the index is 3
    "#]].assert_eq(&said);
}
