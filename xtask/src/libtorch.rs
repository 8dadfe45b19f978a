//! libtorch: found, or fetched and unpacked into `.libtorch/`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::fetch::{Package, digest, forget, package, remove};
use crate::root::{root, say};

/// The version tch is made for.
pub(crate) const VERSION: &str = "2.11.0";

/// The wheels that hold the CPU part, and what is taken of each.
const WHEELS: [Wheel; 3] = [
    Wheel {
        package: Package {
            requirement: "torch==2.11.0",
            sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            source: false,
        },
        libraries: &["libc10.so", "libtorch_cpu.so", "libgomp.so.1"],
    },
    Wheel {
        package: Package {
            requirement: "nvidia-cuda-runtime==13.0.96",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            source: false,
        },
        libraries: &["libcudart.so.13"],
    },
    Wheel {
        package: Package {
            requirement: "nvidia-cuda-cupti==13.0.85",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            source: false,
        },
        libraries: &["libcupti.so.13"],
    },
];

struct Wheel {
    package: Package<'static>,
    libraries: &'static [&'static str],
}

/// Where builds look.
pub(crate) fn folder() -> PathBuf {
    root().join(".libtorch")
}

/// Puts libtorch at `.libtorch`: a link to `LIBTORCH` or to an installed PyTorch of the right
/// version, else unpacked from wheels.
pub(crate) fn set_up() -> Result<()> {
    let target = folder();
    if let Some(given) = given() {
        let found = version(&given);
        ensure!(
            found.as_deref() == Some(VERSION),
            "LIBTORCH is {}, version {}; {VERSION} is wanted, unset it to have it fetched",
            given.display(),
            found.as_deref().unwrap_or("unknown")
        );
        say(&format!("libtorch {VERSION}: LIBTORCH, {}", given.display()));
        return Ok(());
    }
    if version(&target).as_deref() == Some(VERSION) {
        say(&format!("libtorch {VERSION}: .libtorch"));
        return Ok(());
    }
    remove(&target)?;
    if let Some(installed) = installed() {
        link(&installed, &target)?;
        say(&format!("libtorch {VERSION}: the installed PyTorch, {}", installed.display()));
        return Ok(());
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "libtorch is fetched for x86-64 Linux only; set LIBTORCH to a libtorch {VERSION}"
    );
    unpack_wheels(&target)?;
    say(&format!("libtorch {VERSION}: unpacked into .libtorch"));
    Ok(())
}

/// `LIBTORCH` of the caller's environment; cargo's own setting, which names `.libtorch`, aside.
pub(crate) fn given() -> Option<PathBuf> {
    std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|path| *path != folder())
}

/// The folder of an installed PyTorch of the right version, without importing it.
pub(crate) fn installed() -> Option<PathBuf> {
    let find = "import importlib.util as u; s = u.find_spec('torch'); \
                print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new("python3").args(["-c", find]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (version(&path).as_deref() == Some(VERSION)).then_some(path)
}

/// The version of a complete libtorch folder.
pub(crate) fn version(folder: &Path) -> Option<String> {
    if !folder.join("lib/libtorch_cpu.so").exists() || !folder.join("lib/libtorch.so").exists() {
        return None;
    }
    let header = fs_err::read_to_string(folder.join("include/torch/version.h"))
        .or_else(|_| fs_err::read_to_string(folder.join("include/torch/headeronly/version.h")))
        .ok()?;
    let part = |name: &str| {
        let line = header
            .lines()
            .find(|line| line.starts_with(&format!("#define TORCH_VERSION_{name} ")))?;
        Some(line.split_whitespace().nth(2)?.to_owned())
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

/// Unpacks into a folder beside the target, which is given its name when all is there.
fn unpack_wheels(target: &Path) -> Result<()> {
    let aside = target.with_extension("partial");
    remove(&aside)?;
    fs_err::create_dir_all(aside.join("lib"))?;
    let mut checksums = String::new();
    for wheel in &WHEELS {
        let path = package(wheel.package)?;
        say(&format!("unpacking {}", wheel.package.requirement));
        unpack(&path, wheel.libraries, &aside)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
    }
    link(Path::new("libtorch_cpu.so"), &aside.join("lib/libtorch.so"))?;
    for library in WHEELS.iter().flat_map(|wheel| wheel.libraries) {
        let found = digest(fs_err::File::open(aside.join("lib").join(library))?)?;
        checksums.push_str(&format!("{found}  lib/{library}\n"));
    }
    fs_err::write(aside.join("SHA256SUMS"), checksums)?;
    fs_err::rename(&aside, target)?;
    for wheel in &WHEELS {
        forget(wheel.package)?;
    }
    Ok(())
}

/// Takes the named libraries and the headers out of a wheel.
fn unpack(wheel: &Path, libraries: &[&str], target: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(fs_err::File::open(wheel)?)?;
    let mut taken = 0;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(name) = entry.enclosed_name() else { continue };
        let file = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = match name.strip_prefix("torch") {
            Ok(inner) if inner.starts_with("include") => inner.to_owned(),
            _ if libraries.contains(&file.as_str()) => {
                taken += 1;
                Path::new("lib").join(&file)
            }
            _ => continue,
        };
        if entry.is_file() {
            let to = target.join(to);
            fs_err::create_dir_all(to.parent().unwrap_or(target))?;
            io::copy(&mut entry, &mut fs_err::File::create(&to)?)?;
        }
    }
    ensure!(taken == libraries.len(), "it lacks one of {libraries:?}");
    Ok(())
}

#[cfg(unix)]
fn link(original: &Path, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(original, link)
        .with_context(|| format!("cannot link {} to {}", link.display(), original.display()))
}

#[cfg(not(unix))]
fn link(original: &Path, _: &Path) -> Result<()> {
    bail!("set LIBTORCH to {}: links cannot be made here", original.display())
}

/// The checksums kept when libtorch was unpacked, compared with the files.
pub(crate) fn verify(folder: &Path) -> Result<()> {
    let sums = folder.join("SHA256SUMS");
    if !sums.exists() {
        return Ok(()); // Not unpacked here.
    }
    for line in fs_err::read_to_string(&sums)?.lines() {
        let Some((expected, name)) = line.split_once("  ") else { continue };
        if digest(fs_err::File::open(folder.join(name))?)? != expected {
            bail!("{name} differs from its checksum; remove .libtorch and run `cargo xtask setup`");
        }
    }
    Ok(())
}
