//! As many layers as may go: `run --max-drop`.

use crate::support::{CHEAP, Desk};

fn run(rest: &str, out: &str) -> String {
    format!(
        "run --model model --train train.jsonl --eval test.jsonl --choose 4 --out {out} {rest} {CHEAP}"
    )
}

fn adapter(desk: &Desk, out: &str) -> Vec<u8> {
    fs_err::read(desk.at(out).join("adapter/adapter_model.safetensors")).unwrap()
}

/// What is found is the run with that many layers, to the bit, its steps logged once.
#[test]
fn the_amount_that_is_taken_is_a_run_of_its_own() {
    let desk = Desk::new();
    let found = desk.json(&run("--max-drop 100% --prune 4", "all"));
    assert_eq!(found["plan"]["pruned"].as_array().unwrap().len(), 4);
    let amount = testkit::json(&desk.at("all/amount.json"));
    assert_eq!((&amount["layers"], &amount["max_drop"]), (&4.into(), &"100%".into()));
    let tried = amount["tried"].as_array().unwrap();
    assert!(tried.len() > 1 && tried.iter().all(|one| one["within"] == true), "{amount}");
    assert!(!desk.at("all/amounts").exists() && !desk.at("all/adapter.state").exists());
    desk.run(&run("--prune 4 --with-dense --hold-out", "by-hand"));
    assert!(adapter(&desk, "all") == adapter(&desk, "by-hand"));
    let dense = |out: &str| {
        fs_err::read(desk.at(out).join("dense-adapter/adapter_model.safetensors")).unwrap()
    };
    assert!(dense("all") == dense("by-hand"));
    let evaluated = |out: &str| testkit::json(&desk.at(out).join("eval.json"));
    for model in ["pruned_tuned", "dense_tuned"] {
        let perplexity = |out: &str| evaluated(out)[model]["perplexity"].clone();
        assert_eq!(perplexity("all"), perplexity("by-hand"));
    }
    let steps = |out: &str| {
        let lines = fs_err::read_to_string(desk.at(out).join("metrics.jsonl")).unwrap();
        let step = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["stage"].to_string(), line["step"].as_u64().unwrap())
        };
        let mut steps: Vec<_> = lines.lines().map(step).collect();
        steps.sort();
        steps
    };
    assert_eq!(steps("all"), steps("by-hand"));
    // The report shows what was tried, and the same command finds it all.
    assert!(fs_err::read_to_string(desk.at("all/report.html")).unwrap().contains("--max-drop"));
    assert_eq!(desk.json(&run("--max-drop 100% --prune 4", "all")), found);
}

/// The same where choices are compared for each amount, and where that is killed.
#[test]
fn an_amount_whose_choices_are_compared() {
    let desk = Desk::new();
    let best = "--criterion best:last+magnitude";
    let command = |out: &str| run(&format!("--max-drop 100% --prune 3 {best}"), out);
    desk.run(&command("all"));
    let race = testkit::json(&desk.at("all/race.json"));
    assert_eq!(race["candidates"].as_array().unwrap().len(), 2, "{race}");
    let plan = testkit::json(&desk.at("all/plan.json"));
    assert_eq!(plan["pruned"], race["candidates"][0]["pruned"]);
    assert!(!desk.at("all/race").exists() && !desk.at("all/amounts").exists());
    desk.run(&run(&format!("--prune 3 --with-dense --hold-out {best}"), "by-hand"));
    assert!(adapter(&desk, "all") == adapter(&desk, "by-hand"));
    for mark in ["amounts/verdict-", "amounts/race-", "amount.json", "race.json"] {
        let out = format!("at-{}", mark.replace(['/', '.'], "-"));
        desk.kill_when(&command(&out), || desk.has_like(&format!("{out}/{mark}")));
        desk.run(&command(&out));
        assert!(adapter(&desk, &out) == adapter(&desk, "all"), "killed at {mark}");
    }
}

/// Killed in the middle, the same command ends in the same bytes, with a race in it too.
#[test]
fn a_killed_search_goes_on() {
    let desk = Desk::new();
    let command = |out: &str| run("--max-drop 100% --prune 3 --criterion race:last+magnitude", out);
    desk.run(&command("whole"));
    for mark in ["amounts/trial-", "amounts/pruned-", "amount.json", "plan.json", "adapter"] {
        let out = format!("at-{}", mark.replace(['/', '.'], "-"));
        desk.kill_when(&command(&out), || desk.has_like(&format!("{out}/{mark}")));
        desk.run(&command(&out));
        assert!(adapter(&desk, &out) == adapter(&desk, "whole"), "killed at {mark}");
        assert!(!desk.at(&out).join("amounts").exists());
    }
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let desk = Desk::new();
    let failure = desk.failure(&run("--max-drop 1% --finetune none", "x"));
    assert!(failure.contains("--max-drop judges fine-tuned models"), "{failure}");
    let failure = desk.failure(&run("--max-drop 1", "x"));
    assert!(failure.contains("`1` is not a share such as 1%"), "{failure}");
    let failure = desk.failure(&run("", "x"));
    assert!(failure.contains("--prune"), "{failure}");
    assert!(!desk.at("x").exists());
}
