//! Drops layers that you name from a checkpoint, without any record, data or libtorch.
//!
//! `cargo run -p gradpruner-examples --example prune_by_hand -- MODEL OUT 9 18 19 20`

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use checkpoint::ModelConfig;
use repair::{PruneReport, PruneSettings, apply};
use selection::Plan;

fn main() -> Result<()> {
    let found = run(std::env::args_os().skip(1))?;
    tell(&format!("{} of {} layers left", found.after.num_layers, found.before.num_layers))
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<PruneReport> {
    let usage = "usage: prune_by_hand MODEL OUT LAYER…";
    let mut arguments = arguments;
    let mut path = || arguments.next().map(PathBuf::from).context(usage);
    let (model, target) = (path()?, path()?);
    let pruned = arguments
        .map(|text| text.to_string_lossy().parse().context(usage))
        .collect::<Result<Vec<usize>>>()?;
    let num_layers = ModelConfig::read(&model)?.num_layers;
    let settings = PruneSettings {
        plan: Plan::new(num_layers, pruned, Vec::new(), 0.0),
        model,
        record: None,
        fitted: None,
        target,
        shard_bytes: u64::MAX,
        verify: true,
    };
    Ok(apply(&settings, &mut |_, _| {})?)
}

fn tell(text: &str) -> Result<()> {
    use std::io::Write;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_named_go() {
        let folder = testkit::temporary_folder();
        let model = testkit::fixture("tiny_llama/model").into_os_string();
        let target = folder.path().join("out");
        let arguments = [model, target.clone().into(), "2".into(), "3".into()];
        let found = run(arguments.into_iter()).unwrap();
        assert_eq!((found.retained, found.after.num_layers), (vec![0, 1, 4, 5], 4));
        assert!(run([].into_iter()).unwrap_err().to_string().contains("usage"));
    }
}
