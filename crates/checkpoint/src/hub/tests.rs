use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{FakeHub, HubReply, HubRequest, repository, temporary_folder};

use super::settings::Waits;
use super::*;

/// A cache, and the files of a repository that a hub may serve.
struct Desk {
    folder: Box<dyn AsRef<Path>>,
}

const WEIGHTS: usize = 300_000;

impl Desk {
    fn new() -> Self {
        let folder = temporary_folder();
        let files = folder.path().join("files");
        fs_err::create_dir_all(files.join("onnx")).unwrap();
        let weights: Vec<u8> = (0..WEIGHTS).map(|i| (i * i % 251) as u8).collect();
        fs_err::write(files.join("model.safetensors"), weights).unwrap();
        fs_err::write(files.join("config.json"), "{}").unwrap();
        fs_err::write(files.join("onnx/model.safetensors"), "other").unwrap();
        Self { folder: Box::new(folder) }
    }

    fn at(&self, name: &str) -> PathBuf {
        (*self.folder).as_ref().join(name)
    }

    fn good(&self) -> impl Fn(&HubRequest) -> HubReply + Send + use<> {
        repository("owner/tiny", &self.at("files"))
    }

    fn settings(&self, address: &str) -> Settings {
        Settings {
            endpoint: address.to_owned(),
            token: Some("secret".into()),
            cache: self.at("cache"),
            offline: false,
            waits: Waits { pause: Duration::ZERO, ..Waits::USUAL },
        }
    }

    fn offline(&self) -> Settings {
        Settings { offline: true, ..self.settings("http://127.0.0.1:1") }
    }

    /// Fetches the model; the error is the whole chain.
    fn fetch(&self, address: &str) -> Result<PathBuf, String> {
        fetch(&self.settings(address))
    }

    /// Whatever lies below the desk but for the repository's files and locks.
    fn cached(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.at(""), &self.at(""), &mut found);
        found.retain(|path| !path.starts_with("files/") && !path.contains(".locks"));
        found.sort();
        found
    }
}

fn fetch(settings: &Settings) -> Result<PathBuf, String> {
    let repository = Repository::parse(Kind::Model, "owner/tiny").unwrap();
    Hub::new(settings).and_then(|hub| hub.model(&repository, &is_wanted)).map_err(chain)
}

fn data(settings: &Settings, name: &str) -> Result<Vec<PathBuf>, String> {
    Hub::new(settings).and_then(|hub| hub.data(name)).map_err(chain)
}

const MAIN_LIST: &str = "/api/datasets/owner/rows/revision/main";
const CONVERTED_LIST: &str = "/api/datasets/owner/rows/revision/refs%2Fconvert%2Fparquet";

/// A hub's list of files.
fn list_of(commit: &str, files: &[&str], card: Value) -> HubReply {
    let siblings: Vec<_> = files.iter().map(|file| json!({"rfilename": file})).collect();
    let list = json!({"sha": commit, "siblings": siblings, "cardData": card});
    HubReply::new(200, list.to_string())
}

/// An error and what caused it, as the program prints them.
pub(super) fn chain(error: CheckpointError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn list(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            list(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
        }
    }
}

/// Serves the repository with the answers for one file changed.
fn spoilt(
    desk: &Desk,
    path_end: &'static str,
    spoil: impl Fn(HubReply) -> HubReply + Send + 'static,
) -> FakeHub {
    let good = desk.good();
    FakeHub::serve(move |request| {
        let reply = good(request);
        if request.path.ends_with(path_end) { spoil(reply) } else { reply }
    })
}

const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

