//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` out of GGUF metadata.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{GgufFile, GgufValue};
use crate::{CheckpointError, Result};

/// The three files, and the special tokens' ids under `generation_config.json`'s names.
#[derive(Debug)]
pub(super) struct TokenizerFiles {
    pub(super) tokenizer: Value,
    pub(super) config: Value,
    pub(super) generation: Map<String, Value>,
}

// ggml's token types.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

/// The longest token that is cut into merges: the time that takes grows with its square.
const MOST_BYTES: usize = 1024;
/// Bytes of all merges together; the largest vocabularies come to a tenth.
const MOST_MERGED_BYTES: usize = 64 << 20;

/// One entry of the vocabulary.
struct Token<'a> {
    id: usize,
    text: &'a str,
    kind: u64,
}

/// How Qwen and Llama 3 cut text before merging; they differ in how many digits stay together.
fn split_pattern(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

pub(super) fn tokenizer_files(file: &GgufFile) -> Result<TokenizerFiles> {
    let source = Source { file };
    let tokens = source.tokens()?;
    let generation = source.special_ids();
    let tokenizer = match source.text("model") {
        Some("gpt2") => source.byte_level(&tokens)?,
        Some("llama") => source.sentence_piece(&tokens)?,
        other => {
            return Err(source.fail(&format!(
                "tokenizer `{}`; gpt2 and llama are supported",
                other.unwrap_or("missing")
            )));
        }
    };
    let config = source.config(&tokens, &generation);
    Ok(TokenizerFiles { tokenizer, config, generation })
}

struct Source<'a> {
    file: &'a GgufFile,
}

impl<'a> Source<'a> {
    fn fail(&self, what: &str) -> CheckpointError {
        CheckpointError::gguf(self.file.path(), what)
    }

    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        self.file.metadata.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_text()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            GgufValue::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    fn tokens(&self) -> Result<Vec<Token<'a>>> {
        let Some(texts) = self.get("tokens").and_then(GgufValue::as_array) else {
            return Err(self.fail("`tokenizer.ggml.tokens` is missing"));
        };
        let kinds = self.get("token_type").and_then(GgufValue::as_array).unwrap_or_default();
        texts
            .iter()
            .enumerate()
            .map(|(id, text)| match text.as_text() {
                Some(text) => {
                    let kind = kinds.get(id).and_then(GgufValue::as_count).unwrap_or(1);
                    Ok(Token { id, text, kind })
                }
                None => Err(self.fail("a token is not a text")),
            })
            .collect()
    }

    fn special_ids(&self) -> Map<String, Value> {
        let pairs = [
            ("bos_token_id", "bos_token_id"),
            ("eos_token_id", "eos_token_id"),
            ("pad_token_id", "padding_token_id"),
        ];
        pairs
            .into_iter()
            .filter_map(|(ours, theirs)| {
                Some((ours.to_owned(), self.get(theirs)?.as_count()?.into()))
            })
            .collect()
    }

    fn special_text(&self, tokens: &[Token<'a>], key: &str) -> Option<&'a str> {
        let id = self.get(key)?.as_count()?;
        tokens.get(usize::try_from(id).ok()?).map(|token| token.text)
    }

    /// GPT-2's byte-level BPE, cut into words as the family does it.
    fn byte_level(&self, tokens: &[Token<'a>]) -> Result<Value> {
        let byte_level = |use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": use_regex})
        };
        let split = |digits: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split_pattern(digits)},
                 "behavior": "Isolated", "invert": false},
                byte_level(false),
            ]})
        };
        let (normalizer, words, ignore_merges) = match self.text("pre") {
            Some("smollm") => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                let words =
                    json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
                (Value::Null, words, false)
            }
            Some("qwen2") => (json!({"type": "NFC"}), split(r"\p{N}"), false),
            Some("llama-bpe" | "llama3" | "llama-v3") => (Value::Null, split(r"\p{N}{1,3}"), true),
            Some("gpt-2" | "default") | None => (Value::Null, byte_level(true), false),
            Some(other) => {
                return Err(self.fail(&format!(
                    "pre-tokenizer `{other}`; smollm, qwen2, llama-bpe and gpt-2 are supported"
                )));
            }
        };
        let Some(merges) = self.get("merges").and_then(GgufValue::as_array) else {
            return Err(self.fail("`tokenizer.ggml.merges` is missing"));
        };
        let merges: Vec<Value> = merges
            .iter()
            .filter_map(GgufValue::as_text)
            .filter_map(|merge| merge.split_once(' '))
            .map(|(left, right)| json!([left, right]))
            .collect();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added_tokens(tokens),
            "normalizer": normalizer,
            "pre_tokenizer": words,
            "post_processor": self.post_processor(tokens).unwrap_or_else(|| byte_level(false)),
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": ignore_merges,
                "vocab": vocabulary(tokens), "merges": merges,
            },
        }))
    }

    /// `SentencePiece`'s BPE (Llama 2, Mistral): merges are not stored, but follow from the scores.
    fn sentence_piece(&self, tokens: &[Token<'a>]) -> Result<Value> {
        let Some(scores) = self.get("scores").and_then(GgufValue::as_array) else {
            return Err(self.fail("`tokenizer.ggml.scores` is missing"));
        };
        let prefix = self.flag("add_space_prefix").unwrap_or(true);
        let mut steps =
            vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            steps.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added_tokens(tokens),
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": null,
            "post_processor": self.post_processor(tokens),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null,
                "unk_token": self.special_text(tokens, "unknown_token_id").unwrap_or("<unk>"),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false,
                "vocab": vocabulary(tokens),
                "merges": merges_by_score(tokens, scores).map_err(|what| self.fail(&what))?,
            },
        }))
    }

    /// Puts the beginning-of-text token first, where the model was trained so.
    fn post_processor(&self, tokens: &[Token<'a>]) -> Option<Value> {
        let by_default = self.text("model") == Some("llama");
        if !self.flag("add_bos_token").unwrap_or(by_default) {
            return None;
        }
        let text = self.special_text(tokens, "bos_token_id")?;
        let id = self.get("bos_token_id")?.as_count()?;
        let special = json!({"SpecialToken": {"id": text, "type_id": 0}});
        let sequence = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
        Some(json!({
            "type": "TemplateProcessing",
            "single": [special, sequence("A", 0)],
            "pair": [special, sequence("A", 0), special, sequence("B", 1)],
            "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
        }))
    }

    fn config(&self, tokens: &[Token<'a>], generation: &Map<String, Value>) -> Value {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "model_max_length": self.file.metadata.iter()
                .find(|(key, _)| key.ends_with(".context_length"))
                .and_then(|(_, value)| value.as_count()),
        });
        // In that of SentencePiece the normalizer says it.
        if self.text("model") == Some("gpt2") {
            config["add_prefix_space"] = false.into();
        }
        for (ours, theirs) in [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("pad_token", "padding_token_id"),
            ("unk_token", "unknown_token_id"),
        ] {
            if let Some(text) = self.special_text(tokens, theirs) {
                config[ours] = text.into();
            }
        }
        if let Some(template) = self.file.metadata.get("tokenizer.chat_template") {
            config["chat_template"] = template.as_text().into();
        }
        if let (true, Some(flag)) =
            (generation.contains_key("bos_token_id"), self.flag("add_bos_token"))
        {
            config["add_bos_token"] = flag.into();
        }
        config
    }
}

