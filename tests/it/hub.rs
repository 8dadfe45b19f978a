//! Models by hub name, from a hub on loopback.

use std::path::Path;
use std::process::Output;

use testkit::{FakeHub, HubReply, repository};

use crate::support::{CHEAP_TRAINING, Desk, text};

/// The program with its hub at an address and its cache on the desk.
fn fetching(desk: &Desk, arguments: &str, address: &str) -> Output {
    let mut command = desk.command(arguments);
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", address).env("HF_HOME", desk.at("cache")).output().unwrap()
}

/// Whether a file with such an ending lies somewhere below a folder.
fn find(folder: &Path, ending: &str) -> bool {
    fs_err::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let here = path.to_string_lossy().ends_with(ending);
        here || path.is_dir() && find(&path, ending)
    })
}

#[test]
fn a_model_is_fetched_once() {
    let desk = Desk::new();
    let hub = FakeHub::serve(repository("owner/tiny", &desk.at("model")));
    let run = |arguments: &str| fetching(&desk, arguments, &hub.address);
    // An estimate needs no weights.
    let output = run("estimate --model owner/tiny --train train.jsonl --device cpu --json");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["memory_bytes"].as_u64().unwrap() > 0);
    assert!(find(&desk.at("cache"), "config.json") && !find(&desk.at("cache"), ".safetensors"));

    let output = run("eval --model owner/tiny --data test.jsonl --device cpu --json");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["rows"], 10);

    // What is fetched needs no network again.
    let output = fetching(&desk, "inspect owner/tiny", "http://127.0.0.1:1");
    assert!(output.status.success(), "{}", text(&output.stderr));

    let output = run("inspect owner/other");
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("`owner/other` is neither a folder here nor a model"), "{message}");
}

#[test]
fn a_hostile_hub_writes_nothing_outside() {
    let desk = Desk::new();
    let good = repository("owner/tiny", &desk.at("model"));
    let hub = FakeHub::serve(move |request| {
        let reply = good(request);
        if request.path.ends_with("tokenizer.json") {
            reply
                .header("etag", "\"../../../../../evil\"")
                .header("x-linked-etag", "\"../../evil\"")
        } else {
            reply
        }
    });
    let output = fetching(&desk, "inspect owner/tiny", &hub.address);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("its ETag `../../evil` is not usable as a file's name"), "{message}");
    assert!(!find(&desk.at(""), "evil"));

    let hub = FakeHub::serve(|_| HubReply::redirect("/"));
    let message = text(&fetching(&desk, "inspect owner/tiny", &hub.address).stderr);
    assert!(message.contains("redirects more than 5 times"), "{message}");
}

#[test]
fn pickled_weights_of_a_hub() {
    let desk = Desk::new();
    fs_err::rename(desk.at("model/model.safetensors"), desk.at("model/pytorch_model.bin")).unwrap();
    let hub = FakeHub::serve(repository("owner/tiny", &desk.at("model")));
    let output = fetching(&desk, "eval --model owner/tiny --data test.jsonl", &hub.address);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let reason = "because: owner/tiny: holds `pytorch_model.bin` and no safetensors; convert it";
    assert!(message.contains(reason), "{message}");
}

#[test]
fn a_data_set_is_trained_on_by_its_name() {
    let desk = Desk::new();
    fs_err::create_dir_all(desk.at("rows/data")).unwrap();
    for (from, to) in [("train.jsonl", "train"), ("test.jsonl", "test")] {
        let rows = fs_err::read_to_string(desk.at(from)).unwrap();
        let (first, second) = rows.split_at(rows.find('\n').unwrap() + 1);
        desk.write(&format!("rows/data/{to}-00000-of-00002.jsonl"), first);
        desk.write(&format!("rows/data/{to}-00001-of-00002.jsonl"), second);
    }
    let hub = FakeHub::serve(repository("datasets/owner/rows", &desk.at("rows")));
    let run = |data: &str, out: &str| {
        let arguments =
            format!("finetune --model model --train {data} --out {out} {CHEAP_TRAINING}");
        let output = fetching(&desk, &arguments, &hub.address);
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs_err::read(desk.at(out).join("adapter_model.safetensors")).unwrap()
    };
    assert!(run("hub:owner/rows:train", "a") == run("train.jsonl", "b"));
    let output = fetching(&desk, "eval --model model --data hub:owner/rows:test", &hub.address);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = fetching(&desk, "eval --model model --data hub:owner/rows:dev", &hub.address);
    let message = text(&output.stderr);
    assert!(output.status.code() == Some(1) && message.contains("hub:owner/rows:dev"), "{message}");
}