#[test]
fn fetched_once_into_the_usual_layout() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.good());
    let folder = desk.fetch(&hub.address).unwrap();
    assert_eq!(folder, desk.at("cache/models--owner--tiny/snapshots").join(COMMIT));
    for file in ["config.json", "model.safetensors"] {
        let link = fs_err::read_link(folder.join(file)).unwrap();
        assert!(link.starts_with("../../blobs"), "{}", link.display());
        let expected = fs_err::read(desk.at("files").join(file)).unwrap();
        assert!(fs_err::read(folder.join(file)).unwrap() == expected);
    }
    assert!(!folder.join("onnx").exists());
    let reference = desk.at("cache/models--owner--tiny/refs/main");
    assert_eq!(fs_err::read_to_string(reference).unwrap(), COMMIT);

    let asked = hub.requests().len();
    assert_eq!(desk.fetch(&hub.address).unwrap(), folder);
    assert_eq!(hub.requests().len(), asked + 1, "only the list is asked for again");
}

#[test]
fn what_belongs_to_a_model_is_wanted() {
    for file in [
        "config.json",
        "model-00001-of-00002.safetensors",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "modeling_step.py",
    ] {
        assert!(is_wanted(file), "{file}");
    }
    for file in [
        "consolidated.safetensors",
        "onnx/model.safetensors",
        "additional_chat_templates/more/x.jinja",
        "additional_chat_templates/x.py",
        "train.py",
        "pytorch_model.bin",
    ] {
        assert!(!is_wanted(file), "{file}");
    }
}

/// Where some of a later commit was wanted, the whole earlier one is still what the cache has.
#[test]
fn a_part_does_not_take_the_place_of_the_whole() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.good());
    let repository = Repository::parse(Kind::Model, "owner/tiny").unwrap();
    let configuration = |settings: &Settings| {
        let wanted = |file: &str| is_wanted(file) && !file.ends_with(".safetensors");
        Hub::new(settings).unwrap().model(&repository, &wanted).unwrap()
    };
    let settings = desk.settings(&hub.address);
    let folder = configuration(&settings);
    assert_eq!(configuration(&desk.offline()), folder);
    assert!(fetch(&desk.offline()).unwrap_err().contains("has no weights in the cache"));
    let before = desk.at("cache/models--owner--tiny/refs/main");
    fs_err::write(&before, "earlier").unwrap();
    let earlier = desk.at("cache/models--owner--tiny/snapshots/earlier");
    fs_err::create_dir(&earlier).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::write(earlier.join(name), "{}").unwrap();
    }
    assert_eq!(configuration(&settings), folder);
    assert_eq!(fetch(&desk.offline()).unwrap(), earlier);
    assert_eq!(fetch(&settings).unwrap(), folder);
    assert_eq!(fetch(&desk.offline()).unwrap(), folder);
}

/// A cache that has all of it is not written to.
#[test]
fn a_whole_cache_may_be_read_only() {
    use std::os::unix::fs::PermissionsExt;

    let desk = Desk::new();
    let hub = FakeHub::serve(desk.good());
    let folder = desk.fetch(&hub.address).unwrap();
    fs_err::remove_dir_all(desk.at("cache/.locks")).unwrap();
    let before = desk.cached();
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        fs_err::set_permissions(desk.at("cache"), permissions).unwrap();
    };
    mode(0o555);
    let found = desk.fetch(&hub.address);
    mode(0o755);
    assert_eq!(found.unwrap(), folder);
    // Whoever may write everywhere has not written either.
    assert!(!desk.at("cache/.locks").exists() && desk.cached() == before);
}

/// As the processes of one training do.
#[test]
fn several_fetch_at_once() {
    let desk = Desk::new();
    let hub = FakeHub::serve(desk.good());
    let settings = desk.settings(&hub.address);
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..8).map(|_| scope.spawn(|| fetch(&settings).unwrap())).collect();
        started.into_iter().map(|fetching| fetching.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    for name in ["config.json", "model.safetensors"] {
        let path = folders[0].join(name);
        assert!(fs_err::symlink_metadata(&path).unwrap().is_symlink());
        assert!(fs_err::read(path).unwrap() == fs_err::read(desk.at("files").join(name)).unwrap());
    }
}

