//! Races of several criteria's choices, in a run and in a comparison.

use crate::support::{CHEAP, Desk, text};

/// Nine steps after the three collected ones.
fn run(rest: &str, out: &str) -> String {
    format!(
        "run --model model --train train.jsonl --eval test.jsonl --prune 2 --choose 4 --out {out} {rest} {}",
        CHEAP.replace("--epochs 1", "--epochs 3")
    )
}

fn adapter(desk: &Desk, out: &str) -> Vec<u8> {
    fs_err::read(desk.at(out).join("adapter/adapter_model.safetensors")).unwrap()
}

/// The race's winner is what its criterion alone, on the same rows, would have come to, to the bit.
#[test]
fn a_winner_goes_on_from_its_own_trial() {
    let desk = Desk::new();
    let found = desk.json(&run("--criterion race:igia+last+magnitude+random --seed 5", "r"));
    let race = testkit::json(&desk.at("r/race.json"));
    let candidates = race["candidates"].as_array().unwrap();
    assert_eq!(found["plan"]["pruned"], candidates[0]["pruned"]);
    let criteria: usize =
        candidates.iter().map(|one| one["criteria"].as_array().unwrap().len()).sum();
    assert_eq!(criteria, 4);
    assert!(candidates.len() > 1, "all chose the same: {candidates:?}");
    // The winner ran all rounds, and was the best in its last one.
    let rounds = |one: &serde_json::Value| one["trials"].as_array().unwrap().len();
    let most = candidates.iter().map(rounds).max().unwrap();
    assert_eq!(rounds(&candidates[0]), most);
    let loss = |one: &serde_json::Value| one["trials"][most - 1]["loss"].as_f64();
    let others = candidates[1..].iter().filter_map(loss);
    assert!(others.fold(f64::INFINITY, f64::min) >= loss(&candidates[0]).unwrap());
    assert!(!desk.at("r/race").exists() && !desk.at("r/adapter.state").exists());
    // Its steps are logged once, those of its trial among them.
    let lines = fs_err::read_to_string(desk.at("r/metrics.jsonl")).unwrap();
    let steps: Vec<u64> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["stage"] == "finetune")
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (4..=u64::try_from(steps.len()).unwrap() + 3).collect::<Vec<_>>());

    // The same plan by hand, on the same rows: those held out are so because one criterion wants losses.
    let fitted = desk.at("r/maps/maps.safetensors");
    let winner = candidates[0]["criteria"][0].as_str().unwrap();
    desk.run(&format!(
        "compare --model model --train train.jsonl --eval test.jsonl --prune 2 --choose 4 --seed 5 --out c \
         --methods {winner},race:igia+last+magnitude+random {}",
        CHEAP.replace("--epochs 1", "--epochs 3")
    ));
    let compared = testkit::json(&desk.at("c/compare.json"));
    let cells = compared["cells"].as_array().unwrap();
    let after = |cell: &serde_json::Value| cell["evaluations"][0]["after"]["perplexity"].clone();
    assert_eq!((cells.len(), after(&cells[1])), (3, after(&cells[2])));
    let evaluated = testkit::json(&desk.at("r/eval.json"));
    assert_eq!(after(&cells[2]), evaluated["pruned_tuned"]["perplexity"]);
    let store = fs_err::read_dir(desk.at("c/store")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let adapters = store.filter(|path| {
        name(path).starts_with("adapter-") && path.join("adapter_config.json").exists()
    });
    let trained: Vec<Vec<u8>> = adapters
        .map(|path| fs_err::read(path.join("adapter_model.safetensors")).unwrap())
        .collect();
    assert!(trained.len() == 1 && trained[0] == adapter(&desk, "r"));
    assert!(fitted.exists());
}

