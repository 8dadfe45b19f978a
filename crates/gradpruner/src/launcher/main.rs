//! What a user starts: finds the libtorch that the program was linked against, most often an installed PyTorch's, and
//! becomes the program beside it, `gradpruner-engine`.
//!
//! The engine cannot look for itself: the system's loader wants its libraries before its first line runs.

mod find;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use fs_err as fs;

use crate::find::Search;

/// The program's file.
const ENGINE: &str = "gradpruner-engine";
/// How libtorch takes a GPU's memory: in pieces that grow. Each step's rows have other lengths, so its tensors other sizes, and of
/// pieces of a fixed size much would lie idle.
const ALLOCATOR: (&str, &str) = ("PYTORCH_ALLOC_CONF", "expandable_segments:True");
/// The same setting by its older name.
const OLDER: &str = "PYTORCH_CUDA_ALLOC_CONF";

#[expect(clippy::print_stderr, reason = "the program that prints is not there yet")]
fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<ExitCode, String> {
    // Where it really lies: it may be started through a link.
    let own = env::current_exe().and_then(|path| path.canonicalize());
    let own =
        own.map_err(|error| format!("cannot tell where this program is installed: {error}"))?;
    let engine = own.with_file_name(ENGINE);
    if !engine.is_file() {
        return Err(format!(
            "`{}` is missing; it belongs beside `gradpruner`: install both",
            engine.display()
        ));
    }
    let library = Search::here(&own).libraries()?;
    let mut command = Command::new(&engine);
    let arguments: Vec<OsString> = env::args_os().collect();
    command.args(arguments.iter().skip(1));
    command.env("LD_LIBRARY_PATH", with_first(&library, env::var_os("LD_LIBRARY_PATH"))?);
    let (name, value) = ALLOCATOR;
    if [name, OLDER].iter().all(|name| env::var_os(name).is_none()) && !is_windows_below() {
        command.env(name, value);
    }
    become_it(command, arguments.first(), &engine)
}

/// Whether this Linux runs in Windows, whose drivers cannot let memory grow.
fn is_windows_below() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .is_ok_and(|release| release.to_lowercase().contains("microsoft"))
}

/// A search path that begins with a folder.
fn with_first(folder: &Path, others: Option<OsString>) -> Result<OsString, String> {
    let others = others.unwrap_or_default();
    let others = env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    let all = [folder.to_owned()].into_iter().chain(others);
    env::join_paths(all).map_err(|_| format!("`{}` has a colon in its name", folder.display()))
}

/// Replaces this process, so that signals reach the program and its exit status is this one's.
#[cfg(unix)]
fn become_it(
    mut command: Command,
    name: Option<&OsString>,
    engine: &Path,
) -> Result<ExitCode, String> {
    use std::os::unix::process::CommandExt;

    if let Some(name) = name {
        command.arg0(name);
    }
    let error = command.exec();
    Err(format!("`{}` cannot be started: {error}", engine.display()))
}

#[cfg(not(unix))]
fn become_it(
    mut command: Command,
    _: Option<&OsString>,
    engine: &Path,
) -> Result<ExitCode, String> {
    let status = command.status();
    let status =
        status.map_err(|error| format!("`{}` cannot be started: {error}", engine.display()))?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
