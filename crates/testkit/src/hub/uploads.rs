//! A hub that takes uploads, and checks every checksum, size and token that it is given.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{COMMIT, HubReply, HubRequest, checksum, hex, is_large, repository};

/// What the hub is like.
#[derive(Debug, Clone)]
pub struct Uploads {
    /// The only repository that may be made, `owner/tiny`. It has one branch, `main`.
    pub name: String,
    /// The only token that is taken.
    pub token: String,
    /// Where the repository's files come to lie; it is there once the repository is made.
    pub folder: PathBuf,
    /// Larger objects come in parts of this size.
    pub part_bytes: usize,
}

#[derive(Default)]
struct Stored {
    private: bool,
    /// What was announced: the first bytes and the size.
    announced: BTreeMap<String, (Vec<u8>, usize)>,
    objects: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, Vec<u8>>,
}

/// An answer, or why it is refused.
type Reply = Result<HubReply, (u16, String)>;

impl Uploads {
    /// Answers uploads, and downloads of what was committed as [`repository`] does.
    pub fn serve(self) -> impl Fn(&HubRequest) -> HubReply + Send {
        let served = repository(&self.name, &self.folder);
        let stored = Mutex::new(Stored::default());
        move |request| {
            let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
            let info = format!("/api/models/{}", self.name);
            match request.method.as_str() {
                "GET" if request.path != info => served(request),
                _ => self.answer(&mut stored, request).unwrap_or_else(|(status, why)| {
                    HubReply::new(status, json!({ "error": why }).to_string())
                }),
            }
        }
    }

    fn answer(&self, stored: &mut Stored, request: &HubRequest) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let token = request.headers.get("authorization");
        let steps: Vec<&str> = path.split('/').skip(1).collect();
        // Addresses of storage are signed; a token that comes there has leaked.
        if let "objects" | "parts" | "complete" = steps[0] {
            require(token.is_none(), 400, "a token came to the storage")?;
            return match steps.as_slice() {
                ["objects", oid] => take_object(stored, oid, request.body.clone()),
                ["complete", oid] => complete(stored, oid, &body(request)?),
                ["parts", oid, number] => {
                    stored.parts.insert(format!("{oid}/{number}"), request.body.clone());
                    Ok(HubReply::new(200, "").header("etag", &format!("\"{}\"", part_tag(number))))
                }
                _ => refuse(404, "no such address"),
            };
        }
        require(
            token == Some(&format!("Bearer {}", self.token)),
            401,
            "Invalid username or password.",
        )?;
        let is_there = self.folder.exists();
        let api = format!("/api/models/{}", self.name);
        if path == "/api/repos/create" {
            let asked = body(request)?;
            let name = format!("{}/{}", text(&asked["organization"]), text(&asked["name"]));
            require(name == self.name, 403, "You don't have the rights to create a model there")?;
            require(asked["type"] == "model", 400, "not a model")?;
            require(!is_there, 409, "You already created this model repo")?;
            fs_err::create_dir_all(&self.folder).map_err(failed)?;
            stored.private = asked["private"] == true;
            return Ok(HubReply::new(200, json!({"url": "…"}).to_string()));
        }
        require(is_there, 404, "Repository not found")?;
        if path == api {
            return Ok(HubReply::new(200, json!({"private": stored.private}).to_string()));
        }
        if path == format!("/{}.git/info/lfs/objects/batch", self.name) {
            return self.batch(stored, request);
        }
        match path.strip_prefix(&api) {
            Some("/preupload/main") => self.preupload(stored, &body(request)?),
            Some("/commit/main") => self.commit(stored, request),
            Some(_) => Ok(HubReply::new(404, "").header("x-error-code", "RevisionNotFound")),
            None => match steps.as_slice() {
                ["verify"] => verify(stored, &body(request)?),
                _ => refuse(404, "no such address"),
            },
        }
    }

    fn preupload(&self, stored: &mut Stored, asked: &Value) -> Reply {
        let mut files = Vec::new();
        for file in asked["files"].as_array().into_iter().flatten() {
            let (path, size) = (text(&file["path"]), size(&file["size"]));
            let sample = STANDARD.decode(text(&file["sample"])).map_err(failed)?;
            require(sample.len() == size.min(512), 400, "the sample is too short")?;
            stored.announced.insert(path.to_owned(), (sample, size));
            let mut told = json!({
                "path": path,
                "uploadMode": if is_large(size) { "lfs" } else { "regular" },
                "shouldIgnore": path.starts_with("ignored"),
            });
            if let Ok(bytes) = fs_err::read(self.folder.join(path)) {
                told["oid"] = checksum(&bytes).into();
            }
            files.push(told);
        }
        Ok(HubReply::new(200, json!({ "files": files }).to_string()))
    }

    fn batch(&self, stored: &Stored, request: &HubRequest) -> Reply {
        let (asked, kind) = (body(request)?, "application/vnd.git-lfs+json");
        let header = |name| request.headers.get(name).map(String::as_str);
        require(header("accept") == Some(kind), 406, "not asked for git-lfs's JSON")?;
        require(header("content-type") == Some(kind), 415, "not git-lfs's JSON")?;
        require(asked["operation"] == "upload" && asked["hash_algo"] == "sha256", 400, "odd")?;
        require(asked["ref"]["name"] == "main", 400, "another branch")?;
        let host = format!("http://{}", header("host").unwrap_or_default());
        let object = |asked: &Value| {
            let (oid, size) = (text(&asked["oid"]), size(&asked["size"]));
            let mut told = json!({"oid": oid, "size": size});
            if stored.objects.contains_key(oid) {
                return told;
            }
            let mut upload = json!({"href": format!("{host}/objects/{oid}?signature=a")});
            if self.part_bytes < size {
                let mut header = json!({"chunk_size": self.part_bytes.to_string()});
                for number in 1..=size.div_ceil(self.part_bytes) {
                    let address = format!("{host}/parts/{oid}/{number}?signature=a");
                    header[format!("{number:05}")] = address.into();
                }
                upload = json!({"href": format!("{host}/complete/{oid}"), "header": header});
            }
            told["actions"] =
                json!({"upload": upload, "verify": {"href": format!("{host}/verify")}});
            told
        };
        let objects: Vec<Value> =
            asked["objects"].as_array().into_iter().flatten().map(object).collect();
        Ok(HubReply::new(200, json!({ "objects": objects }).to_string()))
    }

    fn commit(&self, stored: &Stored, request: &HubRequest) -> Reply {
        let kind = request.headers.get("content-type").map(String::as_str);
        require(kind == Some("application/x-ndjson"), 415, "not lines of JSON")?;
        let lines: Result<Vec<Value>, _> = request
            .body
            .trim_ascii_end()
            .split(|&byte| byte == b'\n')
            .map(serde_json::from_slice)
            .collect();
        let lines = lines.map_err(failed)?;
        let Some((header, entries)) = lines.split_first() else { return refuse(400, "empty") };
        require(header["key"] == "header", 400, "no header")?;
        require(!text(&header["value"]["summary"]).is_empty(), 400, "no message")?;
        require(!entries.is_empty(), 400, "an empty commit")?;
        let (mut files, mut removed) = (Vec::new(), Vec::new());
        for entry in entries {
            let value = &entry["value"];
            let path = text(&value["path"]);
            if text(&entry["key"]) == "deletedFile" {
                let file = self.folder.join(path);
                require(file.is_file(), 400, "a file that is not there is deleted")?;
                removed.push(file);
                continue;
            }
            let bytes = match text(&entry["key"]) {
                "file" => STANDARD.decode(text(&value["content"])).map_err(failed)?,
                "lfsFile" => {
                    let object = stored.objects.get(text(&value["oid"])).cloned();
                    let object = object.ok_or((400, "an object is missing".to_owned()))?;
                    require(object.len() == size(&value["size"]), 400, "another size")?;
                    object
                }
                _ => return refuse(400, "an entry of no kind"),
            };
            let announced = stored.announced.get(path);
            let (sample, size) = announced.ok_or((400, "not announced".to_owned()))?;
            require(*size == bytes.len() && bytes.starts_with(sample), 400, "not as announced")?;
            files.push((self.folder.join(path), bytes));
        }
        for (path, bytes) in files {
            if let Some(folder) = path.parent() {
                fs_err::create_dir_all(folder).map_err(failed)?;
            }
            fs_err::write(path, bytes).map_err(failed)?;
        }
        for path in removed {
            fs_err::remove_file(path).map_err(failed)?;
        }
        Ok(HubReply::new(200, json!({"success": true, "commitOid": COMMIT}).to_string()))
    }
}

