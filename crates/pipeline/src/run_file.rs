//! `run.toml`: the settings a run has, and digests of what it reads.

use std::collections::BTreeSet;
use std::path::Path;

use ::finetune::ComputeChoice;
use checkpoint::Staging;
use serde::{Deserialize, Serialize};

use crate::{PipelineError, Result, RunSettings};

const FORMAT: &str = "gradpruner-run";
const VERSION: u64 = 1;

/// `run.toml`: the settings, and digests of what they were used on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunFile {
    format: String,
    version: u64,
    pub(crate) inputs: Inputs,
    pub(crate) settings: RunSettings,
}

/// Digests of what a run reads, so that a changed file is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "they are keys of run.toml")]
pub(crate) struct Inputs {
    pub(crate) model_config_sha256: String,
    pub(crate) train_sha256: String,
    pub(crate) eval_sha256: Option<String>,
}

impl RunSettings {
    /// The settings that a run's `run.toml` holds.
    ///
    /// # Errors
    ///
    /// [`PipelineError::RunFile`] if it is no such file, or holds a setting that this version does not know.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |what: String| PipelineError::RunFile { path: path.to_owned(), what };
        let found: RunFile = toml::from_str(&fs_err::read_to_string(path)?)
            .map_err(|error| fail(error.message().to_owned()))?;
        match found.format == FORMAT && found.version == VERSION {
            true => Ok(found.settings),
            false => Err(fail(format!("it says `{}` version {}", found.format, found.version))),
        }
    }
}

impl RunFile {
    pub(crate) fn new(settings: RunSettings, inputs: Inputs) -> Self {
        Self { format: FORMAT.into(), version: VERSION, inputs, settings }
    }

    /// The type of the products of the run that `path` describes, if there is one: what was chosen
    /// once holds for all of a run.
    pub(crate) fn dtype(path: &Path) -> Option<ComputeChoice> {
        let found: toml::Table = toml::from_str(&fs_err::read_to_string(path).ok()?).ok()?;
        found.get("settings")?.get("compute")?.get("dtype")?.as_str()?.parse().ok()
    }

    /// Writes `run.toml`, or checks that the one there says the same.
    pub(crate) fn claim(&self, path: &Path) -> Result<()> {
        let fail = |what: String| PipelineError::RunFile { path: path.to_owned(), what };
        let text = toml::to_string(self).map_err(|error| fail(error.to_string()))?;
        if !path.exists() {
            let head =
                "# Written by `gradpruner run`; the same command goes on where it stopped.\n\n";
            return Ok(Staging::write(path, format!("{head}{text}").as_bytes())?);
        }
        let found: toml::Table = toml::from_str(&fs_err::read_to_string(path)?)
            .map_err(|error| fail(error.message().to_owned()))?;
        let expected: toml::Table =
            toml::from_str(&text).map_err(|error| fail(error.message().to_owned()))?;
        let differing = differences(&found, &expected, "");
        if differing.is_empty() {
            return Ok(());
        }
        Err(PipelineError::OtherRun { path: path.to_owned(), differing: differing.join(", ") })
    }
}

/// What changes no result, and so may differ when a run goes on.
const FREE: [&str; 6] = [
    "settings.compute.memory",
    "settings.compute.offload",
    "settings.collect.training.remat",
    "settings.collect.training.save_every",
    "settings.training.remat",
    "settings.training.save_every",
];

/// The keys two tables disagree on.
fn differences(found: &toml::Table, expected: &toml::Table, prefix: &str) -> Vec<String> {
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let mut differing = Vec::new();
    for key in keys {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (found.get(key), expected.get(key)) {
            (Some(toml::Value::Table(found)), Some(toml::Value::Table(expected))) => {
                differing.extend(differences(found, expected, &name));
            }
            (found, expected) if found != expected && !FREE.contains(&name.as_str()) => {
                let show = |value: Option<&toml::Value>| {
                    value.map_or_else(|| "nothing".to_owned(), ToString::to_string)
                };
                differing.push(format!("{name} was {} and is {}", show(found), show(expected)));
            }
            _ => {}
        }
    }
    differing
}
