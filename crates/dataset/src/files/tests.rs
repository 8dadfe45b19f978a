//! Every format of files, and what their errors say.

use std::io::Write;
use std::path::Path;

use expect_test::{Expect, expect};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::{data_files, read_objects};
use crate::read_rows;

/// The rows of a file of this name and content, with their places, or the error.
fn read(name: &str, bytes: &[u8]) -> String {
    let folder = testkit::temporary_folder();
    let path = folder.path().join(name);
    fs_err::write(&path, bytes).unwrap();
    without(folder.path(), &objects(&path))
}

fn objects(path: &Path) -> String {
    let mut found = String::new();
    let read = read_objects(path, &mut |place, object| {
        found.push_str(&format!("{place}: {}\n", Value::Object(object)));
        Ok(())
    });
    if let Err(error) = read {
        found.push_str(&format!("error: {error}\n"));
    }
    found
}

/// A text without the temporary folder's name.
fn without(folder: &Path, text: &str) -> String {
    text.replace(&format!("{}/", folder.display()), "").replace(&folder.display().to_string(), ".")
}

fn check(files: &[(&str, &[u8])], expected: &Expect) {
    let found: Vec<String> = files.iter().map(|(name, bytes)| read(name, bytes)).collect();
    expected.assert_eq(&found.join("\n"));
}

fn gz(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zst(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 3).unwrap()
}

