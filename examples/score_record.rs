//! Scores the layers of a gradient record, such as a PEFT training's hook wrote, by every criterion
//! that reads its gradients alone.
//!
//! `cargo run -p gradpruner-examples --example score_record -- RECORD`

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use evidence::{Evidence, Need};
use selection::Criterion;

fn main() -> Result<()> {
    let record = std::env::args_os().nth(1).context("usage: score_record RECORD")?;
    run(Path::new(&record), &mut std::io::stdout())
}

fn run(record: &Path, out: &mut dyn Write) -> Result<()> {
    let of_gradients =
        Criterion::all().filter(|criterion| criterion.all_needs() == [Need::Gradients]);
    for criterion in of_gradients {
        let mut seen = Evidence::open(record, criterion.all_needs())?;
        let scores = criterion.scores(&mut seen)?;
        writeln!(out, "{:10} least important first: {:?}", criterion.name(), scores.ranking())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_criterion_ranks_every_layer() {
        let mut out = Vec::new();
        run(&testkit::fixture("tiny_llama/record"), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| (0..6).all(|layer| line.contains(&layer.to_string()))));
    }
}
