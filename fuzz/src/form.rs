//! What a seed is made of, and how it becomes a file's bytes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use crate::mutate::{RAW, words_of};

/// A seed in the shape in which it is changed.
#[derive(Debug, Clone)]
pub(crate) enum Form {
    Bytes(Vec<u8>),
    Text(String),
    Json(Value),
    /// One value a line.
    Lines(Vec<Value>),
    /// The header of a safetensors file, and the data after it.
    Safetensors {
        header: Value,
        data: Vec<u8>,
    },
    /// `{"metadata": {key: value}, "tensors": {name: {"shape", "type", "offset"}}, "data": bytes}`.
    Gguf(Value),
    /// Compressed with gzip.
    Packed {
        inner: Box<Self>,
    },
}

impl Form {
    pub(crate) fn is_text(&self) -> bool {
        match self {
            Self::Text(_) | Self::Json(_) | Self::Lines(_) => true,
            Self::Packed { inner } => inner.is_text(),
            Self::Bytes(_) | Self::Safetensors { .. } | Self::Gguf(_) => false,
        }
    }

    pub(crate) fn is_tree(&self) -> bool {
        match self {
            Self::Packed { inner } => inner.is_tree(),
            Self::Text(_) | Self::Bytes(_) => false,
            _ => true,
        }
    }

    /// The bytes before they are packed.
    pub(crate) fn render(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Text(text) => text.clone().into_bytes(),
            Self::Json(tree) => json_text(tree).into_bytes(),
            Self::Lines(rows) => {
                rows.iter().map(|row| json_text(row) + "\n").collect::<String>().into_bytes()
            }
            Self::Safetensors { header, data } => {
                let header = json_text(header);
                let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
                bytes.extend(header.as_bytes());
                bytes.extend(data);
                bytes
            }
            Self::Gguf(tree) => gguf_bytes(tree),
            Self::Packed { inner } => inner.render(),
        }
    }

    /// The file's bytes out of the rendered ones.
    pub(crate) fn pack(&self, bytes: &[u8]) -> Vec<u8> {
        let Self::Packed { .. } = self else { return bytes.to_vec() };
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory does not fail.
        let _ = encoder.write_all(bytes);
        encoder.finish().unwrap_or_default()
    }
}

/// JSON, raw texts without their quotes.
fn json_text(tree: &Value) -> String {
    let text = tree.to_string();
    if !text.contains(RAW) {
        return text;
    }
    let mark = format!("\"{RAW}");
    let mut parts = text.split(&mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += &part.replacen('"', "", 1);
    }
    out
}

/// A GGUF file of version 3 as the tree says, whether or not that can be right.
fn gguf_bytes(tree: &Value) -> Vec<u8> {
    let empty = serde_json::Map::new();
    let part = |name: &str| tree[name].as_object().unwrap_or(&empty);
    let (metadata, tensors) = (part("metadata"), part("tensors"));
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    for (name, tensor) in tensors {
        put_text(&mut out, name);
        let shape = tensor["shape"].as_array().map_or(&[][..], Vec::as_slice);
        out.extend((shape.len() as u32).to_le_bytes());
        // Fastest dimension first.
        shape.iter().rev().for_each(|size| out.extend(whole(size).to_le_bytes()));
        out.extend((whole(&tensor["type"]) as u32).to_le_bytes());
        out.extend(whole(&tensor["offset"]).to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32), 0);
    let length = whole(&tree["data"]).min(1 << 20) as usize;
    // Small enough for any format's scales to be finite.
    out.extend((0..length).map(|at| (at * 7 % 32) as u8));
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend(code(value).to_le_bytes());
    put_bare(out, value);
}

fn put_bare(out: &mut Vec<u8>, value: &Value) {
    match (code(value), value) {
        (7, _) => out.push(u8::from(value == &Value::Bool(true))),
        (9, Value::Array(values)) => {
            // All are taken to be like the first.
            let first = values.first().unwrap_or(&Value::Null);
            out.extend(code(first).to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            for value in values {
                put_bare(out, value);
            }
        }
        (10, _) => out.extend(whole(value).to_le_bytes()),
        (12, _) => out.extend(number(value).to_le_bytes()),
        _ => put_text(out, value.as_str().unwrap_or("?")),
    }
}

/// The format's number for a value's type.
fn code(value: &Value) -> u32 {
    match value {
        Value::Null | Value::Bool(_) => 7,
        Value::Array(_) => 9,
        Value::String(text) if !text.starts_with(RAW) => 8,
        Value::Object(_) => 8,
        _ if text_of(value).parse::<u64>().is_ok() => 10,
        _ => 12,
    }
}

fn whole(value: &Value) -> u64 {
    text_of(value).parse().unwrap_or(0)
}

fn number(value: &Value) -> f64 {
    text_of(value).parse().unwrap_or(f64::NAN)
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim_start_matches(RAW).to_owned(),
        other => other.to_string(),
    }
}

impl Form {
    /// Adds the texts that stand in it.
    pub(crate) fn add_words(&self, words: &mut Vec<String>) {
        match self {
            Self::Json(tree) | Self::Gguf(tree) | Self::Safetensors { header: tree, .. } => {
                words_of(tree, words);
            }
            Self::Lines(rows) => rows.iter().for_each(|row| words_of(row, words)),
            Self::Text(text) => words.extend(text.split_whitespace().map(str::to_owned)),
            Self::Packed { inner } => inner.add_words(words),
            Self::Bytes(_) => {}
        }
    }
}