fn added_tokens(tokens: &[Token<'_>]) -> Vec<Value> {
    tokens
        .iter()
        .filter(|token| matches!(token.kind, CONTROL | USER_DEFINED))
        .map(|token| {
            json!({"id": token.id, "content": token.text, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": token.kind == CONTROL})
        })
        .collect()
}

/// Tokens by text. Unused ones only pad the embedding to a round size.
fn vocabulary(tokens: &[Token<'_>]) -> Map<String, Value> {
    tokens
        .iter()
        .filter(|token| token.kind != UNUSED)
        .map(|token| (token.text.to_owned(), token.id.into()))
        .collect()
}

/// Every way to cut a token into two tokens is a merge; better-scored results merge first, and of
/// one result's merges those of earlier pieces.
fn merges_by_score(tokens: &[Token<'_>], scores: &[GgufValue]) -> Result<Vec<Value>, String> {
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .filter(|token| !matches!(token.kind, UNUSED | CONTROL | BYTE))
        .map(|token| (token.text, token.id))
        .collect();
    let (mut merges, mut bytes) = (Vec::new(), 0);
    for token in tokens.iter().filter(|token| ids.contains_key(token.text)) {
        if token.text.len() > MOST_BYTES {
            let (id, size) = (token.id, token.text.len());
            return Err(format!("token {id} has {size} bytes, and {MOST_BYTES} is the most"));
        }
        let score = scores.get(token.id).and_then(GgufValue::as_number).unwrap_or(0.0);
        for (at, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                bytes += token.text.len();
                merges.push((score, l, r, json!([left, right])));
            }
        }
        if bytes > MOST_MERGED_BYTES {
            let most = MOST_MERGED_BYTES >> 20;
            return Err(format!("its tokens' merges take more than {most} MB"));
        }
    }
    merges.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
    Ok(merges.into_iter().map(|(.., merge)| merge).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Better-scored results first; of one result every way to cut it, earlier pieces first.
    #[test]
    fn merges_follow_from_scores() {
        let tokens: Vec<Token<'_>> = ["<s>", "a", "b", "ab", "ba", "aba", "<0x41>"]
            .into_iter()
            .enumerate()
            .map(|(id, text)| {
                let kind = match id {
                    0 => CONTROL,
                    6 => BYTE,
                    _ => 1,
                };
                Token { id, text, kind }
            })
            .collect();
        let scores: Vec<_> = [0.0, -9.0, -9.0, -1.0, -3.0, -2.0, 0.0].map(GgufValue::Float).into();
        let found = merges_by_score(&tokens, &scores).unwrap();
        let expected = [["a", "b"], ["a", "ba"], ["ab", "a"], ["b", "a"]];
        assert_eq!(found, expected.map(|pair| json!(pair)));
    }

    /// A token of 400 kB took minutes; vocabularies whose merges are long fill the memory.
    #[test]
    fn tokens_that_take_too_long_are_refused() {
        let check = |texts: &[String]| {
            let tokens: Vec<Token<'_>> =
                texts.iter().enumerate().map(|(id, text)| Token { id, text, kind: 1 }).collect();
            merges_by_score(&tokens, &[]).unwrap_err()
        };
        let long = check(&["a".into(), "a".repeat(400_000)]);
        assert_eq!(long, "token 1 has 400000 bytes, and 1024 is the most");
        let many: Vec<String> = (1..=1024).map(|length| "a".repeat(length)).collect();
        assert_eq!(check(&many), "its tokens' merges take more than 64 MB");
    }
}
