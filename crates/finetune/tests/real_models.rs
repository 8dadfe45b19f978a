//! Real small models against what transformers computes on them.
//!
//! They need the converted models, `cargo xtask model smollm2` and `qwen2.5-coder-0.5b`, so they
//! are left out of a plain `cargo test`; `cargo xtask test` runs them.

#![expect(clippy::unwrap_used, reason = "a test stops at what should not be")]

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, sha256_bytes};
use dataset::{Chat, Content, Encoder, Message, Place, Row};
use gradpruner_finetune::{ComputeType, DeviceChoice, Model, generate};
use serde_json::Value;

const MODELS: [(&str, &str); 2] =
    [("smollm2", "smollm2-135m"), ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b")];

fn folder(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join(".cache/models").join(name);
    assert!(folder.exists(), "run `cargo xtask model {name}` first");
    folder
}

fn expected(fixture: &str) -> Value {
    testkit::json(&testkit::fixture(&format!("smollm2/{fixture}.json")))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Log-probabilities of the token after `tokens`, and of each token of it.
fn log_probabilities(model: &Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let logits = model.all_logits(&[tokens]).unwrap();
    logits
        .chunks(model.config().vocab_size)
        .map(|row| {
            let row: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
            let most = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - most).exp()).sum();
            row.iter().map(|logit| logit - most - sum.ln()).collect()
        })
        .collect()
}

#[test]
#[ignore = "needs the converted models; `cargo xtask test` runs it"]
fn converted_weights() {
    for (name, fixture) in MODELS {
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let expected = expected(fixture);
        let tensors = expected["tensors_bf16"].as_object().unwrap();
        assert_eq!(checkpoint.weights().iter().count(), tensors.len(), "{name}");
        for (tensor, expected) in tensors {
            let view = checkpoint.tensor(tensor).unwrap();
            assert_eq!(serde_json::json!(view.shape()), expected["shape"], "{name} {tensor}");
            assert_eq!(sha256_bytes(view.bytes()), expected["sha256"], "{name} {tensor}");
        }
    }
}

#[test]
#[ignore = "needs the converted models; `cargo xtask test` runs it"]
fn tokens_and_templates() {
    for (name, fixture) in MODELS {
        let (encoder, expected) = (Encoder::read(&folder(name)).unwrap(), expected(fixture));
        for case in expected["tokenization"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let tokens = encoder.tokens(text).unwrap();
            assert_eq!(tokens, ids(&case["ids"]), "{name}: {text}");
            assert_eq!(encoder.text(&tokens, false).unwrap(), case["decoded"].as_str().unwrap());
        }
        for case in expected["prompts"].as_array().unwrap() {
            if let Ok(messages) = serde_json::from_value::<Vec<Message>>(case["messages"].clone()) {
                let chat = Chat { messages, tools: Vec::new() };
                let rendered = encoder.template().render(&chat, true).unwrap();
                assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{name}");
                assert_eq!(encoder.prompt(&chat).unwrap(), ids(&case["input_ids"]), "{name}");
            }
        }
    }
}

#[test]
#[ignore = "needs the converted models; `cargo xtask test` runs it"]
fn only_the_reply_is_learnt() {
    for (name, _) in MODELS {
        let encoder = Encoder::read(&folder(name)).unwrap();
        let messages = vec![
            Message::new("user", "Is it good?"),
            Message::new("assistant", "positive"),
            Message::new("user", "And now?"),
            Message::new("assistant", "very negative"),
        ];
        let place = Place { file: Path::new("rows").into(), number: 1, is_line: true };
        let row = Row { place, content: Content::Chat(Chat { messages, tools: Vec::new() }) };
        let [example] = encoder.examples_of(&row, 2048).unwrap().try_into().unwrap();
        let learnt: Vec<u32> = example
            .tokens
            .iter()
            .zip(&example.labelled)
            .filter_map(|(&token, &labelled)| labelled.then_some(token))
            .collect();
        let text = encoder.text(&learnt, false).unwrap();
        assert_eq!(text, "positive<|im_end|>very negative<|im_end|>", "{name}");
        let [cut] = encoder.examples_of(&row, 12).unwrap().try_into().unwrap();
        assert_eq!((cut.tokens.len(), cut.labelled.len()), (12, 12));
    }
}

#[test]
#[ignore = "needs the converted models; `cargo xtask test` runs it"]
fn probabilities_and_replies() {
    for (name, fixture) in MODELS {
        let model = Model::load(&folder(name), DeviceChoice::Cpu, ComputeType::F32).unwrap();
        let expected = expected(fixture);
        for case in expected["prompts"].as_array().unwrap() {
            let found = log_probabilities(&model, &ids(&case["input_ids"]));
            let last = found.last().unwrap();
            let top = ids(&case["top5_ids"]).into_iter().zip(numbers(&case["top5_logprobs"]));
            for (token, expected) in top {
                let apart = (last[token as usize] - expected).abs();
                assert!(apart < 1e-3, "{name}: token {token} is {apart} off");
            }
        }
        let greedy = &expected["greedy"];
        let found = generate(&model, &ids(&greedy["input_ids"]), 24, &mut |_| {}).unwrap();
        assert_eq!(found.tokens, ids(&greedy["new_ids"]), "{name}");

        let case = &expected["perplexity"];
        let tokens = ids(&case["input_ids"]);
        let found = log_probabilities(&model, &tokens);
        let sum: f64 =
            tokens[1..].iter().zip(&found).map(|(&token, row)| row[token as usize]).sum();
        let mean = -sum / (tokens.len() - 1) as f64;
        let expected = case["mean_nll"].as_f64().or(case["nll"].as_f64()).unwrap();
        assert!((mean - expected).abs() < 1e-3, "{name}: {mean} is not {expected}");
    }
}
