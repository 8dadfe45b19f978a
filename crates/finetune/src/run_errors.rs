//! How well a linear map would stand in for each run of layers.

use checkpoint::Norms;
use evidence::{RunErrors, RunSettings};
use tch::Tensor;

use crate::bridge::{is_finite, number};
use crate::linear_map::{Ridge, no_tokens, norm_squared, not_finite, wide};
use crate::offload::Passage;
use crate::walk::Walk;
use crate::{FinetuneError, Result, stop};

/// For each run of layers, what the best map of [`fit_linear_maps`](crate::fit_linear_maps) for it alone would leave of
/// its output in the dense model, and what first tokens lack without the run:
///
/// ```text
/// min_T ‖(y + m·T) − x‖² + λ·‖T − I‖² + ‖m₁·T − m₁‖²
/// error = ‖(y + m·T) − x‖² / ‖x‖² + (max(‖x₁‖ − ‖y₁ + m₁‖, 0) / ‖x₁‖)²
/// ```
///
/// No map gives first tokens the large state that a layer of the run would have given them, without which all later layers
/// attend elsewhere.
///
/// With `M = mᵀm`, `g = x − y`, `P = mᵀg`, `K = λI + m₁ᵀm₁` and `(M + K)·T = P + K` the residual needs no product with `m`
/// again:
///
/// ```text
/// ‖g − m·T‖² = ‖g‖² − tr(Tᵀ·P) + tr(Tᵀ·K·(I − T))
/// ```
///
/// `M + K` is factored once a receiver, for all runs behind it. Held are two states of each token and layer.
///
/// A map of few tokens fits these whatever the run: where there are fewer than [`ENOUGH`] for each element of a state, the last
/// quarter is left out of the fit, and the error is theirs.
pub(crate) fn run_errors(walk: &Walk<'_>, settings: &RunSettings) -> Result<RunErrors> {
    if walk.model.config.design.norms != Norms::Before {
        let what = "`linear-fit`, whose choice `best` looks at, judges layers by maps that cannot be folded into this model's \
                    layers, which normalise what they add; take another criterion, such as --criterion best:igia+greedy";
        return Err(FinetuneError::Settings(what.into()));
    }
    let runs: Vec<_> = settings.runs().map(std::ops::RangeInclusive::into_inner).collect();
    let mut errors = RunErrors::default();
    let Some(last) = runs.iter().map(|&(_, last)| last).max() else { return Ok(errors) };
    let is_receiver = |layer: usize| runs.iter().any(|&(first, _)| first == layer + 1);
    let States { outputs, mapped, first_outputs, first_mapped } =
        states(walk, settings.tokens, last, &is_receiver)?;
    let tokens = Tokens::of(&outputs)?;
    let size = |x: &Tensor| norm_squared(&wide(&tokens.judged(x)?)?);
    let sizes = outputs.iter().map(size).collect::<Result<Vec<_>>>()?;
    let first_sizes = first_outputs.iter().map(norm_squared_wide).collect::<Result<Vec<_>>>()?;
    for (receiver, (m, first)) in mapped.iter().zip(&first_mapped).enumerate() {
        let (Some(m), Some(first)) = (m, first) else { continue };
        let m = wide(m)?;
        let y = wide(&outputs[receiver])?.f_sub(&m)?;
        let fitted = tokens.fitted(&m)?;
        let transposed = fitted.f_numpy_t()?;
        let squares = transposed.f_mm(&fitted)?;
        if !is_finite(&squares)? {
            return Err(not_finite());
        }
        let ridge = Ridge::new(&squares, settings.ridge, wide(first)?)?;
        for &(first, last) in runs.iter().filter(|&&(first, _)| first == receiver + 1) {
            stop::check()?;
            let gap = wide(&outputs[last])?.f_sub(&y)?;
            let products = transposed.f_mm(&tokens.fitted(&gap)?)?;
            if !is_finite(&products)? {
                return Err(not_finite());
            }
            let map = ridge.solve(&products)?;
            let left = if tokens.are_apart() {
                let judged = tokens.judged(&m)?.f_mm(&map)?;
                norm_squared(&tokens.judged(&gap)?.f_sub(&judged)?)?
            } else {
                let explained = number(&map.f_mul(&products)?.f_sum(tch::Kind::Double)?)?;
                norm_squared(&gap)? - explained + ridge.bent(&map)?
            };
            // Rounding can leave a true zero just below it.
            let error = left.max(0.0) / sizes[last].max(f64::MIN_POSITIVE);
            let [has, had] = [receiver, last].map(|layer| first_sizes[layer].sqrt());
            let lacking = (had - has).max(0.0) / had.max(f64::MIN_POSITIVE);
            errors.insert(first..=last, error + lacking.powi(2));
        }
    }
    Ok(errors)
}

