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
        command.envs(set.iter().copied());
        // What another test starts meanwhile may hold the files open for a moment.
        let started = (0..100).find_map(|_| match command.output() {
            Ok(output) if output.status.success() => Some(text(&output.stdout).trim().to_owned()),
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(20));
                None
            }
        });
        started.expect("the script is started")
    };
    // Drivers under WSL cannot let memory grow.
    let release = fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let grows = !release.to_lowercase().contains("microsoft");
    let allocator = if grows { "expandable_segments:True" } else { "" };
    let found = said(&[]);
    assert!(found.starts_with("eval --json|"), "{found}");
    assert!(found.ends_with(&format!("/lib:/mine|{allocator}")), "{found}");
    // A value set by either name is left alone.
    assert!(said(&[("PYTORCH_ALLOC_CONF", "backend:native")]).ends_with("|backend:native"));
    assert!(said(&[("PYTORCH_CUDA_ALLOC_CONF", "backend:native")]).ends_with("/mine|"));
}
