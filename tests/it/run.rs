//! `gradpruner run`: complete, repeatable, and going on after being killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use crate::support::{CHEAP, CHEAP_TRAINING, Desk, text};

fn command(out: &str) -> String {
    format!(
        "run --model model --train train.jsonl --eval test.jsonl --prune 33% --criterion igia --merge 1 --density 0.5 --repair-always \
         --with-dense --save-merged --save-every 1 --out {out} {CHEAP}"
    )
}

/// Every file of a finished run but those that hold times or the command.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        for entry in fs_err::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "stages" {
                waiting.push(path);
            } else if !path.is_dir()
                && !["eval.json", "metrics.jsonl", "report.html", "command.txt", ".lock"].contains(&name.as_str())
                // PEFT's configuration names the base model by its path.
                && !name.ends_with("adapter_config.json")
            {
                found.insert(name, fs_err::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_run_leaves_what_it_promises() {
    let desk = Desk::new();
    let outcome = desk.json(&command("r"));
    for name in [
        "run.toml",
        "record/manifest.json",
        "record/activations.json",
        "scores.json",
        "plan.json",
        "pruned/config.json",
        "adapter/adapter_model.safetensors",
        "merged/model.safetensors",
        "dense-adapter/adapter_config.json",
        "eval.json",
        "metrics.jsonl",
        "report.html",
        "merged/README.md",
        "adapter/README.md",
        "pruned/README.md",
    ] {
        assert!(desk.at("r").join(name).exists(), "{name}");
    }
    let names: Vec<_> =
        outcome["comparison"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert_eq!(
        names,
        [
            "majority class",
            "dense, zero-shot",
            "dense, fine-tuned",
            "pruned, not tuned",
            "pruned, fine-tuned"
        ]
    );
    assert_eq!(outcome["result"], "r/merged");
    // The collected steps are the first of both fine-tunings.
    let by_stage = |run: &str| {
        let mut steps: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for line in fs_err::read_to_string(desk.at(run).join("metrics.jsonl")).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let stage = line["stage"].as_str().unwrap().to_owned();
            steps.entry(stage).or_default().push(line["step"].as_u64().unwrap());
        }
        ["collect", "finetune", "dense-finetune"].map(|stage| steps.remove(stage).unwrap())
    };
    assert_eq!(by_stage("r"), [vec![1, 2, 3], vec![4, 5, 6], vec![4, 5, 6]]);
    desk.run(&format!("finetune --model model --train train.jsonl --out alone {CHEAP_TRAINING}"));
    let adapter =
        |folder: &str| fs_err::read(desk.at(folder).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("alone") == adapter("r/dense-adapter"), "pruning costs the dense one nothing");
    desk.run(&format!("{} --restart", command("anew")));
    let six: Vec<u64> = (1..=6).collect();
    assert_eq!(by_stage("anew"), [vec![1, 2, 3], six.clone(), six]);
    assert!(adapter("anew/dense-adapter") == adapter("alone"));
    assert!(adapter("anew/adapter") != adapter("r/adapter"));
    // Again: nothing is left to do, and the result is the same.
    let before = contents(&desk.at("r"));
    assert_eq!(desk.json(&command("r"))["plan"], outcome["plan"]);
    assert_eq!(contents(&desk.at("r")), before);

    // Rows that were trained on are told.
    let leaky = desk.output(&command("s").replace("--eval test.jsonl", "--eval train.jsonl"));
    assert!(text(&leaky.stderr).contains("among the rows trained on"));
    let rows_trained_on = |run: &str| testkit::json(&desk.at(run))["rows_trained_on"].clone();
    assert_eq!(rows_trained_on("r/eval.json"), 0);
    assert_eq!(rows_trained_on("s/eval.json"), 24);

    // Other settings are not mixed in.
    let failure = desk.failure(&format!("{} --seed 9", command("r")));
    assert!(failure.contains("settings.seed was 0 and is 9"), "{failure}");
}

/// What was made of a plan that was edited since is not taken for the new plan's.
#[test]
fn a_plan_that_was_edited() {
    let desk = Desk::new();
    desk.run(&command("r"));
    let plan = desk.at("r/plan.json");
    let old = fs_err::read_to_string(&plan).unwrap();
    fs_err::write(&plan, old.replace("\"density\": 0.5", "\"density\": 0.25")).unwrap();
    let failure = desk.failure(&command("r"));
    assert!(
        failure.contains("r/pruned: it was made with different settings (plan.density)"),
        "{failure}"
    );
    fs_err::write(&plan, old).unwrap();
    desk.run(&command("r"));
}

/// A state that was saved for one plan is not taken up for another with as many layers.
#[test]
fn a_plan_that_was_edited_in_the_middle_of_the_training() {
    let desk = Desk::new();
    let edited = |out: &str| {
        let plan = desk.at(out).join("plan.json");
        let mut json = testkit::json(&plan);
        assert_eq!(json["pruned"].as_array().unwrap().len(), 2);
        json["pruned"] = serde_json::json!([1, 3]);
        fs_err::write(&plan, json.to_string()).unwrap();
        fs_err::remove_dir_all(desk.at(out).join("pruned")).unwrap();
    };
    let command = |out: &str| {
        command(out)
            .replace("--merge 1 --density 0.5", "--repair drop")
            .replace("--epochs 1", "--epochs 3")
    };
    desk.kill_when(&command("a"), || desk.at("a/adapter.state/step-000005").exists());
    assert!(!desk.at("a/adapter").exists(), "it was too late");
    edited("a");
    desk.run(&command("a"));

    desk.run(&command("b"));
    edited("b");
    for name in ["adapter", "merged", "dense-adapter"] {
        fs_err::remove_dir_all(desk.at("b").join(name)).unwrap();
    }
    fs_err::remove_file(desk.at("b/eval.json")).unwrap();
    desk.run(&command("b"));
    let adapter =
        |out: &str| fs_err::read(desk.at(out).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("a") == adapter("b"));
}

/// The report, the cards and the kept command.
#[test]
fn what_a_person_reads_of_a_run() {
    let desk = Desk::new();
    desk.run(&command("r"));
    let read = |name: &str| fs_err::read_to_string(desk.at(name)).unwrap();
    let digest = testkit::json(&desk.at("r/record/manifest.json"))["data"]["sha256"].clone();
    for (name, loading) in [
        ("merged", "AutoModelForCausalLM.from_pretrained(\"merged\")"),
        ("pruned", "AutoModelForCausalLM.from_pretrained(\"pruned\")"),
        ("adapter", "PeftModel.from_pretrained(pruned, \"adapter\")"),
    ] {
        let card = read(&format!("r/{name}/README.md"));
        for part in [
            "# model, 4 of 6 layers",
            "from `model` without layers ",
            "chosen by `igia`",
            "| pruned, fine-tuned |",
            "On `test.jsonl`.",
            digest.as_str().unwrap(),
            loading,
        ] {
            assert!(card.contains(part), "{name} lacks {part}: {card}");
        }
    }

    let report = read("r/report.html");
    assert!(
        report.contains("majority class") && report.contains("<svg") && !report.contains("http")
    );
    for part in [
        "<title>r</title>",
        "first steps, before pruning",
        "dense, evaluation loss",
        "evaluate pruned, tuned</td>",
        "gradpruner run --model model --train train.jsonl",
        "<h3>Learning rate</h3>",
        "<h3>Gradient norm</h3>",
        "<h2>Answers to the first rows</h2>",
        "Repair: <code>same-sign</code>",
        "<details><summary>Settings</summary>",
        " of memory</td>",
    ] {
        assert!(report.contains(part), "{part}");
    }
    // The table of the card is that of the report, but for speeds.
    let cells = |line: &str| line.split(" | ").map(str::to_owned).collect::<Vec<_>>();
    let card = read("r/merged/README.md");
    let tuned = card.lines().find(|line| line.starts_with("| pruned, fine-tuned")).unwrap();
    for cell in &cells(tuned)[1..] {
        assert!(report.contains(&format!("<td>{}</td>", cell.trim_end_matches(" |"))), "{cell}");
    }

    // The command is kept once, and with what may differ when a run goes on.
    let command_kept = format!("gradpruner {}\n", command("r"));
    assert_eq!(read("r/command.txt"), command_kept);
    desk.run(&format!("{} --remat", command("r")));
    let other = format!("gradpruner {} --remat\n", command("r"));
    assert_eq!(read("r/command.txt"), format!("{command_kept}{other}"));
}

/// Fully fine-tuned and never evaluated.
#[test]
fn a_tuned_checkpoint_has_a_card_and_a_report_says_what_was_not_evaluated() {
    let desk = Desk::new();
    desk.run(&format!(
        "run --model model --train train.jsonl --prune 2 --finetune full --out f {CHEAP}"
    ));
    let read = |name: &str| fs_err::read_to_string(desk.at(name)).unwrap();
    let card = read("f/tuned/README.md");
    for part in [
        "library_name: transformers",
        "Chosen and fine-tuned (full) on `train.jsonl`",
        "a linear map in place of each run of removed layers",
        "AutoTokenizer.from_pretrained(\"tuned\")",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let report = read("f/report.html");
    assert!(report.contains("No rows to evaluate on were given"), "{report}");
    assert!(report.contains("<th>error after</th>"), "{report}");
    for part in ["Answers to", "evaluation loss", "dashed line"] {
        assert!(!report.contains(part), "{part}");
    }
    // The first steps belong to a training of their own, and no dense model was trained.
    assert!(!report.contains("first steps") && !report.contains("</i>dense"), "{report}");
}

/// Killed as soon as a stage has left its mark, or a training has saved its state, the same command ends in the same bytes.
#[test]
fn a_killed_run_goes_on() {
    let mapped = |out: &str| {
        command(out)
            .replace("--merge 1 --density 0.5 --repair-always", "--criterion greedy --choose 4")
    };
    killed_and_going_on(&command);
    killed_and_going_on(&mapped);
}

fn killed_and_going_on(command: &dyn Fn(&str) -> String) {
    let desk = Desk::new();
    desk.run(&command("whole"));
    let expected = contents(&desk.at("whole"));
    let marks = [
        "run.toml",
        ".record.partial",
        "collected.state",
        "record",
        "scores.json",
        "plan.json",
        ".maps.partial",
        "maps",
        ".pruned.partial",
        "pruned",
        "adapter.state/step-000004",
        "merged",
        "adapter",
        "dense-adapter.state/step-000005",
        "dense-adapter",
        "evaluations",
    ];
    for mark in marks {
        let out = format!("killed-at-{}", mark.trim_start_matches('.').replace(['.', '/'], "-"));
        desk.kill_when(&command(&out), || desk.at(&out).join(mark).exists());
        desk.run(&command(&out));
        let found = contents(&desk.at(&out));
        assert!(found.keys().eq(expected.keys()), "{mark}: {:?}", found.keys());
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "killed at {mark}, {name} came out otherwise");
        }
    }
}

/// A repair is carried out where less is lost with it, or where it is asked for; else the layers are dropped alone.
#[test]
fn repairs_are_kept_where_less_is_lost() {
    let desk = Desk::new();
    let run = |repair: &str, out: &str| {
        let output = desk.output(&format!(
            "run --model model --train train.jsonl --prune 2 --criterion igia --finetune none --repair {repair} --out {out} \
             {CHEAP}"
        ));
        // Nothing was there before, nor is anything told twice.
        let said = text(&output.stderr);
        assert!(output.status.success() && !said.contains("already done"), "{said}");
        assert_eq!(said.matches("layers left").count(), 1, "{said}");
        fs_err::read(desk.at(out).join("pruned/model.safetensors")).unwrap()
    };
    let dropped = run("drop", "drop");
    assert!(!desk.at("drop/verdict.json").exists());
    let mut outcomes = BTreeMap::new();
    for (name, repair) in [
        ("linear-map", "linear-map"),
        ("scale", "scale"),
        ("laco", "laco"),
        ("always", "laco --repair-always"),
        ("weighted", "weighted --merge 1"),
        ("reconstruct", "reconstruct"),
    ] {
        let weights = run(repair, name);
        let verdict = testkit::json(&desk.at(&format!("{name}/verdict.json")));
        let kept = verdict["kept"].as_bool().unwrap();
        // A refused repair leaves nothing of itself, and a kept one leaves something.
        assert_eq!(weights != dropped, kept, "{name}: {verdict}");
        let lost = |key: &str| verdict[key].as_f64().unwrap();
        assert!(lost("dropped") > 0.0, "{verdict}");
        if name == "always" {
            assert!(kept && lost("repaired") >= lost("dropped"), "{verdict}");
        } else {
            assert_eq!(lost("repaired") < lost("dropped"), kept, "{verdict}");
            outcomes.insert(name, kept);
        }
        // A plan that only drops says nothing of a repair.
        assert_eq!(verdict["plan"]["repair"].is_null(), !kept, "{verdict}");
        let tried = verdict["search"]["tried"].as_array().map_or(0, Vec::len);
        assert_eq!(tried, if name == "weighted" { 4 } else { 0 });
        assert!(!desk.at(&format!("{name}/.candidate")).exists());
        let at = |file: &str| {
            let about = fs_err::metadata(desk.at(name).join(file)).unwrap();
            about.modified().unwrap()
        };
        // The checkpoint that was judged is the one that stays, so it was there before the verdict.
        let judged = at("pruned/model.safetensors") < at("verdict.json");
        assert_eq!(judged, kept && name != "weighted", "{name}");
    }
    assert!(outcomes.values().any(|kept| *kept), "{outcomes:?}");
    assert!(outcomes.values().any(|kept| !kept), "{outcomes:?}");
}

/// A repair that overflows is refused, and the run goes on without it.
#[test]
fn a_repair_that_overflows_is_refused() {
    let desk = Desk::new();
    let run = format!(
        "run --model model --train train.jsonl --prune 2 --criterion igia --finetune none --out r {CHEAP}"
    );
    desk.run(&run);
    // The maps as they might be; what was made of them is made again.
    let maps = desk.at("r/maps/maps.safetensors");
    let mut bytes = fs_err::read(&maps).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for value in bytes[8 + header..].chunks_exact_mut(4) {
        value.copy_from_slice(&1e30_f32.to_le_bytes());
    }
    fs_err::write(&maps, bytes).unwrap();
    for made in ["pruned", "verdict.json", "eval.json", "stages/verdict.json", "stages/pruned.json"]
    {
        remove(&desk.at("r").join(made));
    }
    let output = desk.output(&run);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("linear-map rejected: the layers are dropped without repair"), "{said}");
    assert!(said.contains("without it, not finite with it"), "{said}");
    let verdict = testkit::json(&desk.at("r/verdict.json"));
    assert!(verdict["repaired"].is_null() && verdict["kept"] == false, "{verdict}");
    let drop = run.replace("--out r", "--repair drop --out d");
    desk.run(&drop);
    let weights = |out: &str| fs_err::read(desk.at(out).join("pruned/model.safetensors")).unwrap();
    assert!(weights("r") == weights("d"));
}

