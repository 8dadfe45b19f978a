//! What is wanted, what was found, what to do.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::libtorch::{VERSION, folder, given, installed, verify, version};
use crate::root::{root, say};

/// Prints a line for each thing the project needs.
pub(crate) fn run() -> Result<()> {
    let mut fine = true;
    let mut check = |name: &str, found: Result<String, String>| match found {
        Ok(text) => say(&format!("ok    {name:<10} {text}")),
        Err(text) => {
            fine = false;
            say(&format!("want  {name:<10} {text}"));
        }
    };
    check("rust", output("rustc", &["--version"]).ok_or_else(|| "install it by rustup".into()));
    check("c++", output("c++", &["--version"]).ok_or_else(|| "install g++ or clang++".into()));
    check(
        "pip",
        output("python3", &["-m", "pip", "--version"]).ok_or_else(|| {
            "install python3 with pip; models and libtorch are fetched by it".into()
        }),
    );
    check("libtorch", libtorch());
    say(&format!("      {:<10} {}", "GPU", gpu()));
    ensure!(fine, "something is wanting");
    Ok(())
}

fn libtorch() -> Result<String, String> {
    let at = given().unwrap_or_else(folder);
    match version(&at).as_deref() {
        Some(VERSION) => match verify(&at) {
            Ok(()) => Ok(format!("{VERSION} at {}", at.display())),
            Err(error) => Err(error.to_string()),
        },
        Some(other) => {
            let what = match given() {
                Some(_) => "unset LIBTORCH",
                None => "run `cargo xtask setup`",
            };
            Err(format!("{other} at {}, {VERSION} is wanted; {what}", at.display()))
        }
        None if given().is_some() => Err(format!("LIBTORCH is {}, which holds none", at.display())),
        None => Err(match installed() {
            Some(path) => format!("run `cargo xtask setup`; it will use {}", path.display()),
            None => "run `cargo xtask setup`; it will fetch 545 MB".into(),
        }),
    }
}

fn gpu() -> String {
    let at = given().unwrap_or_else(folder);
    match output("nvidia-smi", &["--query-gpu=name", "--format=csv,noheader"]) {
        None => "none: no NVIDIA driver answers; the CPU is used".into(),
        Some(name) if at.join("lib/libtorch_cuda.so").exists() => name,
        Some(name) => format!(
            "{name}, but this libtorch has no CUDA part; install PyTorch {VERSION} with CUDA, \
             remove {} and run `cargo xtask setup`",
            at.strip_prefix(root()).unwrap_or(&at).display()
        ),
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}