/// Of several choices the one goes that loses least right after the repair, and all that follows is what its criterion
/// alone would have come to, to the bit.
#[test]
fn the_best_choice_right_after_the_repair_is_taken() {
    let desk = Desk::new();
    let best = "--criterion best:igia+linear-fit+last+random --seed 5";
    let said = text(&desk.output(&run(best, "r")).stderr);
    assert!(said.contains("compared on 4 rows held out, too few for a reliable choice"), "{said}");
    let race = testkit::json(&desk.at("r/race.json"));
    let candidates = race["candidates"].as_array().unwrap();
    assert!(candidates.len() > 1, "all chose the same: {candidates:?}");
    let losses: Vec<f64> = candidates
        .iter()
        .map(|one| {
            let trials = one["trials"].as_array().unwrap();
            assert_eq!((trials.len(), trials[0]["step"].as_u64()), (1, Some(3)));
            trials[0]["loss"].as_f64().unwrap()
        })
        .collect();
    assert!(losses.is_sorted(), "{losses:?}");
    let winner = candidates[0]["criteria"][0].as_str().unwrap();
    desk.run(&run(&format!("--criterion {winner} --seed 5 --hold-out"), "alone"));
    assert!(adapter(&desk, "r") == adapter(&desk, "alone"));
    let plan = |out: &str| testkit::json(&desk.at(out).join("plan.json"));
    assert_eq!(plan("r"), plan("alone"));
    // Whoever wins, the layers have scores, and the card says who won.
    assert_eq!(testkit::json(&desk.at("r/scores.json"))["criterion"], "igia");
    let card = fs_err::read_to_string(desk.at("r/adapter/README.md")).unwrap();
    assert!(card.contains(&format!("chosen by `{winner}`")), "{card}");
    assert!(!desk.at("r/race").exists());

    // The same in a comparison, where it costs no training of its own, and where nothing is trained.
    let compared = desk.json(&format!(
        "compare --model model --train train.jsonl --eval test.jsonl --prune 2 --choose 4 --seed 5 --out c \
         --methods {winner},best:igia+linear-fit+last+random {}",
        CHEAP.replace("--epochs 1", "--epochs 3")
    ));
    let cells = compared["cells"].as_array().unwrap();
    assert!(cells[1]["evaluations"][0]["after"]["perplexity"].is_f64());
    assert_eq!(cells[1]["evaluations"][0]["after"]["perplexity"], {
        cells[2]["evaluations"][0]["after"]["perplexity"].clone()
    });
    assert!(cells[2]["seconds_choosing"].as_f64() > cells[1]["seconds_choosing"].as_f64());
    desk.run(&run(&format!("{best} --finetune none"), "none"));
    assert!(!desk.at("none/adapter").exists() && !desk.at("none/adapter.state").exists());
    // What the adapters of a training are to be says nothing where none are trained yet.
    desk.run(&run(&format!("{best} --finetune full --rank 300"), "full"));
}

/// A criterion whose choice cannot be carried out does not keep the others from theirs.
#[test]
fn a_choice_without_a_plan_is_left_out() {
    let desk = Desk::new();
    let run = |criterion: &str, out: &str| {
        run(&format!("--criterion {criterion} --keep none --repair same-sign --merge 3"), out)
            .replace("--prune 2", "--prune 5")
    };
    // `last` takes layer 0 and would merge it.
    let output = desk.output(&run("best:last+linear-fit", "r"));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("there is no plan by last: "), "{said}");
    let race = testkit::json(&desk.at("r/race.json"));
    assert_eq!(race["candidates"][0]["criteria"], serde_json::json!(["linear-fit"]));
    let failure =
        desk.failure(&run("best:last+random", "s").replace("--prune 5", "--prune 5 --seed 1"));
    assert!(failure.contains("no retained layer stands before it"), "{failure}");
}

/// Of several criteria, the choice by the one that goes by gradients alone is followed as these are collected.
#[test]
fn a_choice_is_followed_as_gradients_are_collected() {
    let desk = Desk::new();
    let followed = |rest: &str, out: &str| {
        let said = text(&desk.output(&run(rest, out)).stderr);
        let line = said.lines().find(|line| line.contains("layer order: τ"));
        line.unwrap_or_else(|| panic!("{said}")).split_once(" steps; ").unwrap().1.to_owned()
    };
    let alone = followed("--criterion igia --hold-out", "one");
    assert_eq!(followed("--criterion best:linear-fit+igia", "several"), alone);
}

/// Killed where these are there, the same command ends in the same bytes.
fn goes_on(criterion: &str, marks: &[&str]) {
    let desk = Desk::new();
    let command = |out: &str| run(&format!("--criterion {criterion}"), out);
    desk.run(&command("whole"));
    for mark in marks {
        let out = format!("at-{}", mark.replace(['/', '.'], "-"));
        desk.kill_when(&command(&out), || desk.has_like(&format!("{out}/{mark}")));
        desk.run(&command(&out));
        assert!(adapter(&desk, &out) == adapter(&desk, "whole"), "killed at {mark}");
        assert!(!desk.at(&out).join("race").exists());
    }
}

#[test]
fn a_killed_comparison_of_choices_goes_on() {
    goes_on(
        "best:last+magnitude+random",
        &["race", "race/verdict-", "race/trial-", "race.json", "verdict.json", "adapter.state"],
    );
}

#[test]
fn a_killed_race_goes_on() {
    goes_on(
        "race:last+magnitude+random",
        &[
            "race",
            "race/adapter-",
            "race/trial-",
            "race.json",
            "pruned",
            "adapter.state",
            "adapter",
        ],
    );
}

