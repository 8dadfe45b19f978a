//! What `cargo xtask bench choosing` runs: what it costs to look at a model's layers and to replace some, in forward
//! passes of the same rows.
//!
//! `passes losses MODEL DATA` times the loss without 12 layers and counts greedy's passes; `passes maps MODEL TOKENS` fits
//! linear maps in the place of 13 of 32 layers, on rows of random tokens. `passes few MODEL DATA` says how far the errors of maps
//! of few tokens can be trusted, and the layers that `linear-fit` chooses by them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use dataset::{Encoder, Example};
use evidence::{Evidence, GateSettings, LossProbe, RunErrors, RunSettings};
use gradpruner_finetune::{
    ComputeChoice, ComputeType, DeviceChoice, Discrepancy, FinetuneError, MapSettings, Model,
    SkipProbe, fit_linear_maps,
};
use selection::{Criterion, Keep, Plan, Request, Share};
use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Rows that losses are computed on.
const ROWS: usize = 128;
/// Tokens of a forward pass.
const BATCH_TOKENS: usize = 2048;
/// Times each pass is timed; the middle one counts.
const RUNS: usize = 5;

#[expect(clippy::print_stdout, reason = "the figures are its result")]
fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let found = match arguments.as_slice() {
        ["losses", model, data] => losses(Path::new(model), Path::new(data))?,
        ["maps", model, tokens] => maps(Path::new(model), tokens.parse()?)?,
        ["few", model, data] => few(Path::new(model), Path::new(data))?,
        _ => {
            return Err(
                "passes losses MODEL DATA, passes maps MODEL TOKENS or passes few MODEL DATA"
                    .into(),
            );
        }
    };
    println!("{found:#}");
    Ok(())
}

fn losses(folder: &Path, data: &Path) -> Outcome<Value> {
    let model = load(folder)?;
    let rows = dataset::read_rows(data, &[])?;
    let encoded = Encoder::read(folder)?.examples(&rows[..ROWS.min(rows.len())], 512)?;
    let examples: Vec<&Example> = encoded.examples.iter().collect();
    let num_layers = model.config().num_layers;

    let pruned: Vec<usize> = (num_layers - 13..num_layers - 1).collect();
    let plan = Plan::new(num_layers, pruned, Vec::new(), 0.2);
    let target = std::env::temp_dir().join(format!("gradpruner-passes-{}", std::process::id()));
    let shorter = {
        let settings = repair::PruneSettings {
            model: folder.to_owned(),
            plan: plan.clone(),
            record: None,
            fitted: None,
            target: target.clone(),
            shard_bytes: u64::MAX,
            verify: false,
        };
        repair::apply(&settings, &mut |_, _| {})?;
        load(&target)?
    };
    let rule = Discrepancy::new(&model, &examples, BATCH_TOKENS)?;
    let retained = plan.retained();
    let (mut losses, mut passes) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        passes.push(seconds(|| SkipProbe::new(&shorter, &examples, BATCH_TOKENS).map(drop))?);
        losses.push(seconds(|| rule.of_layers(&retained).map(drop))?);
    }
    fs_err::remove_dir_all(&target)?;

    let mut probe = SkipProbe::new(&model, &examples, BATCH_TOKENS)?;
    let request = Request::new(num_layers, Share::Layers(12), Keep::Guard, 0)?;
    let mut seen = Evidence { num_layers, losses: Some(&mut probe), ..Evidence::default() };
    let greedy: Criterion = "greedy".parse()?;
    let started = Instant::now();
    let removed = greedy.select(&mut seen, &request)?.removed;
    let took = started.elapsed().as_secs_f64();
    let computed = probe.layers_computed();
    let mut sorted = removed.clone();
    sorted.sort_unstable();
    let lost = probe.loss(&sorted)?;
    Ok(json!({
        "rows": examples.len(), "forward_seconds": median(passes), "loss_seconds": median(losses),
        "greedy_seconds": took, "greedy_passes": computed as f64 / num_layers as f64,
        "greedy": removed, "lost": lost,
    }))
}

