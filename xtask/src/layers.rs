//! Imports go down only: two tables and one loop.

use anyhow::{Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::root::say;

/// Our crates, and which of ours each may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("igia", &[]),
    ("merge", &[]),
    ("metrics", &[]),
    ("caught", &[]),
    ("collective", &["caught"]),
    ("fused", &["caught"]),
    ("dataset", &[]),
    ("checkpoint", &[]),
    ("testkit", &[]),
    ("evidence", &["checkpoint", "igia"]),
    ("selection", &["checkpoint", "evidence", "igia"]),
    ("repair", &["checkpoint", "evidence", "igia", "merge", "selection"]),
    ("finetune", &["checkpoint", "collective", "dataset", "evidence", "fused", "metrics"]),
    (
        "pipeline",
        &["checkpoint", "dataset", "evidence", "finetune", "metrics", "repair", "selection"],
    ),
    (
        "gradpruner",
        &[
            "checkpoint",
            "dataset",
            "evidence",
            "finetune",
            "metrics",
            "pipeline",
            "repair",
            "selection",
        ],
    ),
    ("examples", &["checkpoint", "evidence", "repair", "selection"]),
    ("fuzz", &["checkpoint", "dataset", "evidence", "repair", "selection", "testkit"]),
];

/// Outside crates that live in few rooms, and who may import each.
const ROOMS: &[(&str, &[&str])] = &[
    ("tch", &["collective", "finetune", "fused"]),
    ("libloading", &["finetune"]),
    // Files are mapped in `checkpoint` alone; `igia` asks for large pages.
    ("memmap2", &["checkpoint", "igia"]),
    ("safetensors", &["checkpoint", "testkit"]),
    ("csv", &["dataset"]),
    ("parquet", &["dataset"]),
    ("zstd", &["dataset"]),
    ("ureq", &["checkpoint"]),
    ("rayon", &["evidence", "igia", "merge", "repair"]),
    ("clap", &["fuzz", "gradpruner", "xtask"]),
    ("indicatif", &["gradpruner"]),
    ("signal-hook", &["gradpruner"]),
    ("mimalloc", &["gradpruner"]),
    ("libmimalloc-sys", &["gradpruner"]),
    ("anyhow", &["examples", "fuzz", "gradpruner", "xtask"]),
    ("tempfile", &["testkit"]),
];

/// Checks every dependency of every package of ours against the tables.
pub(crate) fn run() -> Result<()> {
    let mut broken = Vec::new();
    for package in MetadataCommand::new().no_deps().exec()?.packages {
        for dependency in package.dependencies {
            let (from, to) = (short(&package.name), short(&dependency.name));
            let ours = dependency.path.is_some();
            let (table, row, cell) = if ours { (MAY_IMPORT, from, to) } else { (ROOMS, to, from) };
            let allowed = match table.iter().find(|(name, _)| *name == row) {
                Some((_, cells)) => cells.contains(&cell),
                None => !ours,
            };
            if !allowed && dependency.kind == DependencyKind::Normal {
                broken.push(format!("{from} imports {to}"));
            }
        }
    }
    ensure!(broken.is_empty(), "against docs/architecture.md, Layers: {}", broken.join(", "));
    say("layers: imports go down only");
    Ok(())
}

fn short(name: &str) -> &str {
    name.strip_prefix("gradpruner-").unwrap_or(name)
}
