//! Small models of every family against what llama.cpp's converter makes of them (`gguf_families.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::architectures::architecture;
use super::{FileType, GgufFile, GgufValue, export};
use crate::ModelConfig;

/// Writes the model `name` of `families/` with a tokenizer of `gguf_families/` and the keys of `config` put into its own.
fn write_model(folder: &Path, name: &str, tokenizer: &str, config: &Value) {
    testkit::copy_folder(&testkit::fixture(&format!("families/{name}")), folder);
    testkit::copy_folder(&testkit::fixture(&format!("gguf_families/{tokenizer}")), folder);
    let path = folder.join("config.json");
    let mut raw = testkit::json(&path);
    for (key, value) in config.as_object().unwrap() {
        raw[key] = value.clone();
    }
    fs_err::write(&path, raw.to_string()).unwrap();
}

fn expected() -> Value {
    testkit::json(&testkit::fixture("gguf_families/expected.json"))
}

/// Whether a value of a file is the one expected; numbers as f32.
fn is(found: &GgufValue, expected: &Value) -> bool {
    match expected {
        Value::Bool(flag) => matches!(found, GgufValue::Bool(found) if found == flag),
        Value::String(text) => found.as_text() == Some(text),
        Value::Array(values) => found.as_array().is_some_and(|found| {
            found.len() == values.len() && found.iter().zip(values).all(|(x, y)| is(x, y))
        }),
        _ => found.as_number().map(|number| number as f32) == expected.as_f64().map(|x| x as f32),
    }
}

/// Each tensor's description, and a digest of all.
fn tensors(file: &GgufFile) -> (BTreeMap<String, String>, String) {
    let mut every = Sha256::new();
    let mut all = BTreeMap::new();
    let sorted: BTreeMap<_, _> = file.tensors.iter().collect();
    for (name, tensor) in sorted {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        let said = format!("{:?} {} ", tensor.format, shape.join("x"));
        every.update(format!("{name} {said}"));
        every.update(file.bytes(tensor));
        let digest = crate::sha256_bytes(file.bytes(tensor));
        all.insert(name.clone(), format!("{said}{}", &digest[..8]));
    }
    (all, every.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[test]
fn each_family_is_written_as_llama_cpp_writes_it() {
    let golden = expected();
    for (name, of) in golden["models"].as_object().unwrap() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        let model = of["model"].as_str().unwrap();
        write_model(&at("model"), model, of["tokenizer"].as_str().unwrap(), &of["config"]);
        export(&at("model"), &at("f32.gguf"), FileType::F32, &mut |_, _| {}).unwrap();
        export(&at("model"), &at("bf16.gguf"), FileType::BF16, &mut |_, _| {}).unwrap();
        let file = GgufFile::open(&at("f32.gguf")).unwrap();

        let mut keys: BTreeMap<String, Value> =
            serde_json::from_value(of["metadata"].clone()).unwrap();
        let lists = &golden["lists"][of["lists"].as_str().unwrap()];
        for (key, list) in lists.as_object().unwrap() {
            keys.insert(format!("tokenizer.ggml.{key}"), list.clone());
        }
        for (key, value) in &keys {
            let found = file.metadata.get(key);
            let is = found.is_some_and(|found| is(found, value));
            assert!(is, "{name}: `{key}` is {found:?}, not {value}");
        }
        let of_names = ["general.name", "general.size_label"];
        let more: Vec<_> = file
            .metadata
            .keys()
            .filter(|key| !keys.contains_key(*key) && !of_names.contains(&key.as_str()))
            .collect();
        assert!(more.is_empty(), "{name}: {more:?}");

        let (found, _) = tensors(&file);
        let all: BTreeMap<String, String> = serde_json::from_value(of["tensors"].clone()).unwrap();
        assert_eq!(found, all, "{name}");
        let (_, every) = tensors(&GgufFile::open(&at("bf16.gguf")).unwrap());
        assert_eq!(every, of["bf16"].as_str().unwrap(), "{name}");
    }
}

/// The scores of pieces follow from the order of merges: they rank as those of `tokenizer.model` do.
#[test]
fn tokenizer_json_says_what_tokenizer_model_does() {
    let folder = testkit::temporary_folder();
    let at = |name: &str| folder.path().join(name);
    let exported = |target: &str| {
        export(&at("model"), &at(target), FileType::F32, &mut |_, _| {}).unwrap();
        let mut metadata = GgufFile::open(&at(target)).unwrap().metadata;
        let scores = metadata.remove("tokenizer.ggml.scores").unwrap();
        let scores: Vec<f64> =
            scores.as_array().unwrap().iter().filter_map(GgufValue::as_number).collect();
        let mut ranked: Vec<usize> = (0..scores.len()).collect();
        ranked.sort_by(|&x, &y| scores[y].total_cmp(&scores[x]));
        (metadata, ranked)
    };
    write_model(&at("model"), "phi3", "sentence_piece", &json!({}));
    let expected = exported("one.gguf");
    fs_err::remove_file(at("model/tokenizer.model")).unwrap();
    assert_eq!(exported("other.gguf"), expected);
}

#[test]
fn what_llama_cpp_cannot_compute_is_refused() {
    let check = |name: &str, keys: Value, reason: &str| {
        let folder = testkit::temporary_folder();
        write_model(folder.path(), name, "byte_level", &keys);
        let error = architecture(&ModelConfig::read(folder.path()).unwrap()).unwrap_err();
        assert!(error.contains(reason), "{name}: {error}");
    };
    let none = || json!({});
    check("smollm3", none(), "layer 1 is not rotated here (`no_rope_layers`); a pruned");
    check("gemma2", none(), "takes 8 for the `query_pre_attn_scalar`");
    check("gemma3", none(), "and it is 12; the 27B models");
    let yarn = |key: &str, value: Value| {
        let mut scaling = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e3,
        });
        scaling[key] = value;
        json!({"rope_parameters": scaling})
    };
    let reason = "llama.cpp does not compute this rope scaling";
    check("qwen2_yarn", yarn("attention_factor", json!(1.5)), reason);
    check("qwen2_yarn", yarn("truncate", json!(false)), reason);
    let mut gemma = yarn("factor", json!(2.0));
    gemma["query_pre_attn_scalar"] = 8.into();
    check("gemma2", gemma, reason);
    check("mistral_window", none(), "no sliding window for this family");
    let uncapped = json!({"query_pre_attn_scalar": 8, "attn_logit_softcapping": null});
    check("gemma2", uncapped, "`final_logit_softcapping` is null");
    check("olmo2", json!({"tie_word_embeddings": true}), "wants a head of its own");
    check("olmo2", json!({"head_dim": 16}), "4 heads of 16 are not as wide as the model, 32");
    check("smollm3", json!({"mlp_bias": true}), "no such biases");
}