fn maps(folder: &Path, tokens: usize) -> Outcome<Value> {
    const ROW: usize = 64;
    let model = load(folder)?;
    let vocabulary = model.config().vocab_size;
    let row = |number: usize| {
        let token = |at: usize| (((number * ROW + at) * 7919) % vocabulary) as u32;
        let labelled = (0..ROW).map(|at| at + 2 >= ROW).collect();
        Example::whole((0..ROW).map(token).collect(), labelled)
    };
    let rows: Vec<Example> = (0..tokens.div_ceil(ROW)).map(row).collect();
    let rows: Vec<&Example> = rows.iter().collect();
    let num_layers = model.config().num_layers;
    let pruned = (num_layers - 14..num_layers - 1).collect();
    let plan = Plan::new(num_layers, pruned, Vec::new(), 0.2);
    let settings = MapSettings { runs: plan.runs(), ridge: 1e-3, batch_tokens: BATCH_TOKENS };
    // The first pass reads the weights from the disk.
    SkipProbe::new(&model, &rows[..1], BATCH_TOKENS)?;
    let pass = seconds(|| SkipProbe::new(&model, &rows, BATCH_TOKENS).map(drop))?;
    let fit = seconds(|| {
        fit_linear_maps(&model, &rows, &settings, &mut |_| Ok::<_, FinetuneError>(())).map(drop)
    })?;
    Ok(json!({"tokens": rows.len() * ROW, "forward_seconds": pass, "fit_seconds": fit}))
}

/// Tokens that maps are fitted on, and those that say what is right.
const FEW: [usize; 5] = [280, 400, 800, 1200, 2000];
const MANY: usize = 9000;

fn few(folder: &Path, data: &Path) -> Outcome<Value> {
    let model = load(folder)?;
    let rows = dataset::read_rows(data, &[])?;
    let encoded = Encoder::read(folder)?.examples(&rows[..160.min(rows.len())], 512)?;
    let examples: Vec<&Example> = encoded.examples.iter().collect();
    let num_layers = model.config().num_layers;
    let mut probe = SkipProbe::new(&model, &examples, BATCH_TOKENS)?;
    let mut choose = |tokens: usize| -> Outcome<(RunErrors, Vec<usize>)> {
        let mut limited = Limited { probe: &mut probe, tokens, errors: RunErrors::default() };
        let mut seen = Evidence { num_layers, losses: Some(&mut limited), ..Evidence::default() };
        let request = Request::new(num_layers, Share::Percent(40.0), Keep::Guard, 0)?;
        let removed = "linear-fit".parse::<Criterion>()?.select(&mut seen, &request)?.removed;
        Ok((limited.errors, removed))
    };
    let (right, mut best) = choose(MANY)?;
    best.sort_unstable();
    let values = |of: &RunErrors| of.iter().map(|(_, error)| error).collect::<Vec<f64>>();
    let sum_of = |removed: &[usize]| -> f64 {
        let plan = Plan::new(num_layers, removed.to_vec(), Vec::new(), 0.2);
        plan.runs().into_iter().filter_map(|(_, run)| right.get(run)).sum()
    };
    let mut found = vec![json!({"tokens": MANY, "removed": best, "sum": sum_of(&best)})];
    for tokens in FEW {
        let (errors, mut removed) = choose(tokens)?;
        removed.sort_unstable();
        let sum = sum_of(&removed);
        let tau = metrics::kendall_tau(&values(&errors), &values(&right));
        found.push(json!({"tokens": tokens, "tau": tau, "removed": removed, "sum": sum}));
    }
    Ok(found.into())
}

/// A probe whose maps are fitted on so many tokens.
struct Limited<'a, 'b> {
    probe: &'a mut SkipProbe<'b>,
    tokens: usize,
    /// What it found last.
    errors: RunErrors,
}

impl LossProbe for Limited<'_, '_> {
    fn loss(&mut self, without: &[usize]) -> evidence::Result<f64> {
        self.probe.loss(without)
    }

    fn state_gradients(&mut self, without: &[usize]) -> evidence::Result<BTreeMap<usize, f64>> {
        self.probe.state_gradients(without)
    }

    fn gates(&mut self, settings: &GateSettings) -> evidence::Result<Vec<f64>> {
        self.probe.gates(settings)
    }

    fn run_errors(&mut self, settings: &RunSettings) -> evidence::Result<RunErrors> {
        let tokens = self.tokens;
        self.errors = self.probe.run_errors(&RunSettings { tokens, ..settings.clone() })?;
        Ok(self.errors.clone())
    }
}

fn load(folder: &Path) -> Outcome<Model> {
    let compute: ComputeType = ComputeChoice::Auto.resolve(DeviceChoice::Cpu)?;
    Ok(Model::load(folder, DeviceChoice::Cpu, compute)?)
}

fn seconds<E: std::error::Error + 'static>(run: impl FnOnce() -> Result<(), E>) -> Outcome<f64> {
    let started = Instant::now();
    run()?;
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
