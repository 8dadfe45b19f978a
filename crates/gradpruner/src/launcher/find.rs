//! Where libtorch is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

/// The version that the program is linked against; another's symbols may be missing.
const VERSION: &str = "2.11";
/// The library that tells whether a folder holds libtorch.
const LIBRARY: &str = "lib/libtorch_cpu.so";

/// Folders that may hold libtorch, as it is unpacked or as PyTorch installs it.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// `LIBTORCH`, which wins.
    given: Option<PathBuf>,
    /// In the order they are tried.
    folders: Vec<PathBuf>,
    /// Pythons to be asked if none of these holds it.
    pythons: Vec<PathBuf>,
}

impl Search {
    /// What is searched for a program that lies at `own`: the environment it is installed in, the one that is active, what
    /// it was built with, and what the first Python on the path sees.
    pub(crate) fn here(own: &Path) -> Self {
        let bin = own.parent().unwrap_or(own);
        let mut folders = Vec::new();
        folders.extend(bin.parent().into_iter().flat_map(torch_of));
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            folders.extend(
                env::var_os(variable).into_iter().flat_map(|path| torch_of(Path::new(&path))),
            );
        }
        folders.extend(option_env!("LIBTORCH").map(PathBuf::from));
        let beside = ["python3", "python"].map(|name| bin.join(name)).into_iter();
        let pythons =
            beside.filter(|path| path.is_file()).chain([PathBuf::from("python3")]).collect();
        Self { given: env::var_os("LIBTORCH").map(PathBuf::from), folders, pythons }
    }

    /// The folder of libraries of the right version.
    pub(crate) fn libraries(&self) -> Result<PathBuf, String> {
        if let Some(given) = &self.given {
            return match version_of(given) {
                Some(version) if is_right(&version) => Ok(given.join("lib")),
                Some(version) => Err(format!(
                    "LIBTORCH is {}, version {version}; gradpruner needs {VERSION}: unset it, or name another",
                    given.display()
                )),
                None => Err(format!("LIBTORCH is {}, which holds no libtorch", given.display())),
            };
        }
        let mut others = Vec::new();
        let asked = self.pythons.iter().filter_map(|python| torch_seen_by(python));
        for folder in self.folders.iter().cloned().chain(asked) {
            match version_of(&folder) {
                Some(version) if is_right(&version) => return Ok(folder.join("lib")),
                Some(version) => others.push((folder, version)),
                None => {}
            }
        }
        Err(match others.first() {
            Some((folder, version)) => format!(
                "PyTorch {version} is installed at {}, and gradpruner needs {VERSION}: run `pip install 'torch=={VERSION}.*'`",
                folder.display()
            ),
            None => format!(
                "PyTorch was not found, and gradpruner uses its libraries: run `pip install 'torch=={VERSION}.*'` in the \
                 environment that gradpruner is installed in, or set LIBTORCH to a folder of libtorch {VERSION}"
            ),
        })
    }
}

/// PyTorch's folders in an environment's.
fn torch_of(environment: &Path) -> Vec<PathBuf> {
    let lib = environment.join("lib");
    let Ok(entries) = fs::read_dir(lib) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .flat_map(|entry| {
            ["site-packages", "dist-packages"].map(|name| entry.path().join(name).join("torch"))
        })
        .collect();
    found.sort();
    found
}

/// The folder of the PyTorch that a Python would import, which it is not asked to do.
fn torch_seen_by(python: &Path) -> Option<PathBuf> {
    let find = "import importlib.util as u; s = u.find_spec('torch'); \
                print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new(python).args(["-c", find]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|path| !path.as_os_str().is_empty())
}

/// The version of a folder that holds libtorch: by PyTorch's `version.py`, else by the headers.
fn version_of(folder: &Path) -> Option<String> {
    if !folder.join(LIBRARY).exists() {
        return None;
    }
    let of_python = fs::read_to_string(folder.join("version.py")).ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        Some(line.split(['\'', '"']).nth(1)?.to_owned())
    });
    of_python.or_else(|| version_of_headers(folder)).or_else(|| Some("of unknown version".into()))
}

fn version_of_headers(folder: &Path) -> Option<String> {
    let header = ["include/torch/version.h", "include/torch/headeronly/version.h"]
        .into_iter()
        .filter_map(|name| fs::read_to_string(folder.join(name)).ok())
        .find(|text| text.contains("#define TORCH_VERSION_MAJOR "))?;
    let part = |name: &str| {
        let start = format!("#define TORCH_VERSION_{name} ");
        header.lines().find_map(|line| line.strip_prefix(&start).map(|rest| rest.trim().to_owned()))
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

fn is_right(version: &str) -> bool {
    version.strip_prefix(VERSION).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment with a PyTorch of some version.
    fn environment(folder: &Path, version: &str) -> PathBuf {
        let torch = folder.join("lib/python3.12/site-packages/torch");
        fs::create_dir_all(torch.join("lib")).unwrap();
        fs::write(torch.join(LIBRARY), "").unwrap();
        fs::write(torch.join("version.py"), format!("__version__ = '{version}'\n")).unwrap();
        torch
    }

    #[test]
    fn the_right_one_is_found() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        environment(&at("old"), "2.10.1");
        let right = environment(&at("new"), "2.11.0+cu130");
        let search = |environments: &[&str]| Search {
            folders: environments.iter().flat_map(|name| torch_of(&at(name))).collect(),
            ..Search::default()
        };
        assert_eq!(search(&["none", "old", "new"]).libraries(), Ok(right.join("lib")));
        let error = search(&["old"]).libraries().unwrap_err();
        assert!(
            error.contains("PyTorch 2.10.1 is installed at") && error.contains("needs 2.11"),
            "{error}"
        );
        let error = search(&["none"]).libraries().unwrap_err();
        assert!(error.contains("PyTorch was not found"), "{error}");
    }

    #[test]
    fn what_is_given_wins_and_must_fit() {
        let folder = testkit::temporary_folder();
        let right = environment(&folder.path().join("new"), "2.11.2");
        let given = folder.path().join("given");
        let search = Search { given: Some(given.clone()), folders: vec![right], pythons: vec![] };
        assert!(search.libraries().unwrap_err().contains("which holds no libtorch"));
        fs::create_dir_all(given.join("lib")).unwrap();
        fs::create_dir_all(given.join("include/torch")).unwrap();
        fs::write(given.join(LIBRARY), "").unwrap();
        let header = |minor: u32| {
            let text = format!(
                "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n#define TORCH_VERSION_PATCH 0\n"
            );
            fs::write(given.join("include/torch/version.h"), text).unwrap();
        };
        header(9);
        assert!(search.libraries().unwrap_err().contains("version 2.9.0; gradpruner needs 2.11"));
        header(11);
        assert_eq!(search.libraries(), Ok(given.join("lib")));
    }

    #[test]
    fn versions() {
        for (version, right) in
            [("2.11", true), ("2.11.0+cpu", true), ("2.110.0", false), ("2.1.1", false)]
        {
            assert_eq!(is_right(version), right, "{version}");
        }
        // The version that libtorch is set up in.
        assert!(
            include_str!("../../../../xtask/src/libtorch.rs")
                .contains(&format!("= \"{VERSION}.0\""))
        );
    }
}
