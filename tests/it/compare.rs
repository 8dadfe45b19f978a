//! `gradpruner compare`: cells that share what they have in common, and go on after being killed.

use serde_json::Value;

use crate::support::{CHEAP, Desk, text};

fn command(rest: &str) -> String {
    format!("compare --model model --train train.jsonl --eval test.jsonl --out c {rest} {CHEAP}")
}

/// One layer goes.
const PLAN: &str = r#"{"format": "gradpruner-plan", "version": 1, "num_layers": 6, "pruned": [3], "merges": [],
    "density": 0.2, "rule": "same-sign"}"#;

/// The results in the store, by kind.
fn stored(desk: &Desk, kind: &str) -> usize {
    let name = |entry: std::io::Result<fs_err::DirEntry>| entry.unwrap().file_name();
    let names = fs_err::read_dir(desk.at("c/store")).unwrap().map(name);
    let beside = [".note.json", ".trial.jsonl"];
    let is_one =
        |name: &str| name.starts_with(kind) && !beside.iter().any(|ending| name.ends_with(ending));
    names.filter(|name| is_one(&name.to_string_lossy())).count()
}

/// Accuracy and perplexity of every cell, without times.
fn figures(found: &Value) -> Vec<Value> {
    let cells = found["cells"].as_array().unwrap().iter();
    cells
        .map(|cell| {
            let on = &cell["evaluations"][0];
            let of = |report: &Value| serde_json::json!([report["acc"], report["perplexity"]]);
            serde_json::json!([cell["cell"], cell["pruned"], of(&on["before"]), of(&on["after"])])
        })
        .collect()
}

#[test]
fn cells_share_what_they_have_in_common() {
    let desk = Desk::new();
    let all =
        "--prune 1,2 --methods igia,last,greedy --repairs drop,linear-map --choose 4 --keep-models";
    let found = desk.json(&command(all));
    // The dense model, and 2 ratios × 2 repairs × 3 criteria.
    assert_eq!(found["cells"].as_array().unwrap().len(), 13);
    assert_eq!(
        (stored(&desk, "record-"), stored(&desk, "collected-"), stored(&desk, "selection-")),
        (1, 1, 6)
    );
    let plans: std::collections::BTreeSet<String> =
        found["cells"].as_array().unwrap().iter().map(|cell| cell["pruned"].to_string()).collect();
    // One of no layer, which is the dense model's; of each other the models with and without maps.
    assert_eq!(stored(&desk, "pruned-"), 2 * (plans.len() - 1));
    assert_eq!(stored(&desk, "adapter-"), 2 * (plans.len() - 1));
    assert_eq!(stored(&desk, "dense-adapter-"), 1);
    for name in ["compare.json", "compare.csv", "compare.md", "compare.html"] {
        assert!(desk.at("c").join(name).exists(), "{name}");
    }
    let page = fs_err::read_to_string(desk.at("c/compare.html")).unwrap();
    assert!(
        page.contains("<svg") && page.contains("prefers-color-scheme") && !page.contains("http")
    );
    let lines = fs_err::read_to_string(desk.at("c/compare.csv")).unwrap().lines().count();
    assert_eq!(lines, 14);

    // All rows to train on are the same ones, since one criterion wants some held out.
    let record = fs_err::read_dir(desk.at("c/store")).unwrap().map(|entry| entry.unwrap().path());
    let record = record.filter(|path| path.is_dir() && path.to_string_lossy().contains("record-"));
    let manifest = testkit::json(&record.last().unwrap().join("manifest.json"));
    assert_eq!(manifest["data"]["rows"], 20);

    // Again it costs nothing; a further criterion costs itself.
    let before = stored(&desk, "adapter-");
    assert_eq!(figures(&desk.json(&command(all))), figures(&found));
    let more = desk.json(&command(&all.replace("last,", "last,magnitude,")));
    assert_eq!(more["cells"].as_array().unwrap().len(), 17);
    assert!(stored(&desk, "record-") == 1 && stored(&desk, "adapter-") <= before + 4);
    let of_igia = |found: &Value| {
        let cells = figures(found).into_iter();
        cells.filter(|cell| cell[0]["way"]["criterion"] == "igia").collect::<Vec<_>>()
    };
    assert_eq!(of_igia(&more), of_igia(&found));
}