#[test]
fn what_other_tools_fetched_is_found_without_a_network() {
    let desk = Desk::new();
    let repository = desk.at("cache/models--owner--tiny");
    let snapshot = repository.join("snapshots/abc");
    fs_err::create_dir_all(&snapshot).unwrap();
    fs_err::create_dir_all(repository.join("refs")).unwrap();
    let settings = desk.offline();
    let message = fetch(&settings).unwrap_err();
    assert!(message.contains("HF_HUB_OFFLINE forbids"), "{message}");
    let message = desk.fetch("http://127.0.0.1:1").unwrap_err();
    assert!(message.contains("no answer from http://127.0.0.1:1/api/models"), "{message}");

    fs_err::write(repository.join("refs/main"), "abc").unwrap();
    fs_err::write(snapshot.join("config.json"), "{}").unwrap();
    let message = fetch(&settings).unwrap_err();
    assert!(message.contains("has no weights in the cache"), "{message}");
    fs_err::write(snapshot.join("model.safetensors"), "").unwrap();
    assert_eq!(fetch(&settings).unwrap(), snapshot);
    assert_eq!(desk.fetch("http://127.0.0.1:1").unwrap(), snapshot);
    // A branch that leads out is none.
    fs_err::write(repository.join("refs/main"), "../../../files").unwrap();
    assert!(fetch(&settings).is_err());
}

