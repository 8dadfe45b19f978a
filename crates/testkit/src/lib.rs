//! What tests share: temporary folders, tolerances, tiny checkpoints, the golden fixtures, a hub.

mod hub;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use tempfile::TempDir;

pub use hub::{FakeHub, HubReply, HubRequest, Uploads, repository};

/// A folder that is removed when the value is dropped.
///
/// # Panics
///
/// If it cannot be made.
pub fn temporary_folder() -> TempDir {
    TempDir::with_prefix("gradpruner-test-").expect("a temporary folder")
}

/// The names of the golden models under `fixtures/`.
pub const GOLDEN: [&str; 5] =
    ["tiny_llama", "tiny_llama_tied", "tiny_llama31", "tiny_qwen2", "tiny_mistral"];

/// A golden file or folder: small models with every number of the method worked out
/// independently, described in `fixtures/README.md`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// Where models of tests compute: `GRADPRUNER_TEST_DEVICE`, as `cuda`, else the CPU.
pub fn device() -> String {
    env::var("GRADPRUNER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// A library with the functions of NCCL that sums what threads of one process hold, made in a folder by the C compiler.
///
/// # Panics
///
/// If it cannot be made.
pub fn nccl_stand_in(folder: &Path) -> PathBuf {
    let library = folder.join("libnccl.so");
    let mut compiler = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler.args(["-shared", "-fPIC", "-pthread", "-o"]).arg(&library);
    let status = compiler.arg(fixture("nccl_stand_in.c")).status().expect("a C compiler");
    assert!(status.success(), "it does not compile");
    library
}

/// A JSON file.
///
/// # Panics
///
/// If it cannot be read.
pub fn json(path: &Path) -> serde_json::Value {
    let text = fs_err::read_to_string(path).expect("the file can be read");
    serde_json::from_str(&text).expect("the file is JSON")
}

/// A tensor of a safetensors file: its shape and its raw bytes.
///
/// # Panics
///
/// If the file or the tensor cannot be read.
pub fn tensor_bytes(path: &Path, name: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = fs_err::read(path).expect("the file can be read");
    let file = SafeTensors::deserialize(&bytes).expect("the file is safetensors");
    let tensor = file.tensor(name).expect("the tensor is in it");
    (tensor.shape().to_vec(), tensor.data().to_vec())
}

/// An F32 tensor of a safetensors file.
///
/// # Panics
///
/// As [`tensor_bytes`].
pub fn tensor_f32(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let (shape, bytes) = tensor_bytes(path, name);
    (shape, bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect())
}

/// An I64 tensor of a safetensors file.
///
/// # Panics
///
/// As [`tensor_bytes`].
pub fn tensor_i64(path: &Path, name: &str) -> (Vec<usize>, Vec<i64>) {
    let (shape, bytes) = tensor_bytes(path, name);
    (shape, bytes.as_chunks().0.iter().map(|&chunk| i64::from_le_bytes(chunk)).collect())
}

/// The names in a safetensors file.
///
/// # Panics
///
/// If it cannot be read.
pub fn tensor_names(path: &Path) -> Vec<String> {
    let bytes = fs_err::read(path).expect("the file can be read");
    let file = SafeTensors::deserialize(&bytes).expect("the file is safetensors");
    file.names().into_iter().map(str::to_owned).collect()
}

/// The largest difference, relative to the largest magnitude expected.
///
/// # Panics
///
/// If the lengths differ.
pub fn relative_deviation(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many values as expected");
    let largest = expected.iter().fold(0.0_f64, |most, &x| most.max(f64::from(x).abs()));
    let apart = found
        .iter()
        .zip(expected)
        .map(|(&x, &y)| (f64::from(x) - f64::from(y)).abs())
        .fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) });
    if apart == 0.0 { 0.0 } else { apart / largest }
}

/// Copies a folder, so that a test may break the copy.
///
/// # Panics
///
/// If it cannot be copied.
pub fn copy_folder(source: &Path, target: &Path) {
    fs_err::create_dir_all(target).expect("the folder can be made");
    for entry in fs_err::read_dir(source).expect("the folder can be read") {
        let path = entry.expect("its entries can be read").path();
        let to = target.join(path.file_name().expect("entries have names"));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            // Not `copy`, which would keep a read-only mark.
            fs_err::write(&to, fs_err::read(&path).expect("readable")).expect("writable");
        }
    }
}

