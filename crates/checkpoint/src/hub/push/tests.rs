use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testkit::{FakeHub, HubReply, HubRequest, Uploads, temporary_folder};

use super::*;
use crate::hub::settings::Waits;
use crate::hub::tests::chain;
use crate::hub::{Hub, is_wanted};

const WEIGHTS: usize = 300_000;
const TOKEN: &str = "secret";

/// A model to push, and what a hub makes of it.
struct Desk {
    folder: Box<dyn AsRef<Path>>,
    private: bool,
}

impl Desk {
    fn new() -> Self {
        let folder = temporary_folder();
        let desk = Self { folder: Box::new(folder), private: false };
        for folder in ["model/additional_chat_templates", "model/logs"] {
            fs_err::create_dir_all(desk.at(folder)).unwrap();
        }
        let weights: Vec<u8> = (0..WEIGHTS).map(|i| (i * i % 251) as u8).collect();
        desk.write("model.safetensors", weights);
        desk.write("config.json", "{}");
        desk.write("additional_chat_templates/tools.jinja", "{{ tools }}");
        desk.write("LICENSE", "");
        desk.write("README.md", "# A model\n");
        for stray in ["logs/log.txt", "optimizer.safetensors", ".lock", "train.jsonl"] {
            desk.write(stray, "stray");
        }
        desk
    }

    fn at(&self, name: &str) -> PathBuf {
        (*self.folder).as_ref().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs_err::write(self.at("model").join(name), bytes).unwrap();
    }

    /// A hub that takes the model.
    fn uploads(&self) -> Uploads {
        Uploads {
            name: "owner/tiny".into(),
            token: TOKEN.into(),
            folder: self.at("hub"),
            part_bytes: usize::MAX,
        }
    }

    fn settings(&self, hub: &FakeHub) -> Settings {
        Settings {
            endpoint: hub.address.clone(),
            token: Some(TOKEN.into()),
            cache: self.at("cache"),
            offline: false,
            waits: Waits { pause: Duration::ZERO, ..Waits::USUAL },
        }
    }

    fn push(&self, hub: &FakeHub) -> Result<PushReport, String> {
        self.push_as(&self.settings(hub), "model", "main")
    }

    fn push_as(&self, hub: &Settings, what: &str, branch: &str) -> Result<PushReport, String> {
        let settings = PushSettings {
            private: self.private,
            revision: branch.into(),
            message: "Upload with gradpruner".into(),
        };
        let repository = Repository::parse(Kind::Model, "owner/tiny").unwrap();
        push_to(hub, &repository, &self.at(what), &settings, &mut |_| {}).map_err(chain)
    }

    fn error(&self, hub: &FakeHub) -> String {
        self.push(hub).unwrap_err()
    }
}

/// How often a hub was asked by a method at an address that holds a text.
fn asked(hub: &FakeHub, method: &str, part: &str) -> usize {
    hub.requests()
        .iter()
        .filter(|asked| asked.method == method && asked.path.contains(part))
        .count()
}

/// A hub that gives this answer wherever the address holds a text.
fn spoilt(desk: &Desk, part: &'static str, reply: HubReply) -> FakeHub {
    let good = desk.uploads().serve();
    FakeHub::serve(
        move |request| {
            if request.path.contains(part) { reply.clone() } else { good(request) }
        },
    )
}

fn outcomes(report: &PushReport) -> Vec<(&str, Pushed)> {
    report.files.iter().map(|file| (file.file.as_str(), file.outcome)).collect()
}

