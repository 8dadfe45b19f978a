//! Packages from the Python index, checked by their checksums.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::root::{cache, run, say};

/// A package to fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package<'a> {
    /// Its name and version, as pip takes them.
    pub(crate) requirement: &'a str,
    /// The SHA-256 of its file; empty where what it holds is checked instead.
    pub(crate) sha256: &'a str,
    /// Whether the source package is wanted.
    pub(crate) source: bool,
}

/// The package's file, fetched unless it is there already.
///
/// pip writes into a folder of its own, which is given its name when the file in it is whole: an
/// interrupted download is begun anew.
pub(crate) fn package(package: Package<'_>) -> Result<PathBuf> {
    let Package { requirement, sha256, source } = package;
    let folder = cache("packages").join(requirement);
    if !folder.exists() {
        let aside = cache("packages").join(format!(".{requirement}.partial"));
        remove(&aside)?;
        fs_err::create_dir_all(&aside)?;
        say(&format!("fetching {requirement}"));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest"]);
        pip.arg(&aside);
        if source {
            pip.args(["--no-binary", ":all:"]);
        } else {
            // One file whatever Python is installed, so that one checksum holds.
            pip.args([
                "--only-binary",
                ":all:",
                "--python-version",
                "3.11",
                "--implementation",
                "cp",
            ]);
            for tag in ["manylinux_2_28", "manylinux_2_25", "manylinux2014", "manylinux_2_17"] {
                pip.args(["--platform", &format!("{tag}_x86_64")]);
            }
        }
        run(pip.arg(requirement)).with_context(|| {
            format!("cannot fetch {requirement}; are python3, pip and the network there?")
        })?;
        fs_err::rename(&aside, &folder)?;
    }
    let mut files = Vec::new();
    for entry in fs_err::read_dir(&folder)? {
        files.push(entry?.path());
    }
    let [file] = files.as_slice() else {
        bail!("{} should hold one file; remove it and try again", folder.display());
    };
    if !sha256.is_empty() {
        let found = digest(fs_err::File::open(file)?)?;
        if found != sha256 {
            let shown = file.display().to_string();
            remove(&folder)?; // So that it is fetched anew.
            bail!("{shown}: sha256 was {found}, not {sha256}; try again");
        }
    }
    Ok(file.clone())
}

/// Removes a package's file, once what is needed of it is out.
pub(crate) fn forget(package: Package<'_>) -> Result<()> {
    remove(&cache("packages").join(package.requirement))
}

/// The SHA-256 of what a reader gives.
pub(crate) fn digest(mut reader: impl Read) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes a file, a link or a folder, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs_err::remove_dir_all(path)?,
        Ok(_) => fs_err::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}