/// Removes a file or a folder.
fn remove(path: &Path) {
    if path.is_dir() {
        fs_err::remove_dir_all(path).unwrap();
    } else {
        fs_err::remove_file(path).unwrap();
    }
}

/// An interrupt saves the state of a training; the same command then ends in the same bytes.
#[cfg(unix)]
#[test]
fn an_interrupted_training_says_how_to_go_on() {
    let desk = Desk::new();
    let finetune = |out: &str| {
        format!(
            "finetune --model model --train train.jsonl --out {out} --metrics {out}.jsonl {CHEAP_TRAINING} \
             --max-steps 300"
        )
        .replace("--epochs 1", "--epochs 60")
    };
    let steps = |out: &str| {
        let text = fs_err::read_to_string(desk.at(&format!("{out}.jsonl"))).unwrap_or_default();
        text.lines().count()
    };
    desk.run(&finetune("whole"));
    let child = desk
        .command(&finetune("part"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    while steps("part") < 3 {
        std::thread::yield_now();
    }
    let interrupt = ["-INT".to_owned(), child.id().to_string()];
    assert!(std::process::Command::new("kill").args(interrupt).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("stopped as asked after step "), "{error}");
    assert!(error.contains("the same command goes on from there"), "{error}");
    assert!(!desk.at("part").exists() && desk.at("part.state").exists());
    desk.run(&finetune("part"));
    let adapter = |out: &str| fs_err::read(desk.at(out).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("part") == adapter("whole"));
}

/// Rows held out to choose layers by are not trained on; where nobody asks for losses none are held out.
#[test]
fn rows_to_choose_by_are_not_trained_on() {
    let desk = Desk::new();
    let run = |rest: &str, out: &str| {
        desk.run(&format!(
            "run --model model --train train.jsonl --prune 2 --out {out} {rest} {CHEAP}"
        ));
        let manifest = testkit::json(&desk.at(out).join("record/manifest.json"));
        manifest["data"]["rows"].as_u64().unwrap()
    };
    assert_eq!(run("--criterion perplexity --choose 25%", "a"), 18);
    assert_eq!(run("--refine swap --choose 4", "b"), 20);
    assert_eq!(run("--criterion igia --choose 4", "c"), 24);
    assert_eq!(run("--choose 4", "e"), 20);
    assert!(desk.at("a/scores.json").exists());
    let failure = desk.failure(&format!(
        "run --model model --train train.jsonl --prune 2 --out d --criterion greedy --choose 24 {CHEAP}"
    ));
    assert!(failure.contains("--choose 24 holds out 24 of 24 training rows"), "{failure}");
    assert!(!desk.at("d").exists());
    let failure = desk.failure(&format!(
        "run --model model --train train.jsonl --prune 2 --out d --repair drop --merge 1 {CHEAP}"
    ));
    assert!(failure.contains("`drop` merges no layers, and --merge says 1"), "{failure}");
}

/// Two at once: one does the work, the other says who has the folder, and the folder is good.
#[test]
fn two_runs_in_one_folder() {
    let desk = Desk::new();
    let arguments =
        format!("run --model model --train train.jsonl --prune 2 --finetune none --out r {CHEAP}");
    let start =
        || desk.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut refused = 0;
    for _ in 0..4 {
        let runs = [start(), start()].map(|run| run.wait_with_output().unwrap());
        assert!(runs.iter().any(|run| run.status.success()));
        for run in runs.iter().filter(|run| !run.status.success()) {
            let error = text(&run.stderr);
            assert!(error.contains("because: r: another run is using it (process "), "{error}");
            refused += 1;
        }
        desk.run(&arguments); // It is there already, or goes on.
        fs_err::remove_dir_all(desk.at("r")).unwrap();
    }
    assert!(refused > 0, "they never met");
}

/// On a processor without fast bfloat16 products; libtorch takes these variables' word for it.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_processor_of_avx2_computes_in_f32() {
    let desk = Desk::new();
    let arguments =
        format!("run --model model --train train.jsonl --prune 2 --out r {CHEAP} --dtype auto")
            .replace("--dtype f32 ", "");
    let mut command = desk.command(&arguments);
    for (name, value) in [
        ("ATEN_CPU_CAPABILITY", "avx2"),
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
    ] {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let progress = text(&output.stderr);
    assert!(output.status.success(), "{progress}");
    assert!(progress.contains("  computing in f32 on cpu, 1 thread: measured "), "{progress}");
    let settings = fs_err::read_to_string(desk.at("r/run.toml")).unwrap();
    assert!(settings.contains("dtype = \"f32\""), "{settings}");
    // The run keeps the type it began with.
    desk.run(&format!("{arguments} --quiet"));
}

/// The settings of one run serve another; what is typed wins.
#[test]
fn a_run_takes_another_ones_settings() {
    let desk = Desk::new();
    let untuned = command("a").replace("--save-merged", "").replace("--with-dense", "");
    desk.run(&format!("{untuned} --finetune none"));
    desk.run("run --config a/run.toml --prune 1 --merge 0 --repair drop --out b");
    let settings = |run: &str| -> toml::Table {
        let text = fs_err::read_to_string(desk.at(run).join("run.toml")).unwrap();
        let mut found: toml::Table = toml::from_str(&text).unwrap();
        let Some(toml::Value::Table(settings)) = found.remove("settings") else { panic!("{text}") };
        settings
    };
    let mut expected = settings("a");
    for (key, value) in [("prune", "1".into()), ("merge", 0.into()), ("repair", "drop".into())] {
        expected.insert(key.into(), value);
    }
    assert_eq!(settings("b"), expected);
    // What a run that trains nothing has no use for stays behind.
    desk.run(&format!(
        "{} --targets q_proj",
        command("l").replace("--merge 1 --density 0.5", "--merge 1")
    ));
    desk.run("run --config l/run.toml --finetune none --out n");
    assert_eq!(settings("n")["with_dense"], false.into());
    let failure = desk.failure("run --config missing.toml --out c");
    assert!(failure.contains("cannot use --config `missing.toml`"), "{failure}");
    fs_err::write(desk.at("other.toml"), "format = \"x\"").unwrap();
    let failure = desk.failure("run --config other.toml --out c");
    assert!(failure.contains("other.toml: not a run's settings: missing field"), "{failure}");
}

/// After its plan was edited, a finished run has the new model's figures, and its card says who chose. What is removed of it
/// is made again.
#[test]
fn an_edited_plan_has_figures_of_its_own() {
    let desk = Desk::new();
    let arguments =
        command("r").replace("--merge 1 --density 0.5 --repair-always", "--repair drop");
    desk.run(&arguments);
    let figures = || testkit::json(&desk.at("r/eval.json"));
    let before = figures();
    let plan = fs_err::read_to_string(desk.at("r/plan.json")).unwrap();
    let mut edited: serde_json::Value = serde_json::from_str(&plan).unwrap();
    edited["pruned"] = serde_json::json!([0, 1, 2]);
    fs_err::write(desk.at("r/plan.json"), edited.to_string()).unwrap();
    let failure = desk.failure(&arguments);
    assert!(failure.contains("r/pruned: it was made with different settings"), "{failure}");
    for name in ["pruned", "adapter", "merged"] {
        fs_err::remove_dir_all(desk.at("r").join(name)).unwrap();
    }
    desk.run(&arguments);
    let after = figures();
    assert_eq!(after["sizes"][1]["num_layers"], 3);
    assert_eq!(after["dense_tuned"]["perplexity"], before["dense_tuned"]["perplexity"]);
    assert_ne!(after["pruned_tuned"]["perplexity"], before["pruned_tuned"]["perplexity"]);
    let card = fs_err::read_to_string(desk.at("r/merged/README.md")).unwrap();
    assert!(card.contains("chosen by hand"), "{card}");
    // The same once more, of what was removed.
    let weights = fs_err::read(desk.at("r/merged/model.safetensors")).unwrap();
    for names in [&["merged"][..], &["dense-adapter"], &["pruned", "adapter", "merged"]] {
        for name in names {
            fs_err::remove_dir_all(desk.at("r").join(name)).unwrap();
        }
        desk.run(&arguments);
        assert!(
            fs_err::read(desk.at("r/merged/model.safetensors")).unwrap() == weights,
            "{names:?}"
        );
        assert_eq!(figures(), after);
    }
}

/// What the pruned model cannot have is refused before anything is there.
#[test]
fn trainings_that_cannot_be_are_refused_first() {
    let desk = Desk::new();
    let run = format!("run --model model --train train.jsonl --prune 2 --out r {CHEAP}");
    for (flags, message) in [
        (
            "--lora-layers 4",
            "the pruned model has 4 layers, 0 to 3, and --lora-layers names layer 4",
        ),
        ("--finetune head+last:5", "the pruned model has 4 layers"),
        (
            "--finetune full --targets q_proj",
            "--targets applies to adapters, and `full` trains none",
        ),
        ("--finetune full --save-merged", "--save-merged merges an adapter"),
        ("--finetune none --with-dense", "--with-dense applies to fine-tuning"),
        ("--finetune none --distil", "--distil applies to fine-tuning"),
    ] {
        let failure = desk.failure(&format!("{run} {flags}"));
        assert!(failure.contains(message), "{flags}: {failure}");
        assert!(!desk.at("r").exists(), "{flags}");
    }
}

/// A training that was stopped is another model's if the folder holds other weights by then.
#[test]
fn a_saved_training_belongs_to_its_model() {
    let desk = Desk::new();
    let prune = |layers: &str| {
        let plan = format!(
            "{{\"format\": \"gradpruner-plan\", \"version\": 1, \"num_layers\": 6, \"pruned\": {layers}, \"merges\": [], \
             \"density\": 0.2, \"rule\": \"same-sign\"}}"
        );
        fs_err::write(desk.at("plan.json"), plan).unwrap();
        desk.run("prune --model model --plan plan.json --out pruned");
    };
    prune("[1, 2]");
    let arguments = format!(
        "finetune --model pruned --train train.jsonl --save-every 1 --out a {CHEAP_TRAINING}"
    );
    desk.kill_when(&arguments, || desk.at("a.state/step-000002").exists());
    fs_err::remove_dir_all(desk.at("pruned")).unwrap();
    prune("[3, 4]");
    let failure = desk.failure(&arguments);
    assert!(failure.contains("model_sha256 was "), "{failure}");
}
