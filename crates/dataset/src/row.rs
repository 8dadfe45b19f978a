//! Rows of data files, whatever format and spelling they come in.

use std::path::Path;

use crate::dialects::content;
use crate::files::{data_files, read_objects};
use crate::{DatasetError, Result, Row};

/// Reads a data file, or all those of a folder (docs/formats.md, Data).
///
/// A field of a row or message is used, known to carry nothing to learn, among `ignored`, or an
/// error.
///
/// # Errors
///
/// [`DatasetError::Row`] with the place of the first row that cannot be used whole, and why;
/// [`DatasetError::Empty`] if a file has no row at all; and what [`data_files`] says.
pub fn read_rows(path: &Path, ignored: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in data_files(path)? {
        let before = rows.len();
        read_objects(&file, &mut |place, object| {
            let content =
                content(object, ignored).map_err(|what| DatasetError::row(&place, what))?;
            rows.push(Row { place, content });
            Ok(())
        })?;
        if rows.len() == before {
            return Err(DatasetError::Empty { path: file });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Content, Message};

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<Row>> {
        let folder = testkit::temporary_folder();
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        read_rows(&path, &[])
    }

    /// What one row of JSON comes to.
    fn content_of(row: &Value) -> Content {
        content(serde_json::from_str(&row.to_string()).unwrap(), &[]).unwrap()
    }

    fn turns(
        texts: &[(String, String)],
        [role, content]: [&str; 2],
        names: [&str; 2],
    ) -> Vec<Value> {
        let turn = |name: &str, text: &str| json!({role: name, content: text});
        texts
            .iter()
            .flat_map(|(asked, replied)| [turn(names[0], asked), turn(names[1], replied)])
            .collect()
    }

    proptest! {
        #[test]
        fn a_chat_reads_back_from_any_dialect(
            texts in prop::collection::vec((".*", ".*"), 1..5),
            system in prop::option::of(".+"),
        ) {
            let openai = turns(&texts, ["role", "content"], ["user", "assistant"]);
            let sharegpt = turns(&texts, ["from", "value"], ["human", "gpt"]);
            let parts: Vec<Value> = openai
                .iter()
                .map(|turn| json!({"role": turn["role"], "content": [
                    {"type": "text", "text": turn["content"]}, {"type": "text", "text": ""},
                ]}))
                .collect();
            let ((asked, replied), history) = texts.split_last().unwrap();
            let alpaca = json!({"instruction": asked, "output": replied, "history": history});
            let mut rows = vec![
                json!({"messages": openai}),
                json!({"messages": parts}),
                json!({"conversations": sharegpt}),
                json!({"conversation": openai}),
                alpaca,
            ];
            if history.is_empty() {
                rows.push(json!({"prompt": asked, "completion": replied}));
                rows.push(json!({"question": asked, "answer": replied}));
                rows.push(json!({"prompt": &openai[..1], "completion": &openai[1..]}));
            }
            if let Some(system) = &system {
                for row in &mut rows {
                    row["system"] = system.as_str().into();
                }
                let first = json!({"role": "system", "content": system});
                let turns = [&[first], openai.as_slice()].concat();
                rows.push(json!({"messages": turns}));
            }
            let expected = content_of(&rows[0]);
            let Content::Chat(chat) = &expected else { panic!("it is a chat") };
            let said: Vec<&str> = chat.messages.iter().map(Message::text).collect();
            let written = system.iter().map(String::as_str);
            let written: Vec<&str> = written
                .chain(texts.iter().flat_map(|(asked, replied)| [asked.as_str(), replied]))
                .collect();
            prop_assert_eq!(said, written);
            for row in &rows[1..] {
                prop_assert_eq!(&content_of(row), &expected, "{}", row);
            }
        }

        /// Written by `csv`, read back whole.
        #[test]
        fn a_table_reads_back(texts in prop::collection::vec((".*", "(?s).*"), 1..5), tab: bool) {
            let (name, separator) = if tab { ("a.tsv", b'\t') } else { ("a.csv", b',') };
            let mut writer =
                csv::WriterBuilder::new().delimiter(separator).from_writer(Vec::new());
            writer.write_record(["prompt", "completion"]).unwrap();
            for (asked, replied) in &texts {
                writer.write_record([asked, replied]).unwrap();
            }
            let rows = read(name, &writer.into_inner().unwrap()).unwrap();
            let read: Vec<(String, String)> = rows
                .iter()
                .map(|row| {
                    let messages = &row.chat().unwrap().messages;
                    (messages[0].text().to_owned(), messages[1].text().to_owned())
                })
                .collect();
            prop_assert_eq!(read, texts);
        }

    }

    proptest! {
        // Each reads some twenty files.
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Bytes at random, and good files with a few bytes changed.
        #[test]
        fn no_bytes_panic(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            keep in any::<prop::sample::Index>(),
        ) {
            let row = r#"[{"messages": [{"role": "user", "content": "q", "weight": 0}]},
                          {"question": "q", "choices": ["a", "b"], "answer": 1}]"#;
            let table = "prompt,completion\n\"q\",\"a\"\"\nb\"\n";
            let parquet = fs_err::read(testkit::fixture("rows/chats.parquet")).unwrap();
            let gz = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xab\xae\xe5\x02\0\x06\xb0\xa1\xdd\x03\0\0\0";
            let zst = zstd::encode_all(row.as_bytes(), 0).unwrap();
            for (name, good) in [
                ("a.jsonl", row.as_bytes()),
                ("a.json", row.as_bytes()),
                ("a.csv", table.as_bytes()),
                ("a.tsv", table.as_bytes()),
                ("a.jsonl.gz", gz),
                ("a.csv.zst", &zst),
                ("a.parquet", &parquet),
            ] {
                let _ = read(name, &noise);
                let mut bytes = good.to_vec();
                for (at, byte) in &changes {
                    bytes[at.index(good.len())] = *byte;
                }
                let _ = read(name, &bytes);
                bytes.truncate(keep.index(good.len() + 1));
                let _ = read(name, &bytes);
            }
        }
    }
}