/// Tokens for each element of a state from which on a map's error on the tokens that it was fitted on says something.
const ENOUGH: i64 = 2;

/// Which of the tokens maps are fitted on, and by which they are judged.
struct Tokens {
    all: i64,
    fitted: i64,
}

impl Tokens {
    fn of(outputs: &[Tensor]) -> Result<Self> {
        let Some(states) = outputs.first() else { return Ok(Self { all: 0, fitted: 0 }) };
        let (all, width) = states.size2()?;
        let left_out = if all < ENOUGH * width { all / 4 } else { 0 };
        Ok(Self { all, fitted: all - left_out })
    }

    /// Whether they are not the same.
    fn are_apart(&self) -> bool {
        self.fitted < self.all
    }

    fn fitted(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.f_narrow(0, 0, self.fitted)?)
    }

    fn judged(&self, states: &Tensor) -> Result<Tensor> {
        Ok(match self.are_apart() {
            true => states.f_narrow(0, self.fitted, self.all - self.fitted)?,
            false => states.shallow_clone(),
        })
    }
}

/// States of some tokens, `[n, hidden]`.
struct States {
    /// After each layer.
    outputs: Vec<Tensor>,
    /// What the MLP's frozen weight gave in each receiver.
    mapped: Vec<Option<Tensor>>,
    /// The first tokens' of the same rows, after each layer.
    first_outputs: Vec<Tensor>,
    /// What the weight gave for those in each receiver.
    first_mapped: Vec<Option<Tensor>>,
}

/// The states of `most` tokens at most, first ones of rows left out, up to and with a layer.
fn states(
    walk: &Walk<'_>,
    most: usize,
    last: usize,
    is_receiver: &dyn Fn(usize) -> bool,
) -> Result<States> {
    let (mut packs, mut tokens) = (Vec::new(), 0);
    for pack in &walk.packs {
        let own = pack.later.numel().min(most - tokens);
        tokens += own;
        packs.push((pack, pack.later.f_narrow(0, 0, own as i64)?));
        if tokens == most {
            break;
        }
    }
    if tokens == 0 {
        return Err(no_tokens());
    }
    let mut x = Vec::new();
    for (pack, _) in &packs {
        x.push(walk.model.embed(&pack.rows)?);
    }
    let mut passage = Passage::new(walk.model, 0..=last);
    let (mut outputs, mut mapped) = (Vec::new(), Vec::new());
    let (mut first_outputs, mut first_mapped) = (Vec::new(), Vec::new());
    for number in 0..=last {
        stop::check()?;
        let layer = passage.next()?;
        let (mut outs, mut parts) = (Vec::new(), Vec::new());
        let (mut first_outs, mut first_parts) = (Vec::new(), Vec::new());
        for ((pack, tokens), x) in packs.iter().zip(&mut x) {
            let (out, saved) = walk.through(pack, number, &layer, x)?;
            outs.push(out.f_index_select(0, tokens)?);
            first_outs.push(out.f_index_select(0, &pack.first)?);
            if is_receiver(number) {
                let mapped = layer.frozen_mlp(&saved)?;
                parts.push(mapped.f_index_select(0, tokens)?);
                first_parts.push(mapped.f_index_select(0, &pack.first)?);
            }
            *x = out;
        }
        outputs.push(Tensor::f_cat(&outs, 0)?);
        first_outputs.push(Tensor::f_cat(&first_outs, 0)?);
        for (all, parts) in [(&mut mapped, parts), (&mut first_mapped, first_parts)] {
            all.push(match parts.is_empty() {
                true => None,
                false => Some(Tensor::f_cat(&parts, 0)?),
            });
        }
    }
    Ok(States { outputs, mapped, first_outputs, first_mapped })
}

fn norm_squared_wide(x: &Tensor) -> Result<f64> {
    norm_squared(&wide(x)?)
}

#[cfg(test)]
mod tests {
    use dataset::Example;

    use super::*;
    use crate::train::tests::{golden_model, rows};
    use crate::{FinetuneError, MapSettings, fit_linear_maps};

    fn settings() -> RunSettings {
        RunSettings { candidates: (0..6).collect(), longest: 4, ridge: 1e-3, tokens: usize::MAX }
    }

