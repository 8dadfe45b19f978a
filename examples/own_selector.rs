//! A selector of one's own: of the layers that two criteria both find unimportant, the least important go.
//!
//! `cargo run -p gradpruner-examples --example own_selector -- RECORD 10`

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use evidence::{Evidence, Need};
use selection::{
    Criterion, Keep, Plan, PlanSettings, Repair, Request, Scores, Selection, Selector, Share,
};

/// The larger of a layer's ranks by `igia` and by `igia-mean`.
struct LargerRank;

impl Selector for LargerRank {
    fn name(&self) -> &'static str {
        "larger-rank"
    }

    fn about(&self) -> &'static str {
        "the larger of the ranks by igia and igia-mean"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Gradients]
    }

    fn scores(&self, seen: &mut Evidence<'_>) -> selection::Result<Option<Scores>> {
        let mut largest = vec![0.0_f64; seen.num_layers];
        for name in ["igia", "igia-mean"] {
            let Ok(criterion) = name.parse::<Criterion>() else { continue };
            for (rank, layer) in criterion.scores(seen)?.ranking().into_iter().enumerate() {
                largest[layer] = largest[layer].max(rank as f64);
            }
        }
        Ok(Some(Scores::of_layers(Criterion::of(&Self), &largest)))
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: own_selector RECORD LAYERS";
    let record = arguments.next().context(usage)?;
    let count = arguments.next().context(usage)?.to_string_lossy().parse().context(usage)?;
    let plan = plan(Path::new(&record), count)?;
    Ok(writeln!(std::io::stdout(), "pruned: {:?}", plan.pruned)?)
}

fn plan(record: &Path, count: usize) -> Result<Plan> {
    let mut seen = Evidence::open(record, LargerRank.needs())?;
    let num_layers = seen.num_layers;
    let request = Request::new(num_layers, Share::Layers(count), Keep::Guard, 0)?;
    let chosen: Selection = LargerRank.select(&mut seen, &request)?;
    let settings = PlanSettings { repair: Repair::Drop, merge: 0, density: 0.0.into() };
    Ok(Plan::of(num_layers, &chosen, &settings)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_chooses_within_the_guard() {
        let plan = plan(&testkit::fixture("tiny_llama/record"), 3).unwrap();
        assert_eq!(plan.pruned.len(), 3);
        assert!(plan.pruned.iter().all(|layer| (1..=4).contains(layer)));
    }
}