/// Checkpoints go when their cells are done, and a later comparison that needs one makes it again.
#[test]
fn models_go_when_no_cell_needs_them() {
    let desk = Desk::new();
    let kept = |desk: &Desk| ["pruned-", "tuned-", "dense-tuned-"].map(|kind| stored(desk, kind));
    let all = "--prune 1,2 --methods last,magnitude,race:last+magnitude --finetune lora,full --repairs drop --choose 4";
    let found = desk.json(&command(all));
    assert_eq!(kept(&desk), [0, 0, 0]);
    let files = fs_err::read_dir(desk.at("c/store")).unwrap();
    let states = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let states: Vec<_> = states.filter(|name| name.contains(".state")).collect();
    assert!(states.iter().all(|name| name.starts_with("collected-")), "{states:?}");
    // One that keeps them comes to the same.
    let other = command(&format!("{all} --keep-models")).replace("--out c", "--out d");
    assert_eq!(figures(&desk.json(&other)), figures(&found));
    let kinds = fs_err::read_dir(desk.at("d/store")).unwrap();
    let kinds = kinds.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let count = kinds.filter(|name| name.starts_with("pruned-") && !name.contains(".note")).count();
    assert!(count >= 2, "{count}");

    // Nothing is made again for what is known; what a further set asks of the models is.
    assert_eq!(figures(&desk.json(&command(all))), figures(&found));
    let notes = |desk: &Desk| {
        let entries = fs_err::read_dir(desk.at("c/store")).unwrap().map(|entry| entry.unwrap());
        let is_model = |name: &str| {
            name.ends_with(".note.json")
                && (name.starts_with("pruned-") || name.starts_with("tuned-"))
        };
        let models = entries.filter(|entry| is_model(&entry.file_name().to_string_lossy()));
        models.map(|entry| entry.metadata().unwrap().modified().unwrap()).max().unwrap()
    };
    let before = notes(&desk);
    fs_err::copy(desk.at("train.jsonl"), desk.at("more.jsonl")).unwrap();
    let further = command(all).replace("test.jsonl", "test.jsonl,more.jsonl");
    let again = desk.json(&further);
    assert_eq!(figures(&again), figures(&found));
    assert!(notes(&desk) > before && kept(&desk) == [0, 0, 0]);

    // What was spent on choosing is a part of all, most where choices race, none of the dense model's.
    for cell in found["cells"].as_array().unwrap() {
        let of = |name: &str| cell[name].as_f64().unwrap();
        assert!(of("seconds_choosing") < of("seconds"), "{cell}");
        assert_eq!(of("seconds_choosing") == 0.0, cell["cell"]["way"].is_null(), "{cell}");
        let Some(race) = cell["race"]["candidates"].as_array().filter(|all| all.len() > 1) else {
            continue;
        };
        let same = found["cells"].as_array().unwrap().iter().find(|other| {
            other["cell"]["way"]["criterion"] == race[0]["criteria"][0]
                && other["cell"]["way"]["prune"] == cell["cell"]["way"]["prune"]
                && other["cell"]["finetune"] == cell["cell"]["finetune"]
        });
        assert!(same.unwrap()["seconds_choosing"].as_f64().unwrap() < of("seconds_choosing"));
    }
}

/// Repairs are judged and pupils taught alike whether checkpoints are kept, dropped or made again.
#[test]
fn judged_and_taught_models_are_the_same_without_their_checkpoints() {
    for all in [
        "--prune 2 --methods last,race:last+magnitude --repairs weighted,linear-map --choose 4",
        "--prune 2 --methods last,magnitude --repairs drop --finetune full --distil 0.5",
    ] {
        let desk = Desk::new();
        let kept = command(&format!("{all} --keep-models")).replace("--out c", "--out d");
        let found = figures(&desk.json(&command(all)));
        assert_eq!(figures(&desk.json(&kept)), found, "{all}");
        assert_eq!(stored(&desk, "pruned-") + stored(&desk, "dense-tuned-"), 0, "{all}");
        fs_err::copy(desk.at("train.jsonl"), desk.at("more.jsonl")).unwrap();
        let further = command(all).replace("test.jsonl", "test.jsonl,more.jsonl");
        assert_eq!(figures(&desk.json(&further)), found, "{all}");
        assert_eq!(stored(&desk, "pruned-") + stored(&desk, "dense-tuned-"), 0, "{all}");
    }
}

