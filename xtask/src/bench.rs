//! The benchmarks.

use anyhow::Result;

use crate::root::{cargo, run as run_command};

/// Runs the criterion benches of the kernels, each of which asserts its result before it is timed.
pub(crate) fn run() -> Result<()> {
    run_command(&mut cargo(&["bench", "--package", "gradpruner-benches"]))
}
