//! Python: an environment for comparisons, and the tests of the Python package.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::models::Build;
use crate::root::{cache, root, run as run_command, say};

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct PythonArgs {
    /// Without the recorder's tests: only small decoders of many families, pruned and loaded by transformers
    #[arg(long)]
    decoders: bool,
}

/// Python with PyTorch, transformers, PEFT and lm-evaluation-harness, installed unless it is there.
pub(crate) fn environment() -> Result<PathBuf> {
    let folder = cache("python");
    let python = folder.join("bin/python");
    let complete = folder.join("complete");
    if !complete.exists() {
        say("installing PyTorch, transformers, PEFT and lm-evaluation-harness");
        run_command(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        let requirements = root().join("benches/pytorch/requirements.txt");
        let mut pip = Command::new(&python);
        run_command(pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements))?;
        fs_err::write(complete, "")?;
    }
    Ok(python)
}

/// Runs the tests of the Python package, and prunes a small decoder of every family that is tried.
pub(crate) fn run(arguments: &PythonArgs) -> Result<()> {
    let program = Build::Development.program()?;
    let python = environment()?;
    let tests = root().join("python/tests");
    if !arguments.decoders {
        let mut pip = Command::new(&python);
        let requirements = tests.join("requirements.txt");
        run_command(pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements))?;
        let mut suite = Command::new(&python);
        suite.args(["-W", "ignore", "-m", "unittest", "discover", "--start-directory"]).arg(&tests);
        suite.env("GRADPRUNER", &program).env("OMP_NUM_THREADS", "1").env("DS_ACCELERATOR", "cpu");
        run_command(suite.env("PATH", with_scripts(&python)?))?;
    }
    let mut decoders = Command::new(&python);
    decoders.arg(root().join("benches/pytorch/decoders.py")).arg(&program);
    run_command(decoders.env("OMP_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1"))
}

/// The path on which the environment's scripts are found, such as ninja, by which some packages build.
fn with_scripts(python: &Path) -> Result<OsString> {
    let scripts = python.parent().unwrap_or(python).to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    let all = [scripts].into_iter().chain(env::split_paths(&path));
    env::join_paths(all).context("a folder on the path has a colon in its name")
}