/// It says what it needs before it begins, and after each cell how far it is; of what is there it needs nothing.
#[test]
fn needs_and_progress_are_told() {
    let desk = Desk::new();
    let told = |rest: &str| {
        let output = desk.output(&command(rest));
        assert!(output.status.success());
        text(&output.stderr)
    };
    let first = told("--prune 2 --methods last --repairs drop");
    let needs = first.lines().find(|line| line.contains("needs about ")).unwrap();
    assert!(needs.contains(" on disk and ") && needs.ends_with("for 2 cells"), "{first}");
    let place = |what: &str| first.find(what).unwrap_or_else(|| panic!("{what}: {first}"));
    assert!(place("needs about") < place("cell 1 of 2"));
    assert!(
        place("1 of 2 cells done, about ")
            < place("2 of 2 cells done; best so far 2 by last, drop, lora, seed 0 (")
    );
    let more = told("--prune 2 --methods last,magnitude --repairs drop");
    assert!(more.contains("for 3 cells, 2 of them already done"), "{more}");
    let again = told("--prune 2 --methods last,magnitude --repairs drop");
    assert!(!again.contains("needs about") && again.contains("3 of 3 cells done"), "{again}");
}

/// The page says how to have the best model, and that command comes to exactly that cell.
#[test]
fn the_best_cell_can_be_made_again() {
    let desk = Desk::new();
    // One criterion takes rows out of training, of all cells.
    let found =
        desk.json(&command("--prune 2 --methods last,greedy --repairs drop --choose 4 --seed 3"));
    let text = fs_err::read_to_string(desk.at("c/compare.md")).unwrap();
    let line = text.lines().find(|line| line.starts_with("gradpruner run ")).unwrap();
    desk.run(line.strip_prefix("gradpruner ").unwrap());
    let made = testkit::json(&desk.at("best/eval.json"));
    let criterion =
        toml::from_str::<toml::Table>(&fs_err::read_to_string(desk.at("best/run.toml")).unwrap())
            .unwrap();
    let criterion = criterion["settings"]["criterion"].as_str().unwrap();
    let cells = found["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["cell"]["way"]["criterion"] == criterion).unwrap();
    let on = &cell["evaluations"][0];
    for (own, theirs) in [("pruned", "before"), ("pruned_tuned", "after")] {
        for figure in ["acc", "perplexity"] {
            assert_eq!(made[own][figure], on[theirs][figure], "{own} {figure}: {line}");
        }
    }
    let page = fs_err::read_to_string(desk.at("c/compare.html")).unwrap();
    assert!(page.contains("<pre class=\"command\">gradpruner run --model=model "), "{line}");
}

#[test]
fn a_killed_comparison_goes_on() {
    let desk = Desk::new();
    let arguments = command("--prune 2 --methods igia,last --seeds 2");
    let expected = figures(&desk.json(&arguments));
    assert_eq!(expected.len(), 6);
    // Kinds of results half-made, and the first cells done.
    for mark in [".record-", "collected-", "maps-", ".pruned-", "adapter-", "evaluations-", "cell-"]
    {
        fs_err::remove_dir_all(desk.at("c")).unwrap();
        desk.kill_when(&arguments, || desk.has_like(&format!("c/store/{mark}")));
        assert_eq!(figures(&desk.json(&arguments)), expected, "{mark}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused_and_what_time_is_short_for_is_named() {
    let desk = Desk::new();
    let failure = desk.failure(&command("--prune 2,5"));
    assert!(failure.contains("--keep first:1,last:1 leaves 4 of 6 layers"), "{failure}");
    assert!(
        failure.contains("--prune 5 --methods best --repairs linear-map --finetune lora"),
        "{failure}"
    );
    let failure =
        desk.failure(&command("--prune 2,1 --methods last --repairs drop,same-sign --merge 2"));
    assert!(
        failure.contains(
            "--prune 1 --methods last --repairs same-sign --finetune lora cannot be used"
        ),
        "{failure}"
    );
    assert!(failure.contains("2 layers are to be merged, but only 1 are pruned"), "{failure}");
    let failure =
        desk.failure(&command("--prune 2").replace("test.jsonl", "test.jsonl,nowhere.jsonl"));
    assert!(failure.contains("--eval nowhere.jsonl cannot be used"), "{failure}");
    let failure = desk.failure(&command("--prune 2 --methods greedy --choose 24"));
    assert!(failure.contains("--choose 24 holds out 24 of 24 training rows"), "{failure}");

    let failure = desk.failure(&command("--prune 2").replace("--steps 3", "--steps auto"));
    assert!(failure.contains("`--steps auto` follows one criterion's choice"), "{failure}");

    assert!(!desk.at("c").exists(), "all was refused before the folder was made");

    let found = desk.json(&command("--prune 1,2,1 --methods igia,last,igia --budget 0.001s"));
    // The first cell is made whatever the budget: nothing is known of how long one takes.
    assert_eq!(found["cells"].as_array().unwrap().len(), 1);
    assert_eq!(found["left_out"].as_array().unwrap().len(), 4);
    let text = fs_err::read_to_string(desk.at("c/compare.md")).unwrap();
    assert!(text.contains("No time was left for: 1 by igia, linear-map, lora, seed 0;"), "{text}");
}

/// Trained alike: the model itself, beside its name for a baseline, comes to what the dense one comes to.
#[test]
fn a_baseline_is_trained_alike() {
    let desk = Desk::new();
    testkit::tiny_checkpoint(&desk.at("twin"));
    // Another model: it has one layer less.
    desk.write("plan.json", PLAN);
    desk.run("prune --model model --plan plan.json --out small");
    let found =
        desk.json(&command("--prune 2 --methods last --repairs drop --baseline twin,small"));
    let cells = figures(&found);
    assert_eq!(cells.len(), 4);
    let of = |cell: &Value| (cell[2].clone(), cell[3].clone());
    assert_eq!(of(&cells[1]), of(&cells[0]), "{cells:?}");
    assert_ne!(of(&cells[2]), of(&cells[0]));
    assert_eq!(found["cells"][2]["size"]["num_layers"], 5);
    // Nothing is collected on baselines.
    assert_eq!((stored(&desk, "record-"), stored(&desk, "dense-adapter-")), (1, 3));
    let lines = fs_err::read_to_string(desk.at("c/compare.csv")).unwrap();
    assert!(
        lines.lines().any(|line| line.starts_with("small,0,,,lora,0,test.jsonl,5,")),
        "{lines}"
    );
    let page = fs_err::read_to_string(desk.at("c/compare.html")).unwrap();
    assert!(page.contains("small, 5 layers, lora"));
    // Layers that get adapters by their scores are found for each.
    let by_scores =
        "--prune 2 --methods last --repairs drop --lora-layers auto --baseline twin,small";
    let cells_by_scores = figures(&desk.json(&command(by_scores).replace("--out c", "--out d")));
    assert_eq!(of(&cells_by_scores[1]), of(&cells_by_scores[0]), "{cells_by_scores:?}");
    // Another model under the same name is another baseline.
    fs_err::remove_dir_all(desk.at("twin")).unwrap();
    fs_err::rename(desk.at("small"), desk.at("twin")).unwrap();
    let again = desk.json(&command("--prune 2 --methods last --repairs drop --baseline twin"));
    assert_eq!(of(&figures(&again)[1]), of(&cells[2]));
    assert_eq!(stored(&desk, "dense-adapter-"), 3, "its training was there");
}

/// A flag that one of several methods has no use for is for the others, and a comparison that is refused leaves the pages of
/// another as they are.
#[test]
fn flags_are_for_the_methods_that_have_a_use_for_them() {
    let desk = Desk::new();
    let both = "--prune 2 --methods last --repairs drop --finetune lora,head+last:2 --targets q_proj,v_proj";
    let found = desk.json(&command(both));
    assert_eq!(found["cells"].as_array().unwrap().len(), 4, "{found}");
    let page = fs_err::read_to_string(desk.at("c/compare.html")).unwrap();
    let failure = desk.failure(&command(&both.replace("lora,head+last:2", "full")));
    assert!(failure.contains("--targets applies to adapters"), "{failure}");
    assert_eq!(fs_err::read_to_string(desk.at("c/compare.html")).unwrap(), page);
}

#[test]
fn a_baseline_that_cannot_be_used_is_refused_first() {
    let desk = Desk::new();
    let refused = |rest: &str, because: &str| {
        let failure = desk.failure(&command(&format!("--prune 2 --baseline {rest}")));
        let name = rest.split(' ').next().unwrap();
        assert!(failure.contains(&format!("--baseline {name} cannot be used")), "{failure}");
        assert!(failure.contains(because), "{failure}");
        assert!(!desk.at("c").exists(), "{failure}");
    };
    refused("nowhere", "nowhere");
    fs_err::create_dir(desk.at("empty")).unwrap();
    refused("empty", "config.json");
    testkit::tiny_checkpoint(&desk.at("mute"));
    fs_err::remove_file(desk.at("mute/tokenizer.json")).unwrap();
    refused("mute", "tokenizer.json");
    testkit::tiny_checkpoint(&desk.at("odd"));
    desk.write("odd/tokenizer_config.json", "{\"chat_template\": \"{% for x in %}\"}");
    refused("odd", "template");
    desk.write("plan.json", &PLAN.replace("[3]", "[1, 2, 3]"));
    desk.run("prune --model model --plan plan.json --out small");
    refused(
        "small --finetune head+last:4",
        "it has 3 layers, and the training by head+last:4 asks for 4",
    );
}

/// Each cell takes the learning rate that stands best on held-out rows, and is then what a run by it comes to.
#[test]
fn learning_rates_are_chosen_on_held_out_rows() {
    let desk = Desk::new();
    let compare = |rest: &str, out: &str| {
        desk.json(&format!(
            "compare --model model --train train.jsonl --eval test.jsonl --prune 3 --methods last --paper --choose 4 \
             --out {out} {rest} {}",
            CHEAP.replace("--lr 1e-3", "")
        ))
    };
    let found = compare("--lr 1e-3 --learning-rates 1e-5,3e-3", "c");
    let cells = found["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 3);
    for cell in cells {
        let rates = cell["rates"].as_array().unwrap();
        let loss = |at: usize| rates[at]["trial"]["loss"].as_f64().unwrap();
        assert!(rates.len() == 2 && loss(0) <= loss(1), "{cell}");
    }
    // The tiny model learns nothing by the smaller one in three steps.
    assert_eq!(cells[0]["rates"][0]["learning_rate"], 3e-3);
    let one = compare("--lr 3e-3 --hold-out", "one");
    let after = |found: &Value, at: usize| {
        found["cells"][at]["evaluations"][0]["after"]["perplexity"].as_f64().unwrap()
    };
    // The paper's form has no guard, three steps of its own, and merges; it comes before the others.
    assert_eq!(cells[1]["cell"]["way"]["paper"], true);
    for at in [0, 2] {
        assert_eq!(cells[at]["rates"][0]["learning_rate"], 3e-3);
        assert_eq!(after(&found, at), after(&one, at));
    }
    assert!(fs_err::read_to_string(desk.at("c/compare.md")).unwrap().contains("the paper's form"));
    let csv = fs_err::read_to_string(desk.at("c/compare.csv")).unwrap();
    let rate = csv.lines().next().unwrap().split(',').position(|name| name == "learning_rate");
    let first: Vec<&str> = csv.lines().nth(1).unwrap().split(',').collect();
    assert_eq!(first[rate.unwrap()], "0.003", "{csv}");
    let failure = desk.failure(
        "compare --model model --train train.jsonl --eval test.jsonl --prune 2 --learning-rates 1e-3 --out x",
    );
    assert!(failure.contains("takes two or more to choose from"), "{failure}");
}

/// A cell that there is no plan for is named, and the others are made.
#[test]
fn a_cell_without_a_plan_is_passed_over() {
    let desk = Desk::new();
    // All layers but the last go, so layer 0 is to be merged.
    let found = desk
        .json(&command("--prune 5 --keep none --methods last --repairs same-sign,drop --merge 3"));
    let cells = found["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2, "{found}");
    let reason = found["impossible"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("no retained layer stands before it"), "{reason}");
    let report = fs_err::read_to_string(desk.at("c/compare.md")).unwrap();
    assert!(report.contains("Could not be made: 5 by last, same-sign, lora, seed 0 ("), "{report}");
}