#[test]
fn two_tokens_of_one_text_are_refused() {
    let folder = testkit::temporary_folder();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), "granite", "byte_level", &json!({}));
    let path = at("model/tokenizer.json");
    let mut tokenizer = testkit::json(&path);
    tokenizer["added_tokens"][0]["content"] = "the".into();
    tokenizer["model"]["vocab"]["the"] = 70.into();
    fs_err::write(&path, tokenizer.to_string()).unwrap();
    let error = export(&at("model"), &at("x.gguf"), FileType::F32, &mut |_, _| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("and 70 are both `the`"), "{error}");
}

/// A pruned model's order of layers with and without a window is listed where it is not the family's.
#[test]
fn windows_that_do_not_alternate_are_listed() {
    for (name, pattern) in [("gemma2", [true, true, false]), ("gemma3", [false, true, true])] {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        let mut kinds: Vec<&str> =
            pattern.map(|has| if has { "sliding_attention" } else { "full_attention" }).to_vec();
        let mut expected = pattern.map(GgufValue::Bool).to_vec();
        if name == "gemma3" {
            kinds.push("full_attention");
            expected.push(GgufValue::Bool(false));
        }
        let config = json!({"query_pre_attn_scalar": 8, "layer_types": kinds});
        write_model(&at("model"), name, "sentence_piece", &config);
        export(&at("model"), &at("x.gguf"), FileType::F32, &mut |_, _| {}).unwrap();
        let file = GgufFile::open(&at("x.gguf")).unwrap();
        let found = &file.metadata[&format!("{name}.attention.sliding_window_pattern")];
        assert_eq!(found.as_array(), Some(expected.as_slice()));
    }
}
