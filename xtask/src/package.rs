//! What users install: a wheel, and a plain archive.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::libtorch;
use crate::models::Build;
use crate::python::environment;
use crate::root::{root, run, say};

/// Where both are put.
fn target() -> PathBuf {
    root().join("target/dist")
}

/// The wheel: the program as scripts, the Python package beside it.
pub(crate) fn wheel() -> Result<()> {
    Build::Release.program()?;
    let python = environment()?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "maturin>=1.9,<2"]))?;
    let mut maturin = Command::new(&python);
    maturin.args(["-m", "maturin", "build", "--release", "--out"]).arg(target());
    maturin.env("LIBTORCH", libtorch::given().unwrap_or_else(libtorch::folder));
    run(maturin.current_dir(root().join("python")))?;
    say(&format!("the wheel is in {}", target().display()));
    Ok(())
}

/// The archive: the two programs, the licence and the documentation.
pub(crate) fn archive() -> Result<()> {
    let program = Build::Release.program()?;
    let name =
        format!("gradpruner-{}-{}-{}", version()?, std::env::consts::ARCH, std::env::consts::OS);
    let folder = target().join(&name);
    if folder.exists() {
        fs_err::remove_dir_all(&folder)?;
    }
    fs_err::create_dir_all(folder.join("docs"))?;
    for file in [program.clone(), program.with_file_name("gradpruner-engine")] {
        let to = folder.join(file.file_name().unwrap_or_default());
        fs_err::copy(&file, &to)?;
    }
    for file in [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "docs/guide.md",
        "docs/formats.md",
        "docs/method.md",
        "docs/results.md",
    ] {
        fs_err::copy(root().join(file), folder.join(file))?;
    }
    let archive = target().join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&archive).arg("-C").arg(target()).arg(&name);
    run(&mut tar)?;
    say(&format!("the archive is {}", archive.display()));
    Ok(())
}

/// The workspace's version.
fn version() -> Result<String> {
    let text = fs_err::read_to_string(root().join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("version = "));
    let version = line.context("Cargo.toml has no version")?.trim_matches('"');
    match version.is_empty() {
        true => bail!("Cargo.toml has no version"),
        false => Ok(version.to_owned()),
    }
}
