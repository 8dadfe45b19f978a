//! Whether what a command will write can stand where it is wanted, asked before hours are spent.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::{PipelineError, Result};

/// A path a command was given, and by which flag.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The flag, such as `--out`.
    pub flag: &'a str,
    /// What it says.
    pub path: &'a Path,
}

impl<'a> Named<'a> {
    /// What a flag says, if it is given.
    pub fn of(flag: &'a str, path: impl Into<Option<&'a Path>>) -> Option<Self> {
        path.into().map(|path| Self { flag, path })
    }
}

/// Refuses outputs that are one another, lie inside one another or inside an input, or that cannot
/// be written.
///
/// # Errors
///
/// [`PipelineError::Output`] with both flags, or [`PipelineError::Unwritable`].
pub fn check_outputs(outputs: &[Option<Named<'_>>], inputs: &[Option<Named<'_>>]) -> Result<()> {
    let outputs: Vec<&Named<'_>> = outputs.iter().flatten().collect();
    let inputs: Vec<&Named<'_>> = inputs.iter().flatten().collect();
    for (number, output) in outputs.iter().enumerate() {
        let among_outputs = outputs[..number].iter().find_map(|other| Clash::of(output, other));
        // An input may well lie in the folder that results go to.
        let with_inputs = inputs
            .iter()
            .find_map(|input| Clash::of(output, input).filter(|clash| clash.how != How::Contains));
        if let Some(Clash { how, other }) = among_outputs.or(with_inputs) {
            let how = match how {
                How::Is => "is",
                How::LiesInside => "lies inside",
                How::Contains => "contains",
            };
            let what = format!("{} {how} {}", shown(output), shown(other));
            return Err(PipelineError::Output { what });
        }
        require_writable(&absolute(output.path))
            .map_err(|source| PipelineError::Unwritable { output: shown(output), source })?;
    }
    Ok(())
}

/// A place beside an output for what is needed until it is there: `.name.suffix`, whatever slash the path ends in.
pub fn beside(output: &Path, suffix: &str) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    output.with_file_name(format!(".{name}.{suffix}"))
}

/// What an output clashes with.
struct Clash<'a> {
    how: How,
    other: &'a Named<'a>,
}

#[derive(PartialEq, Eq)]
enum How {
    Is,
    LiesInside,
    Contains,
}

impl<'a> Clash<'a> {
    fn of(output: &Named<'_>, other: &'a Named<'a>) -> Option<Self> {
        let (own, place) = (absolute(output.path), absolute(other.path));
        let how = match (own.starts_with(&place), place.starts_with(&own)) {
            (true, true) => How::Is,
            (true, false) => How::LiesInside,
            (false, true) => How::Contains,
            (false, false) => return None,
        };
        Some(Self { how, other })
    }
}

fn shown(named: &Named<'_>) -> String {
    format!("{} `{}`", named.flag, named.path.display())
}

/// The path from the root, links resolved as far as it exists.
fn absolute(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = existing(&whole);
    let rest = whole.strip_prefix(there).unwrap_or(Path::new(""));
    let mut path = fs_err::canonicalize(there).unwrap_or_else(|_| there.to_owned());
    for part in rest.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}

/// The path, or the nearest folder above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(path)
}

/// Writes a byte near where the output will stand, and removes it.
fn require_writable(path: &Path) -> io::Result<()> {
    let near = existing(path);
    let folder = match near == path && !path.is_dir() {
        true => path.parent().unwrap_or(path), // A file is written beside and renamed.
        false => near,
    };
    let name = format!(".gradpruner-{}.probe", std::process::id());
    let probe = folder.join(name);
    let written = fs_err::write(&probe, "x");
    let _ = fs_err::remove_file(&probe); // It may not be there.
    // The probe's name would only puzzle.
    written.map_err(|error| io::Error::from(error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clashing_paths_are_refused() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        fs_err::create_dir_all(at("model")).unwrap();
        fs_err::write(at("train.jsonl"), "").unwrap();
        let check = |out: &str, merged: &str| {
            let (out, merged, model) = (at(out), at(merged), at("model"));
            check_outputs(
                &[Named::of("--out", &*out), Named::of("--merged", &*merged)],
                &[Named::of("--model", &*model), Named::of("--train", &*at("train.jsonl"))],
            )
            .map_err(|error| error.to_string().replace(&*folder.path().to_string_lossy(), "T"))
        };
        assert_eq!(check("a", "b"), Ok(()));
        assert_eq!(check("new/a", "new/b"), Ok(()));
        let refused = |out, merged| check(out, merged).unwrap_err();
        assert_eq!(
            refused("a", "a"),
            "--merged `T/a` is --out `T/a`; choose another place for the result"
        );
        assert!(refused("a", "x/../a").contains("is --out"), "the same by another way");
        assert!(refused("a", "a/b").contains("--merged `T/a/b` lies inside --out"));
        assert!(refused("a/b", "a").contains("--merged `T/a` contains --out"));
        assert!(refused("model/a", "b").contains("--out `T/model/a`"));
        assert!(refused("train.jsonl", "b").contains("is --train"));
        assert!(refused("train.jsonl/a", "b").contains("lies inside --train"));
        // The probe is gone.
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let folder = testkit::temporary_folder();
        let file = folder.path().join("file");
        fs_err::write(&file, "").unwrap();
        let out = file.join("out");
        assert!(check_outputs(&[Named::of("--out", &*out)], &[]).is_err());
    }
}
