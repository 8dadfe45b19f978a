//! Models to a hub on loopback, and back.

use std::process::{Command, Stdio};
use std::sync::mpsc;

use testkit::{FakeHub, Uploads};

use crate::support::{Desk, text};

/// The program with its hub at an address and a token that it takes.
fn pushing(desk: &Desk, arguments: &str, address: &str) -> Command {
    let mut command = desk.command(arguments);
    for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_TOKEN", "secret").env("HF_ENDPOINT", address).env("HF_HOME", desk.at("cache"));
    command
}

fn uploads(desk: &Desk) -> Uploads {
    Uploads {
        name: "owner/tiny".into(),
        token: "secret".into(),
        folder: desk.at("hub"),
        part_bytes: 100_000,
    }
}

#[test]
fn a_model_goes_to_the_hub_and_comes_back() {
    let desk = Desk::new();
    desk.write("model/.lock", "");
    desk.write("model/notes.txt", "mine");
    let hub = FakeHub::serve(uploads(&desk).serve());
    let push = |arguments: &str| {
        let command = format!("push model {arguments}");
        pushing(&desk, &command, &hub.address).output().unwrap()
    };
    let output = push("owner/tiny --private --message first");
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert!(told.contains("left out: .lock, notes.txt"), "{told}");
    assert!(told.contains("  config.json, ") && told.contains(": sent"), "{told}");
    assert!(
        said.contains(&format!("committed to {}/owner/tiny, branch main", hub.address)),
        "{said}"
    );
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let read = |folder: &str| fs_err::read(desk.at(folder).join(name)).unwrap();
        assert!(read("model") == read("hub"), "{name}");
    }
    assert!(!desk.at("hub/notes.txt").exists());

    let output = push("owner/tiny --json");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["committed"], &report["created"]), (&false.into(), &false.into()));
    let output = pushing(&desk, "inspect owner/tiny", &hub.address).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    for (arguments, reason) in [
        ("tiny", "`tiny`: is no repository's name; give OWNER/NAME"),
        ("owner/tiny --revision draft", "has no such branch; make it on the repository's page"),
        ("other/tiny", "does not let this token write; set HF_TOKEN"),
    ] {
        let output = push(arguments);
        let error = text(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(reason), "{error}");
    }
}

/// What was sent by then is not sent again.
#[test]
fn an_interrupted_push_commits_nothing() {
    let desk = Desk::new();
    let good = uploads(&desk).serve();
    let (sent, is_sent) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let hub = FakeHub::serve(move |request| {
        let reply = good(request);
        if request.path.starts_with("/verify") {
            let _ = sent.send(());
            let _ = may_go.recv(); // Once nobody sends, it goes on.
        }
        reply
    });
    let mut command = pushing(&desk, "push model owner/tiny", &hub.address);
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = quiet.spawn().unwrap();
    is_sent.recv().unwrap();
    // Not -INT, which whoever was started in the background ignores.
    let stop = ["-TERM".to_owned(), child.id().to_string()];
    assert!(Command::new("kill").args(stop).status().unwrap().success());
    assert!(!child.wait().unwrap().success());
    drop(go);
    let asked = |part: &str| hub.requests().iter().filter(|one| one.path.contains(part)).count();
    assert_eq!((asked("/commit/"), fs_err::read_dir(desk.at("hub")).unwrap().count()), (0, 0));

    let output = pushing(&desk, "push model owner/tiny", &hub.address).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(asked("/commit/") == 1 && desk.at("hub/model.safetensors").exists());
    let requests = hub.requests();
    let mut puts: Vec<_> =
        requests.iter().filter(|one| one.method == "PUT").map(|one| &one.path).collect();
    let all = puts.len();
    puts.sort();
    puts.dedup();
    assert_eq!(puts.len(), all);
}