#[test]
fn headers_do_not_lead_out_of_the_cache() {
    let check = |path_end, header: &'static str, value: &'static str, message: &str| {
        let desk = Desk::new();
        let hub = spoilt(&desk, path_end, move |reply| reply.header(header, value));
        let found = desk.fetch(&hub.address).unwrap_err();
        assert!(found.contains(message), "{found}");
        assert!(desk.cached().is_empty(), "{:?}", desk.cached());
    };
    for etag in ["\"../../../../evil\"", "/etc/evil", "..", "a/b", "a\\b", ""] {
        check("config.json", "etag", etag, "is not usable as a file's name");
    }
    let evil = "its ETag `../../evil` is not usable as a file's name";
    check("config.json", "x-linked-etag", "\"../../evil\"", evil);
    check("config.json", "x-repo-commit", "../../evil", "is of another commit");

    let check_listing = |listing: &'static str, message: &str| {
        let desk = Desk::new();
        let hub = spoilt(&desk, "revision/main", move |_| HubReply::new(200, listing));
        let found = desk.fetch(&hub.address).unwrap_err();
        assert!(found.contains(message), "{found}");
        assert!(desk.cached().is_empty(), "{:?}", desk.cached());
    };
    let commit = "is not a commit";
    check_listing(r#"{"sha": "../../evil", "siblings": []}"#, commit);
    check_listing(r#"{"sha": "/tmp/evil", "siblings": []}"#, commit);
    check_listing(r#"{"sha": "", "siblings": []}"#, commit);
    let out = "leads out of its folder";
    check_listing(r#"{"sha": "0", "siblings": [{"rfilename": "../evil.json"}]}"#, out);
    check_listing(r#"{"sha": "0", "siblings": [{"rfilename": "/evil.json"}]}"#, out);
    check_listing(r#"{"sha": "0", "siblings": [{"rfilename": "..\\evil.json"}]}"#, out);
    let desk = Desk::new();
    let no_etag = spoilt(&desk, "config.json", |mut reply| {
        reply.headers.retain(|(name, _)| name != "etag");
        reply
    });
    let message = desk.fetch(&no_etag.address).unwrap_err();
    assert!(message.ends_with("config.json: gives no ETag; is this a hub?"), "{message}");
    check_listing("[", "not a list of files");
    check_listing(r#"{"sha": "0", "siblings": []}"#, "is it a model?");
}

#[test]
fn redirects_end() {
    let desk = Desk::new();
    let hub = FakeHub::serve(|_| HubReply::redirect("/again"));
    let message = desk.fetch(&hub.address).unwrap_err();
    assert!(message.ends_with("redirects more than 5 times"), "{message}");
    assert_eq!(hub.requests().len(), 6);

    for to in ["file:///etc/passwd", "ftp://a/b", "http://", ""] {
        let hub = FakeHub::serve(move |_| HubReply::redirect(to).header("location", to));
        let message = desk.fetch(&hub.address).unwrap_err();
        let bad = "redirects to an address that is missing, malformed or less safe";
        assert!(
            message.contains(if to.is_empty() { "more than 5 times" } else { bad }),
            "{message}"
        );
    }
}

#[test]
fn the_token_goes_to_the_first_host_alone() {
    let desk = Desk::new();
    let elsewhere = FakeHub::serve(desk.good());
    let to = format!("{}/owner/tiny/resolve/main/model.safetensors", elsewhere.address);
    let hub = spoilt(&desk, "model.safetensors", move |mut reply| {
        reply.headers.push(("location".into(), to.clone()));
        HubReply { status: 302, body: Vec::new(), ..reply }
    });
    desk.fetch(&hub.address).unwrap();
    let sent = |hub: &FakeHub| -> Vec<Option<String>> {
        hub.requests().iter().map(|asked| asked.headers.get("authorization").cloned()).collect()
    };
    assert_eq!(sent(&elsewhere), [None]);
    assert!(sent(&hub).iter().all(|token| token.as_deref() == Some("Bearer secret")));
}

#[test]
fn bad_bodies_are_not_kept() {
    let check = |path_end, spoil: fn(HubReply) -> HubReply, message: &str| {
        let desk = Desk::new();
        let hub = spoilt(&desk, path_end, spoil);
        let found = desk.fetch(&hub.address).unwrap_err();
        assert!(found.contains(message), "{found}");
        let kept = desk.cached();
        assert!(!kept.iter().any(|path| path.ends_with(path_end)), "{kept:?}");
        assert!(!kept.iter().any(|path| path.ends_with(".incomplete")), "{kept:?}");
        // The next time, from a good hub, it is fetched.
        let hub = FakeHub::serve(desk.good());
        let folder = desk.fetch(&hub.address).unwrap();
        let name = Path::new(path_end);
        let good = fs_err::read(desk.at("files").join(name)).unwrap();
        assert!(fs_err::read(folder.join(name)).unwrap() == good);
    };
    let zeros: fn(HubReply) -> HubReply =
        |reply| HubReply { body: vec![0; reply.body.len()], ..reply };
    check("model.safetensors", zeros, "differ from their checksum");
    check("config.json", zeros, "differ from their checksum");
    check(
        "config.json",
        |reply| HubReply { body: vec![0; 9], ..reply }.header("etag", "\"no-checksum\""),
        "nothing but zeros",
    );
    check(
        "model.safetensors",
        |reply| HubReply { body: vec![1; 9], ..reply },
        "gave 9 bytes where 300000 were due",
    );
    check(
        "model.safetensors",
        |reply| HubReply { body: vec![1; WEIGHTS + 7], ..reply },
        "gave 300001 bytes where 300000 were due",
    );
}

#[test]
fn what_breaks_off_goes_on() {
    let desk = Desk::new();
    let good = desk.good();
    let times = AtomicUsize::new(0);
    let hub = FakeHub::serve(move |request| {
        let mut reply = good(request);
        if request.path.ends_with("model.safetensors") && times.fetch_add(1, Ordering::Relaxed) == 0
        {
            reply.length = Some(WEIGHTS);
            reply.body.truncate(WEIGHTS / 3);
        }
        reply
    });
    let folder = desk.fetch(&hub.address).unwrap();
    let expected = fs_err::read(desk.at("files/model.safetensors")).unwrap();
    assert!(fs_err::read(folder.join("model.safetensors")).unwrap() == expected);
    let ranges: Vec<_> =
        hub.requests().iter().filter_map(|asked| asked.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [format!("bytes={}-", WEIGHTS / 3)]);
}

#[test]
fn refusals_say_what_to_do() {
    let check = |status, message: &str| {
        let desk = Desk::new();
        let hub = FakeHub::serve(move |_| HubReply::new(status, ""));
        let found = desk.fetch(&hub.address).unwrap_err();
        assert!(found.contains(message), "{found}");
    };
    check(401, "set HF_TOKEN");
    check(404, "is not there");
    check(503, "http status: 503");
    check(418, "answers 418");
    let mut settings = Desk::new().settings("nonsense");
    assert!(fetch(&settings).unwrap_err().contains("HF_ENDPOINT must be an address"));
    settings.endpoint = "http://127.0.0.1:1".into();
    settings.token = Some("a\r\nb: c".into());
    assert!(fetch(&settings).unwrap_err().contains("HF_TOKEN holds characters"));
}

#[test]
fn data_sets_by_name() {
    let desk = Desk::new();
    let files: BTreeMap<&str, &str> =
        [("data/train.jsonl", "{}\n"), ("data/test.jsonl", "{ }\n")].into();
    for (file, text) in &files {
        let path = desk.at("rows").join(file);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }
    let hub = FakeHub::serve(repository("datasets/owner/rows", &desk.at("rows")));
    let find = |name: &str| data(&desk.settings(&hub.address), name);
    let found = find("hub:owner/rows:test").unwrap();
    let snapshots = desk.at("cache/datasets--owner--rows/snapshots");
    assert_eq!(found, [snapshots.join(COMMIT).join("data/test.jsonl")]);
    assert_eq!(fs_err::read_to_string(&found[0]).unwrap(), "{ }\n");
    assert!(!snapshots.join(COMMIT).join("data/train.jsonl").exists());
    assert!(find("hub:owner/rows").unwrap_err().contains("several splits, `test`, `train`"));
    assert!(find("hub:owner/none").unwrap_err().contains("is not there"));
    assert!(find("hub:rows").unwrap_err().contains("is not hub:owner/name"));
}

#[test]
fn what_the_hub_converted_is_taken_where_nothing_else_is_readable() {
    let desk = Desk::new();
    let hub = FakeHub::serve(move |request| match request.path.as_str() {
        MAIN_LIST => list_of("0", &["load.py"], Value::Null),
        CONVERTED_LIST => {
            let files = ["default/train/0000.parquet", "default/test/0000.parquet"];
            list_of("1", &files, Value::Null)
        }
        "/datasets/owner/rows/resolve/refs%2Fconvert%2Fparquet/default/test/0000.parquet" => {
            HubReply::new(200, "PAR1").header("etag", "\"a\"")
        }
        _ => HubReply::new(404, ""),
    });
    let expected = "cache/datasets--owner--rows/snapshots/1/default/test/0000.parquet";
    for settings in [desk.settings(&hub.address), desk.offline()] {
        let found = data(&settings, "owner/rows:test").unwrap();
        assert_eq!(found, [desk.at(expected)]);
    }
    let reference = desk.at("cache/datasets--owner--rows/refs/refs/convert/parquet");
    assert_eq!(fs_err::read_to_string(reference).unwrap(), "1");
}

#[test]
fn only_what_is_not_there_was_not_converted() {
    let check = |reply: HubReply, message: &str| {
        let desk = Desk::new();
        let hub = FakeHub::serve(move |request| match request.path.as_str() {
            MAIN_LIST => list_of("0", &["load.py"], Value::Null),
            _ => reply.clone(),
        });
        let found = data(&desk.settings(&hub.address), "owner/rows").unwrap_err();
        assert!(found.contains(message), "{found}");
    };
    check(HubReply::new(404, ""), "nor has the hub converted it");
    check(HubReply::new(401, ""), "set HF_TOKEN");
    check(HubReply::new(403, ""), "accept the terms");
    check(HubReply::new(429, ""), "too many requests");
    check(HubReply::new(200, "["), "not a list of files");
}

#[test]
fn a_data_set_means_the_same_without_a_network() {
    let desk = Desk::new();
    let card = json!({"license": "mit", "configs": [
        {"config_name": "plain", "data_files": "a/*.jsonl"},
        {"config_name": "more", "data_files": "b/*.jsonl"},
    ]});
    let hub = FakeHub::serve(move |request| match request.path.as_str() {
        MAIN_LIST => list_of("0", &["a/1.jsonl", "a/2.jsonl", "b/1.jsonl"], card.clone()),
        path => HubReply::new(200, "{}\n").header("etag", &path.replace('/', "-")[1..]),
    });
    let online = desk.settings(&hub.address);
    let (offline, cut_off) = (desk.offline(), desk.settings("http://127.0.0.1:1"));
    let files = data(&online, "owner/rows:plain").unwrap();
    assert_eq!(files.len(), 2);
    let several = data(&online, "owner/rows").unwrap_err();
    assert!(several.contains("several configurations, `more`, `plain`"), "{several}");
    for settings in [&offline, &cut_off] {
        assert_eq!(data(settings, "owner/rows:plain").as_ref(), Ok(&files));
        assert_eq!(data(settings, "owner/rows").as_ref(), Err(&several));
        let message = data(settings, "owner/rows:more").unwrap_err();
        assert!(message.contains("`b/1.jsonl` is not in the cache"), "{message}");
    }

    // A list that leads out of the cache is not used.
    let kept = desk.at("cache/datasets--owner--rows/listings/0.json");
    let mut list = testkit::json(&kept);
    list["files"][0] = json!("../../../../../secret.jsonl");
    fs_err::write(kept, list.to_string()).unwrap();
    let message = data(&offline, "owner/rows:plain").unwrap_err();
    assert!(message.contains("not the list of this commit's files"), "{message}");
}

#[test]
fn data_that_other_tools_fetched_are_taken_if_their_readme_lets_names_count() {
    let check = |readme: Option<&str>, is_taken: bool| {
        let desk = Desk::new();
        let snapshot = desk.at("cache/datasets--owner--rows/snapshots/0");
        let reference = desk.at("cache/datasets--owner--rows/refs/main");
        for folder in [snapshot.as_path(), reference.parent().unwrap()] {
            fs_err::create_dir_all(folder).unwrap();
        }
        fs_err::write(reference, "0").unwrap();
        fs_err::write(snapshot.join("train.jsonl"), "{}\n").unwrap();
        if let Some(text) = readme {
            fs_err::write(snapshot.join("README.md"), text).unwrap();
        }
        match data(&desk.offline(), "owner/rows") {
            Ok(found) => assert_eq!((is_taken, found), (true, vec![snapshot.join("train.jsonl")])),
            Err(message) => {
                assert!(!is_taken && message.contains("without the list"), "{message}");
            }
        }
    };
    check(Some("# Rows\nconfigs"), true);
    check(Some("---\nlicense: mit\n---\nconfigs: below the head"), true);
    check(Some("---\nlicense: mit\nconfigs:\n- config_name: a\n---\n"), false);
    check(None, false);
}

#[test]
fn pickled_weights_are_refused_before_they_are_fetched() {
    let check = |files: &[&str], expected: Option<&str>| {
        let desk = Desk::new();
        fs_err::remove_dir_all(desk.at("files")).unwrap();
        fs_err::create_dir_all(desk.at("files/onnx")).unwrap();
        for file in files {
            fs_err::write(desk.at("files").join(file), "{}").unwrap();
        }
        let hub = FakeHub::serve(desk.good());
        let found = desk.fetch(&hub.address);
        match expected {
            None => assert!(found.is_ok(), "{found:?}"),
            Some(file) => {
                let message = found.unwrap_err();
                let reason = format!("owner/tiny: holds `{file}` and no safetensors; convert it");
                assert!(message.starts_with(&reason), "{message}");
                assert!(desk.cached().is_empty(), "{:?}", desk.cached());
            }
        }
    };
    check(&["config.json", "pytorch_model.bin"], Some("pytorch_model.bin"));
    let shards = ["config.json", "onnx/model.safetensors", "pytorch_model-00001-of-00002.bin"];
    check(&shards, Some("pytorch_model-00001-of-00002.bin"));
    check(&["config.json", "pytorch_model.bin", "model.safetensors"], None);
    check(&["adapter_config.json", "adapter_model.bin"], None);
    check(&["config.json"], None);
}
