//! Data files as the commands take them: any format, folders, fields to skip.

use expect_test::expect;
use serde_json::json;

use crate::support::{CHEAP, CHEAP_TRAINING, Desk};

fn row(number: usize, more: &serde_json::Value) -> String {
    let mut row = json!({"prompt": format!("is {number} so?"), "completion": "yes"});
    row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    row.to_string()
}

/// A folder of several formats trains as one file of the same rows does, to the same bytes.
#[test]
fn a_folder_of_files_is_one_data_set() {
    let desk = Desk::new();
    fs_err::create_dir(desk.at("data")).unwrap();
    let rows: Vec<String> = (0..6).map(|number| row(number, &json!({}))).collect();
    desk.write("all.jsonl", &rows.join("\n"));
    desk.write("data/README.md", "six rows");
    desk.write("data/a.json", &format!("[\n{}\n]", rows[..2].join(",\n")));
    desk.write("data/b.csv", "prompt,completion\nis 2 so?,yes\n\"is 3 so?\",\"yes\"\n");
    desk.write("data/c.jsonl", &rows[4..].join("\r\n"));
    for (data, out) in [("all.jsonl", "one"), ("data", "many")] {
        desk.run(&format!("finetune --model model --train {data} --out {out} {CHEAP_TRAINING}"));
    }
    let adapter = |out: &str| fs_err::read(desk.at(out).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("one") == adapter("many"));

    let run = format!("run --model model --train data --eval data --prune 2 --out r {CHEAP}");
    desk.run(&run);
    desk.write("data/d.jsonl", &row(6, &json!({})));
    let failure = desk.failure(&run);
    assert!(failure.contains("inputs.train_sha256 was"), "{failure}");
}

#[test]
fn a_field_that_is_not_understood_is_named_or_skipped() {
    let desk = Desk::new();
    let rows: Vec<String> = (0..4)
        .map(|number| {
            let more = if number == 2 { json!({"hint": "h", "note": [1]}) } else { json!({}) };
            row(number, &more)
        })
        .collect();
    desk.write("rows.jsonl", &rows.join("\n"));
    let commands = [
        format!("run --model model --train rows.jsonl --prune 2 --out r {CHEAP}"),
        "collect --model model --train rows.jsonl --out record --steps 1 --device cpu".into(),
        format!("finetune --model model --train rows.jsonl --out a {CHEAP_TRAINING}"),
        "eval --model model --data rows.jsonl --device cpu".into(),
        "estimate --model model --train rows.jsonl --device cpu".into(),
    ];
    let failures: String = commands.iter().map(|command| desk.failure(command)).collect();
    expect![[r#"
        exit 1
        error: the run in `r` did not begin
          because: rows.jsonl line 3: `hint`, `note` are not understood here; pass `--ignore-fields hint,note` to skip them
        exit 1
        error: cannot collect gradients of `model` on `rows.jsonl`
          because: rows.jsonl line 3: `hint`, `note` are not understood here; pass `--ignore-fields hint,note` to skip them
        exit 1
        error: cannot fine-tune `model` on `rows.jsonl`
          because: rows.jsonl line 3: `hint`, `note` are not understood here; pass `--ignore-fields hint,note` to skip them
        exit 1
        error: cannot evaluate `model` on `rows.jsonl`
          because: rows.jsonl line 3: `hint`, `note` are not understood here; pass `--ignore-fields hint,note` to skip them
        exit 1
        error: cannot tell what a run of `model` would need
          because: rows.jsonl line 3: `hint`, `note` are not understood here; pass `--ignore-fields hint,note` to skip them
    "#]].assert_eq(&failures);
    for command in &commands {
        desk.run(&format!("{command} --ignore-fields hint,note"));
    }
    let settings = fs_err::read_to_string(desk.at("r/run.toml")).unwrap();
    assert!(settings.contains("ignore_fields = [\"hint\", \"note\"]"), "{settings}");
    let failure = desk.failure(&format!("{} --ignore-fields note,hint,more", commands[0]));
    assert!(failure.contains("settings.ignore_fields was"), "{failure}");
}
