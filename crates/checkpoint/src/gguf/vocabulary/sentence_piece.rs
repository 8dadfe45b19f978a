//! `SentencePiece`'s BPE (Llama 2, Phi-3, Gemma): pieces with scores, out of `tokenizer.model` or of what `tokenizer.json`
//! makes of it.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{Added, BYTE, CONTROL, Files, Key, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, optional};
use crate::gguf::writer::Metadata;
use crate::{CheckpointError, Family, ModelConfig, Result};

/// The score of tokens that are added to the pieces.
const OF_ADDED: f32 = -1000.0;
/// That of those that pad the embedding.
const OF_PADDING: f32 = -10000.0;

struct Piece {
    text: String,
    score: f32,
    kind: i32,
}

impl Piece {
    /// What stands where there is none.
    fn padding(id: usize) -> Self {
        Self { text: format!("[PAD{id}]"), score: OF_PADDING, kind: UNUSED }
    }
}

/// The vocabulary, if it is of this kind. Pieces beyond the model's vocabulary are left out.
///
/// # Errors
///
/// If `tokenizer.model` cannot be read.
pub(super) fn sentence_piece(files: &Files<'_>, config: &ModelConfig) -> Result<Option<Vec<Key>>> {
    let path = files.folder.join("tokenizer.model");
    let (pieces, of_model) = match path.exists() {
        true => (Some(pieces_of_model(&path)?), true),
        false => (pieces_of_tokenizer(&files.tokenizer, config.vocab_size), false),
    };
    let Some(mut pieces) = pieces else { return Ok(None) };
    pieces.truncate(config.vocab_size);
    pieces.extend((pieces.len()..config.vocab_size).map(Piece::padding));
    add_tokens(&mut pieces, files, config.family, of_model)?;
    let kinds = pieces.iter().map(|piece| piece.kind).collect();
    let scores = pieces.iter().map(|piece| piece.score).collect();
    let mut keys = vec![
        ("model", Metadata::Text("llama".into())),
        ("pre", Metadata::Text("default".into())),
        ("tokens", Metadata::Texts(pieces.into_iter().map(|piece| piece.text).collect())),
        ("scores", Metadata::F32s(scores)),
        ("token_type", Metadata::I32s(kinds)),
    ];
    if matches!(config.family, Family::Gemma2 | Family::Gemma3) {
        keys.push(("add_space_prefix", Metadata::Bool(false)));
    }
    Ok(Some(keys))
}

/// Puts in what the folder's other files add or say otherwise, in llama.cpp's order.
fn add_tokens(
    pieces: &mut [Piece],
    files: &Files<'_>,
    family: Family,
    of_model: bool,
) -> Result<()> {
    let mut put = |id: u64, text: String, kind: i32, only_padding: bool| {
        let piece = usize::try_from(id).ok().and_then(|id| pieces.get_mut(id));
        if let Some(piece) = piece.filter(|piece| !only_padding || piece.kind == UNUSED) {
            *piece = Piece { text, score: OF_ADDED, kind };
        }
    };
    let listed = optional(&files.folder.join("added_tokens.json"))?;
    for (text, id) in listed.as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64() {
            put(id, text.clone(), USER_DEFINED, false);
        }
    }
    // Phi-3's are taken as they are marked.
    let stored = |token: &Added<'_>| match (family, token.special) {
        (Family::Phi3, true) => (token.text.to_owned(), CONTROL),
        (Family::Phi3, false) => (token.text.to_owned(), USER_DEFINED),
        _ => token.stored(),
    };
    let decoder = files.config["added_tokens_decoder"].as_object().into_iter().flatten();
    for token in decoder.filter_map(|(id, token)| Added::read(id.parse().ok(), token)) {
        let (text, kind) = stored(&token);
        put(token.id, text, kind, false);
    }
    // llama.cpp does not look here but for Phi-3, and would miss tokens that were added later.
    let only_padding = of_model && family != Family::Phi3;
    for token in Added::of_tokenizer(&files.tokenizer) {
        let (text, kind) = stored(&token);
        put(token.id, text, kind, only_padding);
    }
    Ok(())
}

