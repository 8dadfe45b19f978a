//! The small program that finds libtorch and becomes the one that computes.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::text;

/// A script in the engine's place says what it was started with.
#[test]
fn the_engine_gets_arguments_libraries_and_an_allocator() {
    let folder = testkit::temporary_folder();
    let program = folder.path().join("gradpruner");
    fs_err::copy(env!("CARGO_BIN_EXE_gradpruner"), &program).unwrap();
    let engine = folder.path().join("gradpruner-engine");
    let script = "#!/bin/sh\necho \"$*|$LD_LIBRARY_PATH|$PYTORCH_ALLOC_CONF\"\n";
    fs_err::write(&engine, script).unwrap();
    fs_err::set_permissions(&engine, PermissionsExt::from_mode(0o755)).unwrap();
    let said = |set: &[(&str, &str)]| {
        let mut command = Command::new(&program);
        command.args(["eval", "--json"]).env("LD_LIBRARY_PATH", "/mine");
        for name in ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"] {
            command.env_remove(name);
        }
        let output = command.envs(set.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    let found = said(&[]);
    assert!(found.starts_with("eval --json|"), "{found}");
    assert!(found.ends_with("/lib:/mine|expandable_segments:True"), "{found}");
    // Who has chosen, by either name, is asked no further.
    assert!(said(&[("PYTORCH_ALLOC_CONF", "backend:native")]).ends_with("|backend:native"));
    assert!(said(&[("PYTORCH_CUDA_ALLOC_CONF", "backend:native")]).ends_with("/mine|"));
}
