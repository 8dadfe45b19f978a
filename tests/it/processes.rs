//! Training by several processes, as torchrun starts them.

use std::net::TcpListener;
use std::process::{Child, Stdio};

use crate::support::{Desk, text};

const TRAINING: &str =
    "--device cpu --dtype f32 --epochs 2 --batch 2 --accumulate 2 --lr 1e-3 --rank 2";

/// A port that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The same command in as many processes.
fn start(desk: &Desk, arguments: &str, size: usize) -> Vec<Child> {
    let port = free_port();
    (0..size)
        .map(|rank| {
            let mut command = desk.command(arguments);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect()
}

/// What each process printed, all of which must succeed.
fn finish(processes: Vec<Child>) -> Vec<String> {
    let outputs: Vec<_> =
        processes.into_iter().map(|process| process.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    outputs.iter().map(|output| text(&output.stdout)).collect()
}

/// Every loss in a training's metrics: those of its steps, a teacher's parts, and those of its looks.
fn losses(desk: &Desk, metrics: &str) -> Vec<f64> {
    let lines = fs_err::read_to_string(desk.at(metrics)).unwrap();
    let keys = ["loss", "divergence", "objective", "eval_loss", "eval_accuracy"];
    let of_line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        keys.map(|key| line[key].as_f64()).into_iter().flatten().collect::<Vec<f64>>()
    };
    lines.lines().flat_map(of_line).collect()
}

/// Losses and adapters of one process that takes all rows, by two and by five, of which one has no row in a step of
/// four; by `DoRA` with a teacher and rows held out, too. One process writes and prints.
#[test]
fn processes_train_as_one_does() {
    let desk = Desk::new();
    // Four rows are held out: of five processes one has none to look at.
    let taught = "--dora --distil --teacher model --eval-every 2 --choose 4";
    for (number, more) in ["", taught].iter().enumerate() {
        let command = |out: &str| {
            format!(
                "finetune --model model --train train.jsonl {TRAINING} {more} --metrics {out}.jsonl --out {out}"
            )
        };
        let one = format!("one-{number}");
        let said = desk.run(&command(&one));
        let kept = |said: &str| said.lines().find(|line| line.contains("kept")).map(str::to_owned);
        assert_eq!(kept(&said).is_some(), !more.is_empty(), "{said}");
        let expected = losses(&desk, &format!("{one}.jsonl"));
        for size in [2, 5] {
            let out = format!("by-{size}-{number}");
            let printed = finish(start(&desk, &command(&out), size));
            assert!(printed[0].contains("trained parameters"), "{printed:?}");
            assert!(printed[1..].iter().all(String::is_empty), "{printed:?}");
            assert_eq!(kept(&printed[0]), kept(&said));
            let found = losses(&desk, &format!("{out}.jsonl"));
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                // A teacher that is the model itself begins without a divergence.
                assert!((found - expected).abs() < 1e-5 * expected.max(0.1), "{found} {expected}");
            }
            let file = |out: &str| desk.at(out).join("adapter_model.safetensors");
            for name in testkit::tensor_names(&file(&one)) {
                let [(_, expected), (_, found)] =
                    [&one, &out].map(|out| testkit::tensor_f32(&file(out), &name));
                let apart = testkit::relative_deviation(&found, &expected);
                assert!(apart < 1e-3, "{name}: {apart}");
            }
        }
    }
}

/// All processes take up what the first one saved, and end where they would have.
#[test]
fn killed_processes_go_on() {
    let desk = Desk::new();
    let command = |out: &str| {
        format!(
            "finetune --model model --train train.jsonl {TRAINING} --save-every 1 --eval-every 2 --choose 4 --out {out}"
        )
    };
    let adapter = |out: &str| fs_err::read(desk.at(out).join("adapter_model.safetensors")).unwrap();
    finish(start(&desk, &command("whole"), 2));
    let mut processes = start(&desk, &command("killed"), 2);
    while !desk.at("killed.state/step-000003").exists() {
        std::thread::yield_now();
    }
    for process in &mut processes {
        process.kill().unwrap();
        assert!(!process.wait().unwrap().success());
    }
    assert!(!desk.at("killed").exists());
    finish(start(&desk, &command("killed"), 2));
    assert!(adapter("killed") == adapter("whole"));
    assert!(!desk.at("killed.state").exists());
}

/// What cannot be shared is refused, and a group that is not described.
#[test]
fn what_takes_one_process_says_so() {
    let desk = Desk::new();
    let failure = |arguments: &str, variables: &[(&str, &str)]| {
        let mut command = desk.command(arguments);
        command.envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let two = [("WORLD_SIZE", "2"), ("RANK", "0")];
    let found = failure("inspect model", &two);
    assert!(found.contains("only `finetune` does so"), "{found}");
    let train = format!("finetune --model model --train train.jsonl {TRAINING} --out a");
    let found = failure(&train, &two);
    assert!(found.contains("`MASTER_ADDR` is not set; start them by torchrun"), "{found}");
    let found = failure(&train, &[("WORLD_SIZE", "many")]);
    assert!(found.contains("`WORLD_SIZE` is `many`"), "{found}");
    let port = free_port().to_string();
    let all =
        [("WORLD_SIZE", "2"), ("RANK", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)];
    let found = failure(&train, &all);
    assert!(found.contains("`RANK` is `2`"), "{found}");
}

/// A backend that sums on GPUs alone is refused without them.
#[test]
fn a_backend_that_cannot_be_used_says_so() {
    let desk = Desk::new();
    let train =
        format!("finetune --model model --train train.jsonl {TRAINING} --backend nccl --out a");
    for process in start(&desk, &train, 2) {
        let output = process.wait_with_output().unwrap();
        let found = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{found}");
        assert!(found.contains("NCCL cannot be used: it sums between GPUs alone"), "{found}");
    }
    assert!(!desk.at("a").exists());
}
