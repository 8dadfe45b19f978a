//! Models by hub name, from a hub on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Desk, text};

/// Serves one model as `owner/tiny`; returns the address.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = answer(stream.unwrap(), &folder);
        }
    });
    address
}

/// One request, answered as the hub answers: the list of files, or (a part of) a file.
fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if let Some(bytes) = line.strip_prefix("range: bytes=") {
            range = Some(bytes.to_owned());
        }
        if line.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, body, more) = if path == "/api/models/owner/tiny/revision/main" {
        let files: Vec<_> = fs_err::read_dir(folder)?
            .map(|entry| json!({"rfilename": entry.unwrap().file_name().to_string_lossy()}))
            .collect();
        (
            "200 OK",
            json!({"siblings": files, "sha": "0123"}).to_string().into_bytes(),
            String::new(),
        )
    } else if let Some(name) = path.strip_prefix("/owner/tiny/resolve/main/") {
        let bytes = fs_err::read(folder.join(name))?;
        let (first, last) = match range.as_deref().and_then(|range| range.split_once('-')) {
            Some((first, last)) => {
                (first.parse().unwrap_or(0), last.parse().unwrap_or(bytes.len() - 1))
            }
            None => (0, bytes.len() - 1),
        };
        let more = format!(
            "content-range: bytes {first}-{last}/{}\r\nx-repo-commit: 0123\r\netag: \"{name}\"\r\n",
            bytes.len()
        );
        ("206 Partial Content", bytes[first..=last].to_vec(), more)
    } else {
        ("404 Not Found", Vec::new(), String::new())
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n",
        body.len()
    )?;
    stream.write_all(&body)
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
    let address = serve(desk.at("model"));
    let run = |arguments: &str, address: &str| {
        let mut command = desk.command(arguments);
        command.env("HF_ENDPOINT", address).env("HF_HOME", desk.at("cache")).env_remove("HF_TOKEN");
        command.output().unwrap()
    };
    // An estimate needs no weights.
    let output =
        run("estimate --model owner/tiny --train train.jsonl --device cpu --json", &address);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["memory_bytes"].as_u64().unwrap() > 0);
    assert!(find(&desk.at("cache"), "config.json") && !find(&desk.at("cache"), ".safetensors"));

    let output = run("eval --model owner/tiny --data test.jsonl --device cpu --json", &address);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["rows"], 10);

    let output = run("inspect owner/other", &address);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("`owner/other` is neither a folder here nor a model"), "{message}");
}
