//! The processors a comparison is made for: the one at hand, and one without fast bfloat16.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::measure::measure;

/// Variables under which libtorch, oneDNN and MKL take any x86-64 for one of AVX2.
const AVX2: [(&str, &str); 3] = [
    ("ATEN_CPU_CAPABILITY", "avx2"),
    ("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
];

/// A processor to compare on.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// What its lines say after their names.
    pub(crate) suffix: &'static str,
    variables: &'static [(&'static str, &'static str)],
    /// The type that it multiplies faster, which PyTorch is given.
    pub(crate) dtype: String,
}

impl Machine {
    /// The one at hand.
    pub(crate) fn here(program: &Path) -> Result<Self> {
        Self::new("", &[], program)
    }

    /// The one at hand as if it had AVX2 and nothing beyond.
    pub(crate) fn avx2(program: &Path) -> Result<Self> {
        Self::new(", AVX2", &AVX2, program)
    }

    fn new(
        suffix: &'static str,
        variables: &'static [(&'static str, &'static str)],
        program: &Path,
    ) -> Result<Self> {
        let mut doctor = Command::new(program);
        doctor.args(["doctor", "--json"]).envs(variables.iter().copied());
        let found = measure(&mut doctor)?.output;
        let dtype = found["dtype"].as_str().context("doctor names no type")?.to_owned();
        Ok(Self { suffix, variables, dtype })
    }

    /// A command that takes the machine for this one.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.variables.iter().copied());
        command
    }
}