#[test]
fn json_lines() {
    check(
        &[
            ("a.jsonl", b"{\"a\": 1}\n\n  \n{\"b\": 2}"),
            ("bom.jsonl", b"\xef\xbb\xbf\r\n{\"a\": 1}\r\n{\"b\": 2}\r\n"),
            ("upper.JSONL", b"{\"a\": 1}"),
            ("lines.json", b"{\"a\": 1}\n{\"b\": 2}\n"),
            ("two.jsonl", b"{\"a\": 1}\n{\"b\": 2} {\"c\": 3}"),
            ("cut.jsonl", b"{\"a\": 1}\n{\"b\""),
            ("pretty.json", b"{\n  \"a\": 1\n}\n"),
            ("twice.jsonl", b"{\"a\": 1, \"a\": 2}\n"),
            ("number.jsonl", b"{\"a\": 1}\n7\n"),
            ("nan.jsonl", b"{\"a\": NaN}"),
            ("latin.jsonl", b"{\"a\": 1}\n{\"a\": \"\xe9\"}\n"),
            ("utf16.jsonl", b"\xff\xfe{\0}\0"),
            ("surrogate.jsonl", br#"{"a": "\ud800"}"#),
            ("deep.jsonl", "[".repeat(10_000).as_bytes()),
            ("deep_object.jsonl", "{\"a\":".repeat(10_000).as_bytes()),
        ],
        &expect![[r#"
            a.jsonl line 1: {"a":1}
            a.jsonl line 4: {"b":2}

            bom.jsonl line 2: {"a":1}
            bom.jsonl line 3: {"b":2}

            upper.JSONL line 1: {"a":1}

            lines.json line 1: {"a":1}
            lines.json line 2: {"b":2}

            two.jsonl line 1: {"a":1}
            error: two.jsonl line 2: not JSON: trailing characters at column 10

            cut.jsonl line 1: {"a":1}
            error: cut.jsonl line 2: not JSON: EOF while parsing an object at column 4; is the row spread over several lines, or the file truncated?

            error: pretty.json line 1: not JSON: EOF while parsing an object at column 1; is the row spread over several lines, or the file truncated?

            error: twice.jsonl line 1: the key `a` stands twice in one object at column 12

            number.jsonl line 1: {"a":1}
            error: number.jsonl line 2: it is not a JSON object

            error: nan.jsonl line 1: not JSON: expected value at column 7

            latin.jsonl line 1: {"a":1}
            error: latin.jsonl line 2: it is not UTF-8 at column 8

            error: utf16.jsonl line 1: it is not UTF-8 at column 1

            error: surrogate.jsonl line 1: not JSON: unexpected end of hex escape at column 14

            error: deep.jsonl line 1: not JSON: recursion limit exceeded at column 128

            error: deep_object.jsonl line 1: not JSON: recursion limit exceeded at column 636
        "#]],
    );
}

#[test]
fn json_list() {
    check(
        &[
            ("a.json", b"[{\"a\": 1}, {\"b\": 2}]"),
            (
                "pretty.json",
                b"\xef\xbb\xbf\n[\n  {\n    \"a\": 1\n  },\n\n  {\n    \"b\": [2]\n  }\n]\n",
            ),
            ("named.jsonl", b"[{\"a\": 1}\n,{\"b\": 2}]"),
            ("empty.json", b"[]"),
            ("twice.json", b"[{\"a\": 1},\n{\"a\": 1, \"a\": 2}]"),
            ("number.json", b"[{\"a\": 1},\n7]"),
            ("cut.json", b"\n[\n{\"a\": 1},\n{\"b\""),
            ("comma.json", b"[{\"a\": 1}\n\n{\"b\": 2}]"),
            ("after.json", b"[{\"a\": 1}]\n{}"),
            ("latin.json", b"[{\"a\": \"\xe9\"}]"),
        ],
        &expect![[r#"
            a.json line 1: {"a":1}
            a.json line 1: {"b":2}

            pretty.json line 3: {"a":1}
            pretty.json line 7: {"b":[2]}

            named.jsonl line 1: {"a":1}
            named.jsonl line 2: {"b":2}


            twice.json line 1: {"a":1}
            error: twice.json line 2: the key `a` stands twice in one object at column 13

            number.json line 1: {"a":1}
            error: number.json line 2: it is not a JSON object

            cut.json line 3: {"a":1}
            error: cut.json line 4: not JSON: EOF while parsing an object at column 4; the file may be truncated

            comma.json line 1: {"a":1}
            error: comma.json line 3: not JSON: expected `,` or `]` at column 1

            after.json line 1: {"a":1}
            error: after.json line 2: not JSON: trailing characters at column 1

            error: latin.json line 1: not JSON: invalid unicode code point at column 9
        "#]],
    );
}

#[test]
fn compressed() {
    let text = "{\"a\": 1}\n{\"b\": 2}\n";
    let twice = [gz(text), gz(text)].concat();
    check(
        &[
            ("a.jsonl.gz", &gz(text)),
            ("twice.jsonl.gz", &twice),
            ("a.jsonl.zst", &zst(text)),
            ("list.json.gz", &gz("[{\"a\": 1}]")),
            ("list.json.zst", &zst("[{\"a\": 1}]")),
            ("a.csv.gz", &gz("prompt,completion\nq,a\n")),
            ("a.tsv.zst", &zst("prompt\tcompletion\nq\ta\n")),
        ],
        &expect![[r#"
            a.jsonl.gz line 1: {"a":1}
            a.jsonl.gz line 2: {"b":2}

            twice.jsonl.gz line 1: {"a":1}
            twice.jsonl.gz line 2: {"b":2}
            twice.jsonl.gz line 3: {"a":1}
            twice.jsonl.gz line 4: {"b":2}

            a.jsonl.zst line 1: {"a":1}
            a.jsonl.zst line 2: {"b":2}

            list.json.gz line 1: {"a":1}

            list.json.zst line 1: {"a":1}

            a.csv.gz line 2: {"prompt":"q","completion":"a"}

            a.tsv.zst line 2: {"prompt":"q","completion":"a"}
        "#]],
    );
    let long: String = (0..5000).map(|row| format!("{{\"a\": {}}}\n", row * 7919 % 5003)).collect();
    let (gz, zst) = (gz(&long), zst(&long));
    let last = |name: &str, bytes: &[u8]| {
        let found = read(name, bytes);
        // Which row was the last one to be whole is the compressor's affair.
        let (before, after) = found.lines().last().unwrap().split_once(" line ").unwrap();
        format!("{before}: {}", after.split_once(": ").unwrap().1)
    };
    let found = [
        last("cut.jsonl.gz", &gz[..gz.len() / 2]),
        last("cut.jsonl.zst", &zst[..zst.len() / 2]),
        last("head.csv.gz", &gz[..10]),
        last("cut.json.zst", &zst[..3]),
        last("text.jsonl.gz", b"{\"a\": 1}\n"),
        last("text.jsonl.zst", b"{\"a\": 1}\n"),
    ];
    expect![[r#"
        error: cut.jsonl.gz: cannot be read: incomplete deflate stream; the file may be truncated, fetch it again
        error: cut.jsonl.zst: cannot be read: incomplete frame; the file may be truncated, fetch it again
        error: head.csv.gz: cannot be read: incomplete deflate stream; the file may be truncated, fetch it again
        error: cut.json.zst: cannot be read: incomplete frame; the file may be truncated, fetch it again
        error: text.jsonl.gz: cannot be read: unexpected end of file; the file may be truncated, fetch it again
        error: text.jsonl.zst: cannot be read: Unknown frame descriptor"#]].assert_eq(&found.join("\n"));
}

#[test]
fn tables() {
    check(
        &[
            ("a.csv", b"prompt,completion\nq,a\n\"q, 2\",\"a \"\"2\"\"\nand more\"\n\nq3,\n"),
            ("bom.csv", b"\xef\xbb\xbfprompt,completion\r\nq,a\r\n"),
            ("a.tsv", b"instruction\tinput\toutput\nq\t\ta, b\n"),
            ("text.csv", b"text\nonce\n"),
            ("pandas.csv", b",prompt,completion\n0,q,a\n"),
            ("header.csv", b"prompt,completion\n"),
            ("names.csv", b"q,a\nr,b\n"),
            ("half.csv", b"prompt,label\nr,b\n"),
            ("twice.csv", b"prompt,completion,prompt\nq,a,r\n"),
            ("more.csv", b"prompt,completion\nq,a\nq2,a2,b2\n"),
            ("fewer.csv", b"prompt,completion\n\"q\nr\",a\nq2\n"),
            ("quote.csv", b"prompt,completion\nq,a\nq2,\"a2\nq3,a3\n"),
            ("latin.csv", b"prompt,completion\nq,\xe9\n"),
            ("empty.csv", b""),
            ("backslash.csv", b"prompt,completion\nq,a\nq1,\"He said \\\"hi\\\" ok\"\n"),
            ("bare.tsv", b"prompt\tcompletion\nq1\ta\nq2\t\"b\nq3\t\"c\n"),
            ("within.tsv", b"prompt\tcompletion\nq 5\" wide\t\"a\" b\n"),
            ("blanks.csv", b"prompt,completion\n\"q\" ,\"a\" \n\"q2\" \"x\",a2\n"),
            ("inch.csv", b"prompt,completion\nq 5\" wide,a\n"),
            ("mark.csv", b"text\nonce\n\x04\nupon\n\"a\n\x04\"\ntime\n"),
            ("marked.csv", b"text\nonce\n\x04"),
            ("marks.csv", b"text\nonce\n\x04\n\x04\n"),
            ("wide.csv", b"prompt,completion\nq,a\n\x04\nq2,a2\n"),
            ("open.csv", b"text\nonce\n\"\n\x04\n"),
        ],
        &expect![[r#"
            a.csv line 2: {"prompt":"q","completion":"a"}
            a.csv line 3: {"prompt":"q, 2","completion":"a \"2\"\nand more"}
            a.csv line 6: {"prompt":"q3","completion":""}

            bom.csv line 2: {"prompt":"q","completion":"a"}

            a.tsv line 2: {"instruction":"q","input":"","output":"a, b"}

            text.csv line 2: {"text":"once"}

            pandas.csv line 2: {"Unnamed: 0":"0","prompt":"q","completion":"a"}


            error: names.csv line 1: the header names no columns to learn from, such as `prompt` and `completion`; the first line must hold the columns' names

            error: half.csv line 1: the header names no columns to learn from, such as `prompt` and `completion`; the first line must hold the columns' names

            error: twice.csv line 1: two columns are called `prompt`

            more.csv line 2: {"prompt":"q","completion":"a"}
            error: more.csv line 3: the header names 2 columns and this row has 3; does a field that holds separators or quotes lack quotes around it?

            fewer.csv line 2: {"prompt":"q\nr","completion":"a"}
            error: fewer.csv line 4: the header names 2 columns and this row has 1; does a field that holds separators or quotes lack quotes around it?

            quote.csv line 2: {"prompt":"q","completion":"a"}
            error: quote.csv line 3: a quote opens in it that is never closed

            error: latin.csv line 2: field 2 is not UTF-8


            backslash.csv line 2: {"prompt":"q","completion":"a"}
            error: backslash.csv line 3: text follows a closing quote; quotes within a quoted field must be doubled ("")

            bare.tsv line 2: {"prompt":"q1","completion":"a"}
            error: bare.tsv line 3: text follows a closing quote; quotes within a quoted field must be doubled ("")

            error: within.tsv line 2: text follows a closing quote; quotes within a quoted field must be doubled ("")

            blanks.csv line 2: {"prompt":"q ","completion":"a "}
            error: blanks.csv line 3: text follows a closing quote; quotes within a quoted field must be doubled ("")

            inch.csv line 2: {"prompt":"q 5\" wide","completion":"a"}

            mark.csv line 2: {"text":"once"}
            mark.csv line 3: {"text":"\u0004"}
            mark.csv line 4: {"text":"upon"}
            mark.csv line 5: {"text":"a\n\u0004"}
            mark.csv line 7: {"text":"time"}

            marked.csv line 2: {"text":"once"}
            marked.csv line 3: {"text":"\u0004"}

            marks.csv line 2: {"text":"once"}
            marks.csv line 3: {"text":"\u0004"}
            marks.csv line 4: {"text":"\u0004"}

            wide.csv line 2: {"prompt":"q","completion":"a"}
            error: wide.csv line 3: the header names 2 columns and this row has 1; does a field that holds separators or quotes lack quotes around it?

            open.csv line 2: {"text":"once"}
            error: open.csv line 3: a quote opens in it that is never closed
        "#]],
    );
}

/// More than a buffer's bytes: every record says the line it stands on.
#[test]
fn places_in_a_long_table() {
    let (mut text, mut lines) = (String::from("prompt,completion\r\n"), Vec::new());
    let mut line = 2;
    for row in 0..3000 {
        let breaks = row % 4;
        lines.push(line);
        text.push_str(&format!("{row},\"x{}\"\r\n", "\r\ny".repeat(breaks)));
        text.push_str(if row % 5 == 0 { "\r\n" } else { "" });
        line += 1 + breaks + usize::from(row % 5 == 0);
    }
    let folder = testkit::temporary_folder();
    let path = folder.path().join("a.csv");
    fs_err::write(&path, text).unwrap();
    let rows = read_rows(&path, &[]).unwrap();
    assert_eq!(rows.iter().map(|row| row.place.number).collect::<Vec<_>>(), lines);
}

#[test]
fn parquet() {
    let folder = testkit::fixture("rows");
    let found: String =
        ["alpaca", "chats"].map(|name| objects(&folder.join(format!("{name}.parquet")))).join("\n");
    expect![[r#"
        alpaca.parquet row 1: {"instruction":"Add.","input":"1 and 2","output":"3"}
        alpaca.parquet row 2: {"instruction":"Greet in French.","input":"","output":"Salut à toi !"}
        alpaca.parquet row 3: {"instruction":"Say nothing.","output":""}

        chats.parquet row 1: {"id":7,"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"look","arguments":"{}"}}]},{"role":"tool","content":"rain"},{"role":"assistant","content":"It rains."}],"checked":true}
        chats.parquet row 2: {"id":8,"messages":[{"role":"user","content":"Sure?"},{"role":"assistant","content":"Hm.","weight":0.0},{"role":"user","content":"Well?"}],"choices":["no","yes"],"answer":1}
    "#]].assert_eq(&without(&folder, &found));
    let bytes = fs_err::read(folder.join("chats.parquet")).unwrap();
    let mut torn = bytes.clone();
    torn[4..200].fill(0xff);
    check(
        &[
            ("cut.parquet", &bytes[..bytes.len() / 2]),
            ("empty.parquet", b""),
            ("text.parquet", b"{\"a\": 1}\n"),
            ("torn.parquet", &torn),
        ],
        &expect![[r#"
            error: cut.parquet: not a usable Parquet file: Invalid Parquet file. Corrupt footer; it may be truncated, fetch it again

            error: empty.parquet: not a usable Parquet file: EOF: Parquet file too small. Size is 0 but need 8; it may be truncated, fetch it again

            error: text.parquet: not a usable Parquet file: Invalid Parquet file. Corrupt footer; it may be truncated, fetch it again

            error: torn.parquet row 1: cannot be read: Unexpected struct field type 15
        "#]],
    );
}

#[test]
fn folders() {
    let folder = testkit::temporary_folder();
    let at = |name: &str| folder.path().join(name);
    let listed = || match data_files(folder.path()) {
        Ok(files) => {
            let names = files.iter().map(|file| file.file_name().unwrap().to_string_lossy());
            names.collect::<Vec<_>>().join(" ")
        }
        Err(error) => without(folder.path(), &format!("error: {error}")),
    };
    let mut found = vec![listed()];
    for name in
        ["README.md", ".gitattributes", "dataset_infos.json", "LICENSE", "load.py", "_SUCCESS"]
    {
        fs_err::write(at(name), "x").unwrap();
    }
    fs_err::create_dir(at(".cache")).unwrap();
    found.push(listed());
    for name in ["b.jsonl.gz", "c.parquet", "a.csv"] {
        fs_err::write(at(name), "").unwrap();
    }
    found.push(listed());
    fs_err::write(at("d.arrow"), "").unwrap();
    found.push(listed());
    fs_err::remove_file(at("d.arrow")).unwrap();
    fs_err::create_dir(at("more")).unwrap();
    found.push(listed());
    let missing = data_files(&at("nowhere.jsonl")).unwrap_err().to_string();
    found.push(without(folder.path(), &missing));
    let no_format = read_rows(&at("load.py"), &[]).unwrap_err().to_string();
    found.push(without(folder.path(), &no_format));
    expect![[r#"
        error: .: there are no data files in the folder
        error: .: there are no data files in the folder
        a.csv b.jsonl.gz c.parquet
        error: d.arrow: not a known kind of data file; known are .jsonl, .json, .csv and .tsv (each also .gz or .zst) and .parquet
        error: .: holds a folder, `more`; name that one, or move its files up
        failed to open file `nowhere.jsonl`: No such file or directory (os error 2)
        load.py: not a known kind of data file; known are .jsonl, .json, .csv and .tsv (each also .gz or .zst) and .parquet"#]].assert_eq(&found.join("\n"));
}

/// Rows come in the order of the files' names, each with its own file's place.
#[test]
fn rows_of_a_folder() {
    let folder = testkit::temporary_folder();
    let row = |prompt: &str| json!({"prompt": prompt, "completion": "a"}).to_string();
    fs_err::write(folder.path().join("b.jsonl"), row("2")).unwrap();
    fs_err::write(folder.path().join("a.json"), format!("[{},\n{}]", row("0"), row("1"))).unwrap();
    fs_err::copy(testkit::fixture("rows/alpaca.parquet"), folder.path().join("c.parquet")).unwrap();
    let rows = read_rows(folder.path(), &[]).unwrap();
    let found: Vec<String> = rows
        .iter()
        .map(|row| format!("{}: {}", row.place, row.chat().unwrap().messages[0].text()))
        .collect();
    expect![[r#"
        a.json line 1: 0
        a.json line 2: 1
        b.jsonl line 1: 2
        c.parquet row 1: Add.

        1 and 2
        c.parquet row 2: Greet in French.
        c.parquet row 3: Say nothing."#]]
    .assert_eq(&without(folder.path(), &found.join("\n")));
    fs_err::write(folder.path().join("d.jsonl"), "\n").unwrap();
    let error = read_rows(folder.path(), &[]).unwrap_err().to_string();
    expect!["d.jsonl: there are no rows in it"].assert_eq(&without(folder.path(), &error));
}