/// A quarter of the training lies beyond the last round here, and the winner is looked at there; if it has collapsed, so
/// are the next two, and of all that have the one with the least loss goes on.
#[test]
fn auto_looks_at_the_winner_again() {
    let desk = Desk::new();
    desk.run(&run("--criterion auto", "r").replace("--epochs 3", "--epochs 12"));
    let race = testkit::json(&desk.at("r/race.json"));
    let candidates = race["candidates"].as_array().unwrap();
    // 20 rows are 5 steps an epoch; of 60 three are collected, and a quarter of the others is 15.
    let quarter = 3 + 15;
    let last = |one: &serde_json::Value| one["trials"].as_array().unwrap().last().unwrap().clone();
    let looked_at: Vec<_> = candidates.iter().map(last).filter(|x| x["step"] == quarter).collect();
    assert_eq!(last(&candidates[0])["step"], quarter);
    let has_collapsed = |trial: &serde_json::Value| {
        trial["acc_interval"]["low"].as_f64().unwrap() <= trial["majority"].as_f64().unwrap()
    };
    if race["collapsed"] == true {
        assert_eq!(looked_at.len(), candidates.len().min(3));
        assert!(looked_at.iter().all(has_collapsed));
        let loss = |trial: &serde_json::Value| trial["loss"].as_f64().unwrap();
        assert!(looked_at.iter().all(|other| loss(&looked_at[0]) <= loss(other)));
    } else {
        assert!(!has_collapsed(&looked_at[0]) && looked_at[1..].iter().all(has_collapsed));
    }
    // A race takes rows that are not trained on.
    assert_eq!(testkit::json(&desk.at("r/record/manifest.json"))["data"]["rows"], 20);
    let failure = desk.failure(&run("--criterion race:igia", "s"));
    assert!(failure.contains("`race:igia` compares nothing"), "{failure}");
    let failure = desk.failure(&run("--criterion race --finetune none", "s"));
    assert!(failure.contains("`race` compares fine-tuned models"), "{failure}");
    assert!(!desk.at("s").exists());
}

/// Where the repair's step is searched for, too, the winner's checkpoint and training are taken over.
#[test]
fn a_winner_whose_step_was_searched_for() {
    let desk = Desk::new();
    let output = desk.output(&run(
        "--criterion race:igia+last+random --repair weighted --merge 1 --density 0.5 --seed 5",
        "r",
    ));
    let progress = text(&output.stderr);
    assert!(output.status.success(), "{progress}");
    assert!(progress.contains("  prune and repair: already done"), "{progress}");
    assert!(desk.at("r/verdict.json").exists() && !desk.at("r/race").exists());
}

/// What one race has left in a store is not another one's standing.
#[test]
fn races_over_one_store_are_those_of_stores_of_their_own() {
    let desk = Desk::new();
    let compare = |methods: &str, out: &str| {
        let found = desk.json(&format!(
            "compare --model model --train train.jsonl --eval test.jsonl --prune 2 --choose 4 --out {out} \
             --methods {methods} {}",
            CHEAP.replace("--epochs 1", "--epochs 12")
        ));
        let cell = found["cells"].as_array().unwrap().last().unwrap().clone();
        (cell["race"].clone(), cell["pruned"].clone())
    };
    let alone = compare("race:last+random+magnitude", "alone");
    assert_eq!(compare("auto,race:last+random+magnitude", "together"), alone);
}

/// What an estimate foretells is what a run takes, those steps among them that a race's losers train.
#[test]
fn steps_are_as_foretold() {
    let desk = Desk::new();
    let flags = format!(
        "--model model --train train.jsonl --prune 2 --choose 4 --keep none --criterion race:last+magnitude+random \
         --seed 1 --distil {}",
        CHEAP.replace("--epochs 1", "--epochs 9")
    );
    let foretold = desk.json(&format!("estimate {flags}"));
    let steps = |stage: &str| {
        let stages = foretold["stages"].as_array().unwrap();
        let found = stages.iter().find(|one| one["stage"] == stage).unwrap();
        found["steps"].as_u64().unwrap()
    };
    desk.run(&format!("run {flags} --out r"));
    let lines = fs_err::read_to_string(desk.at("r/metrics.jsonl")).unwrap();
    for stage in ["collect", "finetune", "dense-finetune"] {
        let taken = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|line| line["stage"] == stage);
        assert_eq!(steps(stage), taken.count() as u64, "{stage}");
    }
    let race = testkit::json(&desk.at("r/race.json"));
    let candidates = race["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 3, "two chose the same: {candidates:?}");
    let trained = |one: &serde_json::Value| {
        one["trials"].as_array().unwrap().last().unwrap()["step"].as_u64().unwrap()
    };
    let in_vain: u64 = candidates[1..].iter().map(|one| trained(one) - steps("collect")).sum();
    assert_eq!(steps("race"), in_vain);
}
