//! Trainings that look at rows held out: the best weights are kept, and a training without progress ends.

use std::path::Path;

use crate::support::{CHEAP, CHEAP_TRAINING, Desk};

/// The looks of a stage in `metrics.jsonl`: after which step, and the loss.
fn looks(metrics: &Path, stage: &str) -> Vec<(u64, f64)> {
    let lines = fs_err::read_to_string(metrics).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["stage"] == stage && !line["eval_loss"].is_null())
        .map(|line| (line["step"].as_u64().unwrap(), line["eval_loss"].as_f64().unwrap()))
        .collect()
}

fn adapter(desk: &Desk, folder: &str) -> Vec<u8> {
    fs_err::read(desk.at(folder).join("adapter_model.safetensors")).unwrap()
}

/// So fast that the loss on rows held out goes up again.
const TOO_FAST: &str = "--device cpu --dtype f32 --batch 4 --accumulate 1 --rank 2 --lr 0.05 --decay constant \
     --epochs 8 --choose 6 --eval-every 2";

/// What is left are the weights of the smallest loss: those that a training has which ends there.
#[test]
fn the_best_weights_are_kept() {
    let desk = Desk::new();
    let command = format!("finetune --model model --train train.jsonl {TOO_FAST}");
    let found = desk.json(&format!("{command} --metrics m.jsonl --out best"));
    let looks = looks(&desk.at("m.jsonl"), "finetune");
    let last = found["report"]["steps"].as_u64().unwrap();
    let expected: Vec<u64> = (1..=last).filter(|step| step % 2 == 0 || *step == last).collect();
    assert_eq!(looks.iter().map(|(step, _)| *step).collect::<Vec<_>>(), expected);
    let &(step, loss) = looks.iter().min_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
    let kept = &found["report"]["kept"];
    assert_eq!((kept["step"].as_u64(), kept["loss"].as_f64()), (Some(step), Some(loss)));
    assert!(step < last && kept["stopped_early"] == false, "{looks:?}");
    desk.run(&format!("{command} --max-steps {step} --out short"));
    assert!(adapter(&desk, "best") == adapter(&desk, "short"));
    assert!(!desk.at("best.state").exists());

    // The rows held out are not trained on, and as many steps are taken without a look.
    let text = desk.run(&format!("{command} --patience 1 --out patient"));
    let words = "stopped early; kept the weights of step ";
    assert!(text.contains(words), "{text}");
    let failure = desk.failure(&command.replace("--eval-every 2", "--patience 2"));
    assert!(failure.contains("--eval-every"), "{failure}");
}

/// A run's trainings look at the rows that are held out, the dense model's too; a killed one goes on as if it never was.
#[test]
fn a_killed_training_that_looks_goes_on() {
    let desk = Desk::new();
    let cheap = CHEAP.replace("--epochs 1", "--epochs 6 --save-every 1");
    let run = |out: &str| {
        format!(
            "run --model model --train train.jsonl --prune 2 --with-dense --eval-every 2 --choose 6 {cheap} --out {out}"
        )
    };
    desk.run(&run("whole"));
    let of = |run: &str, stage| looks(&desk.at(run).join("metrics.jsonl"), stage);
    let (pruned, dense) = (of("whole", "finetune"), of("whole", "dense-finetune"));
    let steps = |looks: &[(u64, f64)]| looks.iter().map(|(step, _)| *step).collect::<Vec<_>>();
    // Collected steps are not looked at, nor those up to the look for a collapse, a quarter in.
    assert_eq!(steps(&dense), (2..=15).map(|half| 2 * half).collect::<Vec<_>>());
    assert_eq!(steps(&pruned), (5..=15).map(|half| 2 * half).collect::<Vec<_>>());
    for mark in ["adapter.state/looks.jsonl", "adapter.state/best/step-000014"] {
        let out = mark.replace('/', "-");
        desk.kill_when(&run(&out), || desk.at(&out).join(mark).exists());
        desk.run(&run(&out));
        assert!(
            adapter(&desk, &format!("{out}/adapter")) == adapter(&desk, "whole/adapter"),
            "{mark}"
        );
        assert_eq!(of(&out, "finetune"), pruned, "{mark}");
    }
    let page = fs_err::read_to_string(desk.at("whole/report.html")).unwrap();
    assert!(page.contains("pruned, rows held out"));
}

/// Rows held out that leave nothing to look at are an error, before anything is trained.
#[test]
fn a_look_needs_rows() {
    let desk = Desk::new();
    let command = format!(
        "finetune --model model --train train.jsonl --eval-every 1 {CHEAP_TRAINING} --out a"
    );
    let failure = desk.failure(&format!("{command} --choose 0"));
    assert!(failure.contains("--choose 0 holds out 0 of"), "{failure}");
}

/// A stopped training may be ended sooner, and looks whose training is gone count for nothing.
#[test]
fn looks_follow_the_state() {
    let desk = Desk::new();
    let command = |out: &str| {
        format!("finetune --model model --train train.jsonl {TOO_FAST} --save-every 1 --out {out}")
    };
    desk.kill_when(&command("a"), || desk.at("a.state/step-000009").exists());
    desk.run(&format!("{} --max-steps 4", command("a")));
    assert!(desk.at("a/adapter_model.safetensors").exists());

    desk.kill_when(&command("b"), || desk.at("b.state/looks.jsonl").exists());
    for entry in fs_err::read_dir(desk.at("b.state")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("step-") {
            fs_err::remove_dir_all(path).unwrap();
        }
    }
    let other = command("b").replace("--lr 0.05", "--lr 0.01");
    desk.run(&other);
    desk.run(&other.replace("--out b", "--out c"));
    assert!(adapter(&desk, "b") == adapter(&desk, "c"));

    let run =
        format!("run --model model --train train.jsonl --prune 2 --eval-every 2 {CHEAP} --out r");
    let failure = desk.failure(&format!("{run} --finetune none"));
    assert!(failure.contains("--finetune none trains nothing"), "{failure}");
    let failure = desk.failure(&run.replace("--prune 2", "--max-drop 2% --prune 2"));
    assert!(failure.contains("--max-drop compares trainings at their end"), "{failure}");
}
