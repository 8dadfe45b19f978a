//! How much larger the stream is behind each run of layers (Prune&Comp, arXiv 2507.18212).

use std::ops::RangeInclusive;

use dataset::Example;
use tch::{Kind, Tensor};

use crate::bridge::number;
use crate::offload::Passage;
use crate::stop;
use crate::walk::Walk;
use crate::{FinetuneError, Model, Result};

/// What is measured, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleSettings {
    /// Runs of layers that go, ascending.
    pub runs: Vec<RangeInclusive<usize>>,
    /// Tokens of a forward pass.
    pub batch_tokens: usize,
}

/// A run of layers, and by how much it makes the stream larger.
#[derive(Debug, Clone, PartialEq)]
pub struct RunScale {
    /// The run.
    pub run: RangeInclusive<usize>,
    /// `α`.
    pub factor: f64,
}

/// What [`measure_scales`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredScales {
    /// Of how many tokens.
    pub tokens: usize,
    /// The runs, ascending.
    pub runs: Vec<RunScale>,
}

/// Measures, for each run of layers, how much larger the dense model's stream is behind it than before it:
///
/// ```text
/// α = E|x_out| / E|x_in|
/// ```
///
/// over all channels and all tokens but the first of each row, sums in f64. One forward pass, all rows in one layer at a
/// time, up to the last run's end. Adapters that the model has are seen.
///
/// # Errors
///
/// [`FinetuneError::Settings`] if there are no tokens to measure on, a run is none of the model's, or states are not
/// finite; if libtorch refuses.
pub fn measure_scales(
    model: &Model,
    rows: &[&Example],
    settings: &ScaleSettings,
) -> Result<MeasuredScales> {
    let _guard = tch::no_grad_guard();
    let ScaleSettings { runs, batch_tokens } = settings;
    let (walk, count) = (Walk::new(model, rows, *batch_tokens)?, model.config.num_layers);
    let fail = |what: String| Err(FinetuneError::Settings(what));
    if walk.later_tokens() == 0 {
        let what =
            "there are no tokens to measure scales on: rows of two tokens or more are needed";
        return fail(what.into());
    }
    if let Some(run) = runs.iter().find(|run| *run.end() >= count) {
        return fail(format!("there are no layers {run:?} of {count}"));
    }
    let mut states = walk.embedded()?;
    let size = |states: &[Tensor]| -> Result<f64> {
        let sizes = walk.packs.iter().zip(states).map(|(pack, state)| {
            let later = state.f_index_select(0, &pack.later)?.f_to_kind(Kind::Float)?;
            number(&later.f_abs()?.f_sum(Kind::Double)?)
        });
        sizes.sum()
    };
    let last = runs.last().map_or(0, |run| run.end() + 1);
    let mut passage = Passage::new(model, 0..last);
    let (mut before, mut found) = (0.0, Vec::new());
    for number in 0..last {
        stop::check()?;
        let layer = passage.next()?;
        if runs.iter().any(|run| *run.start() == number) {
            before = size(&states)?;
        }
        for (pack, state) in walk.packs.iter().zip(&mut states) {
            *state = walk.through(pack, number, &layer, state)?.0;
        }
        if let Some(run) = runs.iter().find(|run| *run.end() == number) {
            let factor = size(&states)? / before;
            if !(factor.is_finite() && factor > 0.0) {
                return fail(format!(
                    "hidden states at layers {run:?} are not finite or nothing, so there is no scale between them; \
                     compute in f32"
                ));
            }
            found.push(RunScale { run: run.clone(), factor });
        }
    }
    Ok(MeasuredScales { tokens: walk.later_tokens(), runs: found })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use checkpoint::{DataSource, ModelSource};
    use repair::{Cut, Measured, PruneSettings, Scales, apply};
    use selection::{Plan, Repair};

    use super::*;
    use crate::bridge::values;
    use crate::train::tests::{golden_model, rows};
    use crate::{ComputeType, DeviceChoice};

    fn settings(runs: &[RangeInclusive<usize>], batch_tokens: usize) -> ScaleSettings {
        ScaleSettings { runs: runs.to_vec(), batch_tokens }
    }

    /// By plain loops in f64 over the states of one row at a time.
    #[test]
    fn scales_are_ratios_of_means() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let runs = [0..=0, 2..=3, 5..=5];
        let width = model.config.hidden_size;
        let mut sums = [[0.0_f64; 2]; 3];
        for &row in &examples {
            let _guard = tch::no_grad_guard();
            let walk = Walk::new(&model, &[row], usize::MAX).unwrap();
            let mut x = walk.embedded().unwrap().remove(0);
            for number in 0..6 {
                let size = |x: &Tensor| -> f64 {
                    let all = values(x).unwrap();
                    all[width..].iter().map(|&x| f64::from(x).abs()).sum()
                };
                for (run, sums) in runs.iter().zip(&mut sums) {
                    sums[0] += if *run.start() == number { size(&x) } else { 0.0 };
                }
                let layer = &model.layers[number];
                x = walk.through(&walk.packs[0], number, layer, &x).unwrap().0;
                for (run, sums) in runs.iter().zip(&mut sums) {
                    sums[1] += if *run.end() == number { size(&x) } else { 0.0 };
                }
            }
        }
        for batch_tokens in [1, usize::MAX] {
            let found = measure_scales(&model, &examples, &settings(&runs, batch_tokens)).unwrap();
            assert_eq!(
                found.tokens,
                data.examples.iter().map(|row| row.tokens.len() - 1).sum::<usize>()
            );
            assert_eq!(found.runs.len(), 3);
            for ((found, run), [before, after]) in found.runs.iter().zip(&runs).zip(sums) {
                assert_eq!(found.run, *run);
                assert!((found.factor / (after / before) - 1.0).abs() < 1e-5, "{found:?}");
            }
        }
        assert!(measure_scales(&model, &examples, &settings(&[5..=6], 9)).is_err());
        let row = Example::whole(vec![3], vec![false]);
        let error = measure_scales(&model, &[&row], &settings(&runs, 9)).unwrap_err();
        assert!(error.to_string().contains("rows of two tokens"), "{error}");
    }

    /// Writes the scales of a plan and the model repaired by them, and loads it.
    pub(crate) fn repaired(
        folder: &Path,
        source: &Path,
        (plan, measured): (&Plan, &MeasuredScales),
    ) -> Model {
        let name = String::new;
        let cut = |scale: &RunScale| Cut {
            first: *scale.run.start(),
            last: *scale.run.end(),
            factor: scale.factor,
        };
        let measured = Measured {
            hidden_size: checkpoint::ModelConfig::read(source).unwrap().hidden_size,
            tokens: measured.tokens,
            model: ModelSource { name: name(), config_sha256: name() },
            data: DataSource { path: name(), sha256: name(), rows: 0 },
            cuts: measured.runs.iter().map(cut).collect(),
        };
        let fitted = folder.join("scales");
        Scales::new(plan, measured).unwrap().write(&fitted).unwrap();
        let settings = PruneSettings {
            model: source.to_owned(),
            plan: plan.clone(),
            record: None,
            fitted: Some(fitted),
            target: folder.join("scaled"),
            shard_bytes: u64::MAX,
            verify: true,
        };
        apply(&settings, &mut |_, _| {}).unwrap();
        Model::load(&settings.target, DeviceChoice::Cpu, ComputeType::F32).unwrap()
    }

    /// Norms that see nothing of the stream's size at all.
    fn without_epsilon(model: &mut Model) {
        model.norm.epsilon = 0.0;
        for layer in &mut model.layers {
            layer.norms.all_mut().for_each(|norm| norm.epsilon = 0.0);
        }
    }

    /// The repaired weights give the logits of the cut model whose stream is multiplied at each cut, in models with
    /// biases and without, with a tied head and without.
    #[test]
    fn repaired_weights_do_what_a_larger_stream_does() {
        for (name, pruned) in [
            ("tiny_llama/model", vec![2, 3, 5]),
            ("tiny_llama_tied/model", vec![0, 4]),
            ("families/llama_linear_rope", vec![1]),
        ] {
            let source = testkit::fixture(name);
            let load = || Model::load(&source, DeviceChoice::Cpu, ComputeType::F32).unwrap();
            let row = Example::whole((1..12).collect(), vec![false; 11]);
            let mut dense = load();
            let plan = Plan::new(dense.config.num_layers, pruned, vec![], 0.2)
                .with_repair(Repair::Scale)
                .unwrap();
            let runs: Vec<_> = plan.runs().into_iter().map(|(_, run)| run).collect();
            let measured = measure_scales(&dense, &[&row], &settings(&runs, 64)).unwrap();
            let folder = testkit::temporary_folder();
            let mut scaled = repaired(folder.path(), &source, (&plan, &measured));
            without_epsilon(&mut dense);
            without_epsilon(&mut scaled);

            let _guard = tch::no_grad_guard();
            let walk = Walk::new(&dense, &[&row], usize::MAX).unwrap();
            let mut x = walk.embedded().unwrap().remove(0);
            for number in 0..dense.config.num_layers {
                if let Some(scale) = measured.runs.iter().find(|scale| *scale.run.start() == number)
                {
                    x *= scale.factor;
                }
                if !plan.pruned.contains(&number) {
                    let layer = &dense.layers[number];
                    x = walk.through(&walk.packs[0], number, layer, &x).unwrap().0;
                }
            }
            let expected = values(&dense.head().logits(&x).unwrap()).unwrap();
            let found = scaled.all_logits(&[&row.tokens]).unwrap();
            let apart = testkit::relative_deviation(&found, &expected);
            assert!(apart < 1e-4, "{name}: {apart}");
        }
    }
}