fn take_object(stored: &mut Stored, oid: &str, bytes: Vec<u8>) -> Reply {
    require(hex(&Sha256::digest(&bytes)) == oid, 400, "the bytes differ from their checksum")?;
    stored.objects.insert(oid.to_owned(), bytes);
    Ok(HubReply::new(200, ""))
}

fn part_tag(number: &str) -> String {
    format!("tag-of-{number}")
}

fn complete(stored: &mut Stored, oid: &str, asked: &Value) -> Reply {
    require(asked["oid"] == oid, 400, "another object")?;
    let mut bytes = Vec::new();
    for (at, part) in asked["parts"].as_array().into_iter().flatten().enumerate() {
        let number = (at + 1).to_string();
        require(size(&part["partNumber"]) == at + 1, 400, "parts out of order")?;
        let tag = format!("\"{}\"", part_tag(&number));
        require(text(&part["etag"]) == tag, 400, "the tag of another part")?;
        let part = stored.parts.get(&format!("{oid}/{number}"));
        bytes.extend_from_slice(part.ok_or((400, "a part is missing".to_owned()))?);
    }
    take_object(stored, oid, bytes)
}

fn verify(stored: &Stored, asked: &Value) -> Reply {
    let found = stored.objects.get(text(&asked["oid"])).map(Vec::len);
    require(found == Some(size(&asked["size"])), 404, "no such object")?;
    Ok(HubReply::new(200, ""))
}

fn body(request: &HubRequest) -> Result<Value, (u16, String)> {
    serde_json::from_slice(&request.body).map_err(failed)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn size(value: &Value) -> usize {
    value.as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX)
}

fn require(holds: bool, status: u16, why: &str) -> Result<(), (u16, String)> {
    if holds { Ok(()) } else { Err((status, why.to_owned())) }
}

fn refuse(status: u16, why: &str) -> Reply {
    Err((status, why.to_owned()))
}

fn failed(error: impl std::fmt::Display) -> (u16, String) {
    (400, error.to_string())
}
