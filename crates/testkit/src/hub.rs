//! A hub on loopback, as good or as bad as a test wants it.

mod uploads;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub use uploads::Uploads;

/// The commit that [`repository`] is at.
const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// What a client asked.
#[derive(Debug, Clone)]
pub struct HubRequest {
    /// `GET`, `POST` or `PUT`.
    pub method: String,
    /// The path, as it was sent.
    pub path: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, as long as its header says.
    pub body: Vec<u8>,
}

/// What the hub says.
#[derive(Debug, Clone)]
pub struct HubReply {
    /// The status' number.
    pub status: u16,
    /// Headers but for the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The length that is claimed, where it is not the body's.
    pub length: Option<usize>,
}

impl HubReply {
    /// An answer with a body and no headers.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), length: None }
    }

    /// Sends the client on.
    pub fn redirect(to: &str) -> Self {
        Self::new(302, "").header("location", to)
    }

    /// With one header, in place of one of that name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server that answers until the tests end.
#[derive(Debug)]
pub struct FakeHub {
    /// Its address.
    pub address: String,
    requests: Arc<Mutex<Vec<HubRequest>>>,
}

impl FakeHub {
    /// Answers every request by a function.
    ///
    /// # Panics
    ///
    /// If loopback gives no port.
    pub fn serve(answer: impl Fn(&HubRequest) -> HubReply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(request) = read(&stream) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                    // A client may hang up.
                    let _ = write(stream, &answer(&request));
                }
            }
        });
        Self { address, requests }
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<HubRequest> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(stream: &TcpStream) -> std::io::Result<HubRequest> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut text = String::new();
        reader.read_line(&mut text).map(|_| text.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line()?.split_once(':') {
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?; // Nobody is answered whose body breaks off.
    let mut words = first.split(' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    Ok(HubRequest { method: word(), path: word(), headers, body })
}

fn write(mut stream: TcpStream, reply: &HubReply) -> std::io::Result<()> {
    let length = reply.length.unwrap_or(reply.body.len());
    let more: String =
        reply.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "HTTP/1.1 {} -\r\ncontent-length: {length}\r\nconnection: close\r\n{more}\r\n",
        reply.status
    )?;
    stream.write_all(&reply.body)
}

/// A well-behaved hub with the files below a folder as the repository `name` (`owner/tiny`, or
/// `datasets/owner/rows`): files of 1000 bytes and more by SHA-256 as large ones are, others by
/// git's SHA-1.
pub fn repository(name: &str, folder: &Path) -> impl Fn(&HubRequest) -> HubReply + Send + use<> {
    let folder = folder.to_owned();
    let api = match name.strip_prefix("datasets/") {
        Some(name) => format!("/api/datasets/{name}/revision/main"),
        None => format!("/api/models/{name}/revision/main"),
    };
    let resolve = format!("/{name}/resolve/main/");
    move |request| {
        if request.path == api {
            let files: Vec<_> =
                listing(&folder, "").into_iter().map(|file| json!({"rfilename": file})).collect();
            return HubReply::new(200, json!({"siblings": files, "sha": COMMIT}).to_string());
        }
        let file = request.path.strip_prefix(&resolve).map(|file| folder.join(file));
        match file.and_then(|file| fs_err::read(file).ok()) {
            Some(bytes) => contents(&bytes, request.headers.get("range").map(String::as_str)),
            None => HubReply::new(404, ""),
        }
    }
}

fn contents(bytes: &[u8], range: Option<&str>) -> HubReply {
    let start = range
        .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
        .unwrap_or(0);
    let reply = match bytes.get(start..) {
        Some(rest) if range.is_some() => {
            let span = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            HubReply::new(206, rest).header("content-range", &span)
        }
        _ => HubReply::new(200, bytes),
    };
    let reply = reply.header("x-repo-commit", COMMIT);
    let checksum = format!("\"{}\"", checksum(bytes));
    if !is_large(bytes.len()) {
        return reply.header("etag", &checksum);
    }
    reply
        .header("etag", "\"of-the-cdn\"")
        .header("x-linked-etag", &checksum)
        .header("x-linked-size", &bytes.len().to_string())
}

/// Whether a file of this size is a large one.
fn is_large(size: usize) -> bool {
    1000 <= size
}

/// What the hub knows a file by.
fn checksum(bytes: &[u8]) -> String {
    if is_large(bytes.len()) {
        return hex(&Sha256::digest(bytes));
    }
    let git = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes);
    hex(&git.finalize())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn listing(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let below = |path: PathBuf| {
        let name = format!("{prefix}{}", name(&path));
        if path.is_dir() { listing(&path, &format!("{name}/")) } else { vec![name] }
    };
    paths.into_iter().flat_map(below).collect()
}