/// The pieces of `tokenizer.model`, a protocol buffer.
fn pieces_of_model(path: &Path) -> Result<Vec<Piece>> {
    let fail = |what: &str| Err(CheckpointError::config(path, what));
    let bytes = fs_err::read(path)?;
    let Some(fields) = fields(&bytes) else { return fail("it is no SentencePiece model") };
    let mut pieces = Vec::new();
    for field in fields {
        match field {
            (1, Field::Bytes(piece)) => match read_piece(piece) {
                Some(piece) => pieces.push(piece),
                None => return fail("a piece of it cannot be read"),
            },
            // What it was trained as: 2 is BPE, and what is not said is 1, unigram.
            (2, Field::Bytes(settings)) if model_type(settings) != Some(2) => {
                return fail("it is no BPE model; llama.cpp merges pieces of other models wrongly");
            }
            _ => {}
        }
    }
    if pieces.is_empty() { fail("it has no pieces") } else { Ok(pieces) }
}

fn read_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    for field in fields(bytes)? {
        match field {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Four(score)) => piece.score = f32::from_le_bytes(score),
            // The numbers are ggml's, but that of a piece the user defined, which llama.cpp takes for any other.
            (3, Field::Number(kind)) => {
                piece.kind = match kind {
                    2 => UNKNOWN,
                    3 => CONTROL,
                    5 => UNUSED,
                    6 => BYTE,
                    _ => NORMAL,
                };
            }
            _ => {}
        }
    }
    Some(piece)
}

fn model_type(settings: &[u8]) -> Option<u64> {
    let of = |field| match field {
        (3, Field::Number(kind)) => Some(kind),
        _ => None,
    };
    Some(fields(settings)?.into_iter().find_map(of).unwrap_or(1))
}

/// A value of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// A message's fields with their numbers, in order; `None` if it is broken.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(number(&mut bytes)?),
            1 => bytes.split_off(..8).map(|_| Field::Eight)?,
            2 => {
                let size = usize::try_from(number(&mut bytes)?).ok()?;
                Field::Bytes(bytes.split_off(..size)?)
            }
            5 => Field::Four(bytes.split_off(..4)?.try_into().ok()?),
            _ => return None,
        };
        found.push((key >> 3, field));
    }
    Some(found)
}

/// A number in groups of seven bits, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for group in 0..10 {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 127) << (7 * group);
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// The pieces that `tokenizer.json` was made from, if it was, with ids below `most`. Scores follow from the order of merges:
/// what is merged first has the best.
fn pieces_of_tokenizer(tokenizer: &Value, most: usize) -> Option<Vec<Piece>> {
    let model = &tokenizer["model"];
    if model["type"] != "BPE"
        || model["byte_fallback"] != true
        || tokenizer["decoder"]["type"] != "Sequence"
    {
        return None;
    }
    let mut vocab: Vec<(u64, &str)> = model["vocab"]
        .as_object()?
        .iter()
        .filter_map(|(text, id)| Some((id.as_u64()?, text.as_str())))
        .collect();
    vocab.sort_unstable();
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for merged in model["merges"].as_array()?.iter().filter_map(merged) {
        let rank = ranks.len();
        ranks.entry(merged).or_insert(rank);
    }
    let mut next = ranks.len();
    let mut pieces: Vec<Piece> = Vec::new();
    for (id, text) in vocab {
        let Some(id) = usize::try_from(id).ok().filter(|id| (pieces.len()..most).contains(id))
        else {
            continue;
        };
        pieces.extend((pieces.len()..id).map(Piece::padding));
        let (kind, rank) = match ranks.get(text) {
            _ if is_byte(text) => (BYTE, 0),
            _ if model["unk_token"] == text => (UNKNOWN, 0),
            Some(&rank) => (NORMAL, rank),
            None => {
                next += 1;
                (NORMAL, next - 1)
            }
        };
        pieces.push(Piece { text: text.to_owned(), score: -(rank as f32), kind });
    }
    Some(pieces)
}

/// What a merge makes: of a text with one space, or of a list of two.
fn merged(merge: &Value) -> Option<String> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| format!("{left}{right}")),
        Value::Array(pair) => match pair.as_slice() {
            [left, right] => Some(format!("{}{}", left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a piece stands for a byte that no other does, as `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| {
        digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}
