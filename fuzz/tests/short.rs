//! A short run of every reader, and everything that ever broke one.

use std::path::Path;
use std::process::Command;

fn fuzz(arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(arguments)
        .env("FUZZ_SECONDS", "60")
        .current_dir(root)
        .output()
        .expect("the program starts");
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
}

#[test]
fn readers_hold_for_a_while() {
    let findings = env!("CARGO_TARGET_TMPDIR");
    fuzz(&["run", "--inputs", "400", "--seed", "7", "--corpus", findings]);
}

#[test]
fn what_broke_readers_once_does_not_again() {
    fuzz(&["check"]);
}