#[test]
fn what_is_pushed_comes_back_and_is_pushed_once() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    let report = desk.push(&hub).unwrap();
    assert!(report.created && report.committed && report.commit.is_some());
    assert_eq!(report.url, format!("{}/owner/tiny", hub.address));
    assert_eq!(report.left_out, [".lock", "logs/", "optimizer.safetensors", "train.jsonl"]);
    let names = [
        "LICENSE",
        "README.md",
        "additional_chat_templates/tools.jinja",
        "config.json",
        "model.safetensors",
    ];
    assert_eq!(outcomes(&report), names.map(|name| (name, Pushed::Sent)));
    for name in names {
        let read = |folder| fs_err::read(desk.at(folder).join(name)).unwrap();
        assert!(read("hub") == read("model"), "{name}");
    }

    // By our own client.
    let repository = Repository::parse(Kind::Model, "owner/tiny").unwrap();
    let fetched = Hub::new(&desk.settings(&hub)).unwrap().model(&repository, &is_wanted).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let expected = fs_err::read(desk.at("model").join(name)).unwrap();
        assert!(fs_err::read(fetched.join(name)).unwrap() == expected);
    }

    let again = desk.push(&hub).unwrap();
    assert!(!again.created && !again.committed && again.commit.is_none());
    assert_eq!(outcomes(&again), names.map(|name| (name, Pushed::Unchanged)));
    assert_eq!((asked(&hub, "PUT", ""), asked(&hub, "POST", "/commit/")), (1, 1));

    // Bytes that the hub knows get another name.
    fs_err::rename(desk.at("model/model.safetensors"), desk.at("model/model-1.safetensors"))
        .unwrap();
    let renamed = desk.push(&hub).unwrap();
    assert!(outcomes(&renamed).contains(&("model-1.safetensors", Pushed::Known)));
    assert_eq!((asked(&hub, "PUT", ""), asked(&hub, "POST", "/commit/")), (1, 2));
}

/// A model in one file after one in shards, and after an adapter: what would be loaded in its place goes, and nothing else.
#[test]
fn weights_of_before_go() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    let before = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    let kept =
        ["model.fp16.safetensors", "notes.txt", "model-Q4_K_M.gguf", "vae/model.safetensors"];
    for name in before.iter().chain(&kept) {
        let path = desk.at("hub").join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, name).unwrap();
    }
    let report = desk.push(&hub).unwrap();
    assert_eq!(report.removed, before);
    let is_there = |name: &&str| desk.at("hub").join(name).exists();
    assert!(kept.iter().all(is_there) && !before.iter().any(is_there));
    assert!(desk.push(&hub).unwrap().removed.is_empty());

    // A GGUF file stands for itself, and an adapter leaves a model there.
    fs_err::write(desk.at("tiny.gguf"), "GGUF").unwrap();
    let report = desk.push_as(&desk.settings(&hub), "tiny.gguf", "main").unwrap();
    assert!(report.removed.is_empty());
    fs_err::create_dir(desk.at("adapter")).unwrap();
    fs_err::write(desk.at("hub/adapter_model.safetensors"), "old").unwrap();
    for name in
        ["adapter_config.json", "adapter_model.safetensors", "modeling_x.py", "model-q8.gguf"]
    {
        fs_err::write(desk.at("adapter").join(name), "{}").unwrap();
    }
    let report = desk.push_as(&desk.settings(&hub), "adapter", "main").unwrap();
    assert!(report.removed.is_empty() && desk.at("hub/model.safetensors").exists());
    assert_eq!(
        desk.push(&hub).unwrap().removed,
        ["adapter_config.json", "adapter_model.safetensors"]
    );
}

/// Weights that the repository ignores take no one's place.
#[test]
fn ignored_weights_remove_none() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    desk.push(&hub).unwrap();
    let good = desk.uploads().serve();
    let ignoring = FakeHub::serve(move |request: &HubRequest| {
        let reply = good(request);
        if !request.path.contains("/preupload/") {
            return reply;
        }
        let text = String::from_utf8(reply.body).unwrap();
        HubReply::new(200, text.replace("\"shouldIgnore\":false", "\"shouldIgnore\":true"))
    });
    fs_err::rename(
        desk.at("model/model.safetensors"),
        desk.at("model/model-00001-of-00001.safetensors"),
    )
    .unwrap();
    let report = desk.push(&ignoring).unwrap();
    assert!(report.removed.is_empty() && desk.at("hub/model.safetensors").exists());
}