/// Makes the tokenizer of [`tiny_checkpoint`] cut a text into words as GPT-2's does, which llama.cpp knows.
///
/// # Panics
///
/// If the folder has no such tokenizer.
pub fn cut_words_as_gpt2(folder: &Path) {
    let path = folder.join("tokenizer.json");
    let text = fs_err::read_to_string(&path).expect("a tokenizer");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    tokenizer["pre_tokenizer"]["use_regex"] = true.into();
    fs_err::write(&path, tokenizer.to_string()).expect("a writable folder");
}

/// A golden model with a tokenizer of single bytes and a chat template, complete enough to be
/// trained and evaluated; its vocabulary must be 256.
///
/// # Panics
///
/// If it cannot be written.
pub fn tiny_checkpoint(folder: &Path) {
    copy_folder(&fixture("tiny_llama/model"), folder);
    let special = ["<|im_end|>", "<|im_start|>", "<unk>"];
    // GPT-2's printable stand-ins for bytes; three bytes that no text holds make way.
    let mut vocabulary = serde_json::Map::new();
    let mut stand_in = 256;
    for byte in 0..=255_u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { byte } else { stand_in };
        stand_in += u32::from(!printable);
        let token = match special.get(byte as usize) {
            Some(special) => (*special).to_owned(),
            None => char::from_u32(code).expect("a character").to_string(),
        };
        vocabulary.insert(token, byte.into());
    }
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
                                        "trim_offsets": true, "use_regex": false});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    let template = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
                    {{ message.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let config = serde_json::json!({"eos_token": "<|im_end|>", "chat_template": template});
    let mut model = json(&folder.join("config.json"));
    model["eos_token_id"] = 0.into();
    for (name, value) in
        [("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", model)]
    {
        fs_err::write(folder.join(name), value.to_string()).expect("writable");
    }
}

/// Numbered rows of a task with two answers, as JSONL.
pub fn tiny_rows(rows: std::ops::Range<usize>) -> String {
    rows.into_iter()
        .map(|row| {
            let answer = ["no", "yes"][row * 7 % 3 % 2];
            let row = serde_json::json!({
                "messages": [{"role": "user", "content": format!("is {row} so?")},
                             {"role": "assistant", "content": answer}],
                "choices": ["no", "yes"], "answer": answer,
            });
            format!("{row}\n")
        })
        .collect()
}

/// A number for every element of every tensor of a made-up model, none of them 0.
pub fn made_up(seed: usize, at: usize) -> f32 {
    let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9).wrapping_add(at as u64 * 0x85eb_ca6b);
    let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d);
    ((mixed >> 8) % 2001) as f32 / 1000.0 - 1.0005
}

/// Writes tensors filled by [`made_up`], each with its name, shape and seed, as F32.
///
/// # Panics
///
/// If the file cannot be written.
pub fn write_made_up(path: &Path, tensors: &[(String, Vec<usize>, usize)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, seed)| {
            let size = shape.iter().product();
            (0..size).flat_map(|at| made_up(*seed, at).to_le_bytes()).collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let dtype = safetensors::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes);
        (name.as_str(), view.expect("as long as its shape"))
    });
    let content = safetensors::serialize(views, None).expect("a file");
    fs_err::write(path, content).expect("writable");
}

/// Writes a model of one of the families in `fixtures/decoders`, its tensors in the order of their names filled by
/// [`made_up`], and returns what the family's file says. Whole numbers and booleans become floats: their type does not
/// matter where layers are pruned.
///
/// # Panics
///
/// If it cannot be written.
pub fn made_up_decoder(family: &str, folder: &Path) -> serde_json::Value {
    let found = json(&fixture(&format!("decoders/{family}.json")));
    let tensors = found["tensors"].as_object().expect("an object").iter().enumerate();
    let tensors: Vec<(String, Vec<usize>, usize)> = tensors
        .map(|(seed, (name, tensor))| {
            let sizes = tensor.as_array().expect("a type and sizes").iter().skip(1);
            let sizes = sizes.map(|size| size.as_u64().expect("a size") as usize);
            (name.clone(), sizes.collect(), seed)
        })
        .collect();
    fs_err::create_dir_all(folder).expect("the folder can be made");
    write_made_up(&folder.join("model.safetensors"), &tensors);
    fs_err::write(folder.join("config.json"), found["config"].to_string()).expect("writable");
    found
}