    /// Every run's error against that of the map fitted for it alone, and first tokens' states by the plain forward pass.
    #[test]
    fn errors_are_those_of_fitted_maps() {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let model = golden_model(name);
            let data = rows(name);
            let examples: Vec<&Example> = data.examples.iter().collect();
            let _guard = tch::no_grad_guard();
            for batch_tokens in [usize::MAX, 24] {
                let walk = Walk::new(&model, &examples, batch_tokens).unwrap();
                let first = first_sizes(&walk);
                let found = run_errors(&walk, &settings()).unwrap();
                let runs: Vec<_> = found.iter().collect();
                assert_eq!(runs.len(), 4 + 4 + 3 + 2 + 1);
                for (run, error) in runs {
                    let of_map = MapSettings {
                        runs: vec![(Some(run.start() - 1), run.clone())],
                        ridge: 1e-3,
                        batch_tokens,
                    };
                    let mut expected = None;
                    let mut take = |map: crate::FittedMap| {
                        expected = Some(map.error_after);
                        Ok::<_, FinetuneError>(())
                    };
                    fit_linear_maps(&model, &examples, &of_map, &mut take).unwrap();
                    let [has, had] = [run.start() - 1, *run.end()].map(|layer| first[layer]);
                    let lacking = if had > has { (1.0 - has / had).powi(2) } else { 0.0 };
                    let expected = expected.unwrap() + lacking;
                    // The fitted map is rounded to f32 before its error is taken.
                    let apart = (error - expected).abs();
                    assert!(apart < 1e-4 * expected + 1e-9, "{name} {run:?}: {error}, {expected}");
                }
            }
        }
    }

    /// The size of first tokens' states after each layer.
    fn first_sizes(walk: &Walk<'_>) -> Vec<f64> {
        let mut states = walk.embedded().unwrap();
        let layers = walk.model.layers.iter().enumerate();
        let sizes = layers.map(|(number, layer)| {
            let mut sum = 0.0;
            for (pack, state) in walk.packs.iter().zip(&mut states) {
                *state = walk.through(pack, number, layer, state).unwrap().0;
                let first = pack.rows.positions.iter().enumerate().filter(|&(_, &at)| at == 0);
                for (at, _) in first {
                    sum += norm_squared(&state.get(at as i64)).unwrap();
                }
            }
            sum.sqrt()
        });
        sizes.collect()
    }

    /// With few tokens the error is that of the last quarter under the map of the others, which is far larger than that of the
    /// tokens a map was fitted on.
    #[test]
    fn few_tokens_are_judged_by_others() {
        let (model, data) = (golden_model("tiny_llama"), rows("tiny_llama"));
        let examples: Vec<&Example> = data.examples.iter().collect();
        let _guard = tch::no_grad_guard();
        let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
        let few = RunSettings { tokens: 90, ..settings() };
        let found = run_errors(&walk, &few).unwrap();
        let States { outputs, mapped, first_outputs, first_mapped } =
            states(&walk, 90, 5, &|_| true).unwrap();
        let size = |x: &Tensor| norm_squared(x).unwrap();
        for (run, error) in found.iter() {
            let (receiver, last) = (run.start() - 1, *run.end());
            let m = wide(mapped[receiver].as_ref().unwrap()).unwrap();
            let [y, x] = [receiver, last].map(|layer| wide(&outputs[layer]).unwrap());
            let gap = &x - (y - &m);
            let (fitted, judged) = (m.narrow(0, 0, 68), m.narrow(0, 68, 22));
            let first = first_mapped[receiver].as_ref().unwrap();
            let ridge = Ridge::new(&fitted.tr().mm(&fitted), 1e-3, wide(first).unwrap()).unwrap();
            let map = ridge.solve(&fitted.tr().mm(&gap.narrow(0, 0, 68))).unwrap();
            let left = |m: &Tensor, first: i64, count: i64| {
                size(&(gap.narrow(0, first, count) - m.mm(&map))) / size(&x.narrow(0, first, count))
            };
            let [has, had] = [receiver, last].map(|layer| size(&first_outputs[layer]).sqrt());
            let lacking = (1.0 - has / had).max(0.0).powi(2);
            let expected = left(&judged, 68, 22) + lacking;
            assert!((error - expected).abs() < 1e-4 * expected, "{run:?}: {error}, {expected}");
            assert!(expected > 2.0 * (left(&fitted, 0, 68) + lacking), "{run:?}");
        }
    }

    /// So many tokens as are wanted, from the first on.
    #[test]
    fn tokens_are_limited() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let _guard = tch::no_grad_guard();
        let all = Walk::new(&model, &examples, 1).unwrap();
        let two = Walk::new(&model, &examples[..2], 1).unwrap();
        let of_two = run_errors(&two, &settings()).unwrap();
        let limited = RunSettings { tokens: two.later_tokens(), ..settings() };
        assert_eq!(run_errors(&all, &limited).unwrap(), of_two);
        let fewer = RunSettings { tokens: two.later_tokens() - 1, ..settings() };
        assert_ne!(run_errors(&all, &fewer).unwrap(), of_two);
        let refused = run_errors(&all, &RunSettings { tokens: 0, ..settings() });
        assert!(refused.unwrap_err().to_string().contains("rows of two tokens"));
        let none = RunSettings { candidates: vec![0], ..settings() };
        assert_eq!(run_errors(&all, &none).unwrap(), RunErrors::default());
    }
}