/// The hub puts together what was sent, and says nothing for longer than it may between two parts of a file.
#[test]
fn an_answer_may_take_longer_than_a_pause_in_it() {
    let desk = Desk::new();
    let good = desk.uploads().serve();
    let hub = FakeHub::serve(move |request: &HubRequest| {
        if request.path.contains("/commit/") {
            std::thread::sleep(Duration::from_millis(900));
        }
        good(request)
    });
    let waits = Waits { more: Duration::from_millis(300), ..desk.settings(&hub).waits };
    let settings = Settings { waits, ..desk.settings(&hub) };
    assert!(desk.push_as(&settings, "model", "main").unwrap().committed);
}

#[test]
fn large_files_go_in_parts() {
    let desk = Desk::new();
    let hub = FakeHub::serve(Uploads { part_bytes: WEIGHTS / 12 - 1, ..desk.uploads() }.serve());
    let repository = Repository::parse(Kind::Model, "owner/tiny").unwrap();
    let settings = PushSettings { private: true, revision: "main".into(), message: "m".into() };
    let mut told = Vec::new();
    let mut observe = |event: PushEvent<'_>| {
        if let PushEvent::Bytes { file, done, total } = event {
            assert_eq!((file, total), ("model.safetensors", WEIGHTS as u64));
            told.push(done);
        }
    };
    let model = desk.at("model");
    push_to(&desk.settings(&hub), &repository, &model, &settings, &mut observe).unwrap();
    assert_eq!(asked(&hub, "PUT", "/parts/"), 13);
    assert!(told.is_sorted() && told.last() == Some(&(WEIGHTS as u64)));
    let read = |folder| fs_err::read(desk.at(folder).join("model.safetensors")).unwrap();
    assert!(read("hub") == read("model"));
}

#[test]
fn what_breaks_off_is_sent_again() {
    let check = |method: &'static str, part: &'static str, parts: usize| {
        let desk = Desk::new();
        let good = Uploads { part_bytes: parts, ..desk.uploads() }.serve();
        let failures = AtomicUsize::new(0);
        let hub = FakeHub::serve(move |request| {
            let is_it = request.method == method && request.path.contains(part);
            if is_it && failures.fetch_add(1, Ordering::Relaxed) < 2 {
                return HubReply::new(503, "");
            }
            good(request)
        });
        assert!(desk.push(&hub).unwrap().committed, "{part}");
    };
    check("POST", "/create", usize::MAX);
    check("POST", "/preupload/", usize::MAX);
    check("POST", "/batch", usize::MAX);
    check("PUT", "/objects/", usize::MAX);
    check("PUT", "/parts/", WEIGHTS / 2);
    check("POST", "/complete/", WEIGHTS / 2);
    check("POST", "/verify", WEIGHTS / 2);
}

#[test]
fn a_commit_is_asked_for_once() {
    let desk = Desk::new();
    let hub = spoilt(&desk, "/commit/", HubReply::new(502, ""));
    let error = desk.error(&hub);
    assert!(error.starts_with("the hub did not say whether it committed"), "{error}");
    assert_eq!(asked(&hub, "POST", "/commit/"), 1);
}

#[test]
fn files_that_change_meanwhile_are_refused() {
    let check = |part: &'static str, parts: usize, change: fn(&Path)| {
        let desk = Desk::new();
        let good = Uploads { part_bytes: parts, ..desk.uploads() }.serve();
        let file = desk.at("model/model.safetensors");
        let hub = FakeHub::serve(move |request| {
            if request.path.contains(part) {
                change(&file);
            }
            good(request)
        });
        let error = desk.error(&hub);
        assert!(error.contains("model.safetensors: changed while it was read"), "{error}");
        assert_eq!(asked(&hub, "POST", "/commit/"), 0);
    };
    // Between the checksum and the sending.
    check("/batch", usize::MAX, |file| fs_err::write(file, "short").unwrap());
    check("/batch", WEIGHTS / 3, |file| fs_err::write(file, "short").unwrap());
    check("/batch", WEIGHTS / 3, |file| fs_err::write(file, vec![1; 2 * WEIGHTS]).unwrap());
    // Of the same size, found out by the checksum of what was sent.
    let hub_takes_anything = |desk: &Desk| {
        let file = desk.at("model/model.safetensors");
        let good = desk.uploads().serve();
        FakeHub::serve(move |request| {
            if request.path.contains("/batch") {
                let modified = fs_err::metadata(&file).unwrap().modified().unwrap();
                fs_err::write(&file, vec![1; WEIGHTS]).unwrap();
                let written = fs_err::OpenOptions::new().write(true).open(&file).unwrap();
                written.file().set_modified(modified).unwrap();
            }
            if request.method == "PUT" { HubReply::new(200, "") } else { good(request) }
        })
    };
    let desk = Desk::new();
    let error = desk.error(&hub_takes_anything(&desk));
    assert!(error.contains("model.safetensors: changed while it was read"), "{error}");
    // After it was sent.
    check("/verify", usize::MAX, |file| fs_err::write(file, "short").unwrap());
}

#[test]
fn refusals_say_what_to_do() {
    let check = |part: &'static str, reply: HubReply, message: &str| {
        let desk = Desk::new();
        let hub = spoilt(&desk, part, reply);
        let error = desk.error(&hub);
        assert!(error.contains(message), "{error}");
        assert!(!desk.at("hub/config.json").exists());
    };
    let write = "write access to the repository";
    check(
        "/create",
        HubReply::new(400, r#"{"error": "a bad\nname"}"#),
        "(the hub says: a bad name)",
    );
    check("/create", HubReply::new(429, ""), "too many requests");
    check("/preupload", HubReply::new(401, ""), write);
    check("/preupload", HubReply::new(403, r#"{"error": "No."}"#), "(the hub says: No.)");
    check("/preupload", HubReply::new(404, ""), "is not there");
    check("/preupload", HubReply::new(200, "[]"), "its answer is not understood");
    check("/preupload", HubReply::new(200, r#"{"files": []}"#), "does not say how `");
    check("/batch", HubReply::new(200, r#"{"objects": []}"#), "does not say where `model");
    check("/batch", HubReply::redirect("/elsewhere"), "answers 302");
    check(
        "/batch",
        HubReply { status: 307, ..HubReply::redirect("http://127.0.0.1:1") },
        "another host",
    );
    check("signature=", HubReply::new(403, ""), "the storage answers 403");
    check("signature=", HubReply::new(500, ""), "http status: 500");
    check("/verify", HubReply::new(404, ""), "is not there");
    check("/commit", HubReply::new(400, r#"{"error": "bad card"}"#), "bad card");
}

/// A header of the one large file's upload.
fn header<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    &mut object["actions"]["upload"]["header"][name]
}

#[test]
fn a_hub_that_says_strange_things_is_refused() {
    let check = |spoil: fn(&mut Value), message: &str| {
        let desk = Desk::new();
        let good = Uploads { part_bytes: WEIGHTS / 2, ..desk.uploads() }.serve();
        let hub = FakeHub::serve(move |request| {
            let reply = good(request);
            if !request.path.contains("/batch") {
                return reply;
            }
            let mut told: Value = serde_json::from_slice(&reply.body).unwrap();
            spoil(&mut told["objects"][0]);
            HubReply::new(200, told.to_string())
        });
        let error = desk.error(&hub);
        assert!(error.contains(message), "{error}");
        assert_eq!(asked(&hub, "POST", "/commit/"), 0);
    };
    check(|object| object["error"] = json!({"code": 413, "message": "too large"}), "too large");
    check(|object| object["actions"] = json!({"upload": 1}), "what is not understood");
    check(
        |object| object["actions"]["upload"]["href"] = "file:///etc".into(),
        "malformed or less safe",
    );
    check(|object| *header(object, "chunk_size") = 0.into(), "parts that do not fit");
    check(|object| *header(object, "chunk_size") = "x".into(), "parts that do not fit");
    check(|object| *header(object, "00003") = "http://127.0.0.1:1".into(), "parts that do not fit");
}

#[test]
fn names_tokens_and_branches() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    let with =
        |token: Option<&str>| Settings { token: token.map(str::to_owned), ..desk.settings(&hub) };
    let error = desk.push_as(&with(None), "model", "main").unwrap_err();
    assert!(error.contains("pushing needs a token; set HF_TOKEN"), "{error}");
    let offline = Settings { offline: true, ..desk.settings(&hub) };
    let error = desk.push_as(&offline, "model", "main").unwrap_err();
    assert!(error.contains("HF_HUB_OFFLINE forbids pushing"), "{error}");
    for branch in ["", "..", "a//b"] {
        let error = desk.push_as(&with(Some(TOKEN)), "model", branch).unwrap_err();
        assert!(error.contains("is no branch's name"), "{error}");
    }
    assert!(hub.requests().is_empty());
    let error = desk.push_as(&with(Some("wrong")), "model", "main").unwrap_err();
    assert!(error.contains("set HF_TOKEN to one with write access"), "{error}");
    assert!(!desk.at("hub").exists());
    let error = desk.push_as(&with(Some(TOKEN)), "model", "draft/1").unwrap_err();
    assert!(error.contains("draft%2F1: has no such branch"), "{error}");

    let settings = PushSettings { private: false, revision: "main".into(), message: "m".into() };
    for name in ["tiny", "a/b/c", "owner/", "../x"] {
        let error = push(&desk.at("model"), name, &settings, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("is no repository's name; give OWNER/NAME"), "{error}");
    }
}

#[test]
fn private_means_private() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    desk.push(&hub).unwrap();
    let error = Desk { private: true, ..desk }.error(&hub);
    assert!(error.contains("owner/tiny`: is public; make it private"), "{error}");

    let desk = Desk { private: true, ..Desk::new() };
    let hub = FakeHub::serve(desk.uploads().serve());
    assert!(desk.push(&hub).unwrap().created);
    assert!(!desk.push(&hub).unwrap().created);
}

/// A token for one repository may make none, but may write to that one.
#[test]
fn a_repository_that_may_not_be_made_may_be_there() {
    let desk = Desk::new();
    let no = HubReply::new(403, r#"{"error": "not yours"}"#);
    fs_err::create_dir(desk.at("hub")).unwrap();
    assert!(!desk.push(&spoilt(&desk, "/create", no.clone())).unwrap().created);
    let desk = Desk::new();
    let hub = spoilt(&desk, "/create", no);
    let error = desk.error(&hub);
    assert!(error.contains("api/repos/create") && error.contains("not yours"), "{error}");
}

#[test]
fn only_models_are_pushed() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    let settings = desk.settings(&hub);
    let error = |what: &str| desk.push_as(&settings, what, "main").unwrap_err();
    fs_err::create_dir_all(desk.at("empty")).unwrap();
    assert!(error("empty").contains("nothing to push; give a folder"));
    assert!(error("").contains("holds models, and is none; push `"), "{}", error(""));
    assert!(error("none").contains("none"));
    assert!(error("model/README.md").contains("neither a folder nor a .gguf file"));
    fs_err::rename(desk.at("model/model.safetensors"), desk.at("weights")).unwrap();
    assert!(error("model").contains("neither `model.safetensors` nor"), "{}", error("model"));
    desk.write("pytorch_model.bin", "");
    assert!(error("model").contains("convert it once with transformers"));
    desk.write("model.safetensors.index.json", r#"{"weight_map": {"a": "w-1.safetensors"}}"#);
    assert!(error("model").contains("shard `w-1.safetensors` is missing"));
    desk.write("w-1.safetensors", "weights");
    fs_err::os::unix::fs::symlink(desk.at("weights"), desk.at("model/NOTICE")).unwrap();
    assert!(error("model").contains("a link out of the model's folder"));
    assert!(hub.requests().is_empty());
    fs_err::remove_file(desk.at("model/NOTICE")).unwrap();
    desk.write("ignored.jinja", "");
    let report = desk.push_as(&settings, "model", "main").unwrap();
    assert!(outcomes(&report).contains(&("w-1.safetensors", Pushed::Sent)));
    assert!(report.left_out.contains(&"ignored.jinja".into()));

    let desk = Desk::new();
    let hub = FakeHub::serve(desk.uploads().serve());
    fs_err::write(desk.at("a b.gguf"), vec![7; 2000]).unwrap();
    desk.push_as(&desk.settings(&hub), "a b.gguf", "main").unwrap();
    assert_eq!(fs_err::read(desk.at("hub/a b.gguf")).unwrap(), [7; 2000]);
}
