//! Linear maps in the place of runs of layers, fitted by least squares (`ReplaceMe`, arXiv 2505.02819).

use std::ops::RangeInclusive;

use dataset::Example;
use tch::{Device, Kind, Tensor};

use crate::bridge::{is_finite, number, values};
use crate::offload::Passage;
use crate::stop;
use crate::walk::{Pack, Walk};
use crate::{FinetuneError, Model, Result};

/// What is fitted, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct MapSettings {
    /// Runs of layers that go, ascending, each with the layer before it, which stays and takes the map in. The first
    /// run may have none; it goes without a map.
    pub runs: Vec<(Option<usize>, RangeInclusive<usize>)>,
    /// Weight of `‖T − I‖²`, relative to the mean of the squared inputs.
    pub ridge: f64,
    /// Tokens of a forward pass.
    pub batch_tokens: usize,
}

/// The map in the place of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct FittedMap {
    /// The layer before the run.
    pub receiver: usize,
    /// The layers it replaces.
    pub run: RangeInclusive<usize>,
    /// `‖x̂ − x‖² / ‖x‖²` of the run's output without a map.
    pub error_before: f64,
    /// The same with it.
    pub error_after: f64,
    /// `T`, `[hidden, hidden]`, row-major.
    pub matrix: Vec<f32>,
}

/// Fits, for each run of layers after a layer `r`, the map `T` of the MLP's output that comes closest to what the
/// run does:
///
/// ```text
/// min_T ‖(y + m·T) − x‖² + λ·‖T − I‖² + ‖m₁·T − m₁‖²
/// ```
///
/// with `m` what `r`'s frozen `down_proj` gives, `y` the rest of `r`'s output (an adapter's part and a bias
/// among it), both in the model as it is repaired so far, and `x` the run's output in the dense model, without the first
/// tokens of rows. What the weight gives for these, `m₁`, is to stay as it is: a layer's MLP may give the first token a
/// state a hundred times as large, which all others attend to from then on, and a map that has not seen it scrambles it.
/// Folded into that weight (`W ← Tᵀ·W`), `T` costs nothing at run time.
///
/// All rows go through one layer at a time; held are two states of each token, two more within a run, and two
/// `hidden × hidden` sums in f64. Adapters that the model has are seen. Returns how many tokens were fitted on;
/// `take` gets each map as it is found.
///
/// # Errors
///
/// [`FinetuneError::Settings`] if there are no tokens to fit on or states are not finite; if libtorch refuses, or
/// `take` fails.
pub fn fit_linear_maps<E: From<FinetuneError>>(
    model: &Model,
    rows: &[&Example],
    settings: &MapSettings,
    take: &mut dyn FnMut(FittedMap) -> Result<(), E>,
) -> Result<usize, E> {
    let _guard = tch::no_grad_guard();
    let walk = Walk::new(model, rows, settings.batch_tokens)?;
    if walk.later_tokens() == 0 {
        return Err(no_tokens().into());
    }
    let mut dense = walk.embedded()?;
    // The repaired model's states, which are the dense one's until the first run.
    let begins = matches!(settings.runs.first(), Some((None, _)));
    let mut repaired: Option<Vec<Tensor>> =
        begins.then(|| dense.iter().map(Tensor::shallow_clone).collect());
    let last = settings.runs.last().map_or(0, |(_, run)| run.end() + 1);
    let mut passage = Passage::new(model, 0..last);
    let mut fit: Option<Fit> = None;
    for number in 0..last {
        stop::check()?;
        let layer = passage.next()?;
        let receives = settings.runs.iter().any(|(receiver, _)| *receiver == Some(number));
        let removed = settings.runs.iter().find(|(_, run)| run.contains(&number));
        let mut begun = receives.then(Fit::default);
        for (at, pack) in walk.packs.iter().enumerate() {
            let (out, saved) = walk.through(pack, number, &layer, &dense[at])?;
            if removed.is_none() {
                let (own, own_saved) = match &mut repaired {
                    Some(states) => {
                        let (own, saved) = walk.through(pack, number, &layer, &states[at])?;
                        states[at] = own.shallow_clone();
                        (own, saved)
                    }
                    None => (out.shallow_clone(), saved),
                };
                if let Some(begun) = &mut begun {
                    let mapped = layer.frozen_mlp(&own_saved)?;
                    begun.begin(pack, &own, mapped)?;
                }
            }
            dense[at] = out;
        }
        fit = begun.or(fit);
        if let Some((Some(receiver), run)) = removed
            && *run.end() == number
            && let Some(fit) = fit.take()
        {
            let later: Vec<&Tensor> = walk.packs.iter().map(|pack| &pack.later).collect();
            let solved = fit.finish(&dense, &later, settings.ridge)?;
            repaired = Some(solved.repaired);
            let Solved { error_before, error_after, matrix, .. } = solved;
            let (receiver, run) = (*receiver, run.clone());
            take(FittedMap { receiver, run, error_before, error_after, matrix })?;
        }
    }
    Ok(walk.later_tokens())
}

/// What is gathered at one receiver.
#[derive(Default)]
struct Fit {
    /// `Σ mᵀm`, `[hidden, hidden]`, f64.
    squares: Option<Tensor>,
    /// Of each pack, the MLP's frozen output for first tokens.
    first: Vec<Tensor>,
    /// Of each pack, the MLP's frozen output and the rest.
    states: Vec<(Tensor, Tensor)>,
}

/// A map, how well it fits, and what it leaves.
struct Solved {
    error_before: f64,
    error_after: f64,
    matrix: Vec<f32>,
    /// Of each pack, the states of the model with it.
    repaired: Vec<Tensor>,
}

impl Fit {
    /// Adds a pack: the receiver's output and, of it, what the map will take.
    fn begin(&mut self, pack: &Pack, output: &Tensor, mapped: Tensor) -> Result<()> {
        self.first.push(mapped.f_index_select(0, &pack.first)?);
        let m = wide_of(&mapped, &pack.later)?;
        let square = m.f_numpy_t()?.f_mm(&m)?;
        self.squares = Some(match self.squares.take() {
            Some(mut sum) => sum.f_add_(&square)?,
            None => square,
        });
        let rest = output.f_sub(&mapped)?;
        self.states.push((mapped, rest));
        Ok(())
    }

    /// Solves for the map, given the dense model's states after the run.
    fn finish(self, dense: &[Tensor], later: &[&Tensor], ridge: f64) -> Result<Solved> {
        let Self { squares, first, states } = self;
        let squares = squares.unwrap_or_default();
        let (side, _) = squares.size2()?;
        let at = (Kind::Double, squares.device());
        let mut products = Tensor::f_zeros([side, side], at)?;
        let (mut size, mut before) = (0.0, 0.0);
        for (((mapped, rest), dense), later) in states.iter().zip(dense).zip(later) {
            let (m, target) = (wide_of(mapped, later)?, wide_of(dense, later)?);
            size += norm_squared(&target)?;
            let gap = target.f_sub(&wide_of(rest, later)?)?;
            before += norm_squared(&gap.f_sub(&m)?)?;
            products = products.f_add_(&m.f_numpy_t()?.f_mm(&gap)?)?;
        }
        if !(is_finite(&squares)? && is_finite(&products)?) {
            return Err(not_finite());
        }
        let kept = wide(&Tensor::f_cat(&first, 0)?)?;
        let map = Ridge::new(&squares, ridge, kept)?.solve(&products)?.f_to_kind(Kind::Float)?;
        let (mut repaired, mut after) = (Vec::new(), 0.0);
        for (((mapped, rest), dense), later) in states.iter().zip(dense).zip(later) {
            let kind = rest.f_kind()?;
            let state = mapped.f_to_kind(Kind::Float)?.f_mm(&map)?.f_to_kind(kind)?.f_add(rest)?;
            after += norm_squared(&wide_of(dense, later)?.f_sub(&wide_of(&state, later)?)?)?;
            repaired.push(state);
        }
        let matrix = values(&map.f_to(Device::Cpu)?)?;
        Ok(Solved { error_before: before / size, error_after: after / size, matrix, repaired })
    }
}

/// The normal equations of a map, `(M + K)·T = P + K`, factored, with `K = λ·I + kᵀ·k` for what is to be kept.
pub(crate) struct Ridge {
    lambda: f64,
    /// `k`, `[n, side]`.
    kept: Tensor,
    /// `K`.
    held: Tensor,
    factor: Tensor,
}

impl Ridge {
    /// Those of `M`, `[side, side]` in f64, with `λ` relative to the mean of its diagonal, and of `k`.
    pub(crate) fn new(squares: &Tensor, relative: f64, kept: Tensor) -> Result<Self> {
        let (side, _) = squares.size2()?;
        let lambda = relative * number(&squares.f_trace()?)? / side as f64;
        let lambda = lambda.max(f64::MIN_POSITIVE);
        let at = (Kind::Double, squares.device());
        let held = Tensor::f_eye(side, at)?.f_mul_scalar(lambda)?;
        let held = held.f_add(&kept.f_numpy_t()?.f_mm(&kept)?)?;
        if !is_finite(&held)? {
            return Err(not_finite());
        }
        let factor = squares.f_add(&held)?.f_linalg_cholesky(false)?;
        Ok(Self { lambda, kept, held, factor })
    }

    /// `T` for `P`.
    pub(crate) fn solve(&self, products: &Tensor) -> Result<Tensor> {
        Ok(products.f_add(&self.held)?.f_cholesky_solve(&self.factor, false)?)
    }

    /// `tr(Tᵀ·K·(I − T))`.
    pub(crate) fn bent(&self, map: &Tensor) -> Result<f64> {
        let free = number(&map.f_trace()?)? - norm_squared(map)?;
        let of_kept = self.kept.f_mm(map)?;
        let kept = of_kept.f_mul(&self.kept.f_sub(&of_kept)?)?;
        Ok(self.lambda * free + number(&kept.f_sum(Kind::Double)?)?)
    }
}

pub(crate) fn no_tokens() -> FinetuneError {
    let what = "there are no tokens to fit linear maps on: rows of two tokens or more are needed";
    FinetuneError::Settings(what.into())
}

pub(crate) fn not_finite() -> FinetuneError {
    let what = "hidden states are not finite, so no linear map can be fitted; compute in f32";
    FinetuneError::Settings(what.into())
}

/// The states of some tokens in f64.
fn wide_of(states: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    wide(&states.f_index_select(0, tokens)?)
}

pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_kind(Kind::Double)?)
}

pub(crate) fn norm_squared(x: &Tensor) -> Result<f64> {
    number(&x.f_square()?.f_sum(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use dataset::Example;

    use super::*;
    use crate::train::tests::{golden_model, lora, rows, settings};
    use crate::{ComputeType, DeviceChoice, Trainer};

    fn settings_of(runs: &[(usize, RangeInclusive<usize>)]) -> MapSettings {
        let runs = runs.iter().map(|(receiver, run)| (Some(*receiver), run.clone())).collect();
        MapSettings { runs, ridge: 1e-3, batch_tokens: 24 }
    }

    fn fitted(model: &Model, settings: &MapSettings) -> (Vec<FittedMap>, usize) {
        let rows = rows("tiny_llama");
        let rows: Vec<&Example> = rows.examples.iter().collect();
        let mut found = Vec::new();
        let mut take = |map| {
            found.push(map);
            Ok::<_, FinetuneError>(())
        };
        let tokens = fit_linear_maps(model, &rows, settings, &mut take).unwrap();
        (found, tokens)
    }

    /// Normal equations by plain loops in f64 and Gaussian elimination, from states that transformers' forward
    /// pass would give too: those the golden tests hold the decoder to.
    fn solved(m: &[Vec<f64>], gap: &[Vec<f64>], first: &[Vec<f64>], ridge: f64) -> Vec<Vec<f64>> {
        let side = m[0].len();
        let mut left = vec![vec![0.0; side]; side];
        let mut right = vec![vec![0.0; side]; side];
        for (m, gap) in m.iter().zip(gap) {
            for i in 0..side {
                for j in 0..side {
                    left[i][j] += m[i] * m[j];
                    right[i][j] += m[i] * gap[j];
                }
            }
        }
        let lambda = ridge * (0..side).map(|i| left[i][i]).sum::<f64>() / side as f64;
        for i in 0..side {
            left[i][i] += lambda;
            right[i][i] += lambda;
        }
        for first in first {
            for i in 0..side {
                for j in 0..side {
                    left[i][j] += first[i] * first[j];
                    right[i][j] += first[i] * first[j];
                }
            }
        }
        for pivot in 0..side {
            for row in 0..side {
                if row != pivot {
                    let factor = left[row][pivot] / left[pivot][pivot];
                    for column in 0..side {
                        left[row][column] -= factor * left[pivot][column];
                        right[row][column] -= factor * right[pivot][column];
                    }
                }
            }
        }
        for (row, left) in
            right.iter_mut().zip(&left).enumerate().map(|(at, (row, left))| (row, left[at]))
        {
            for value in row {
                *value /= left;
            }
        }
        right
    }

    /// Each layer's output of one row, and the MLP's frozen output, by the plain forward pass.
    fn states(model: &Model, row: &Example, layers: &[usize]) -> Vec<(Vec<f32>, Vec<f32>)> {
        let walk = Walk::new(model, &[row], usize::MAX).unwrap();
        let mut x = walk.embedded().unwrap().remove(0);
        let mut found = Vec::new();
        for &number in layers {
            let layer = &model.layers[number];
            let (out, saved) = walk.through(&walk.packs[0], number, layer, &x).unwrap();
            let mapped = layer.frozen_mlp(&saved).unwrap();
            found.push((values(&out).unwrap(), values(&mapped).unwrap()));
            x = out;
        }
        found
    }

    #[test]
    fn the_map_solves_the_normal_equations() {
        for adapted in [false, true] {
            let mut model = golden_model("tiny_llama");
            if adapted {
                let mut trainer =
                    Trainer::new(model, settings(lora()), rows("tiny_llama")).unwrap();
                trainer.run(None, None, &mut |_| {}).unwrap();
                model = trainer.into_model();
            }
            let _guard = tch::no_grad_guard();
            let (found, tokens) = fitted(&model, &settings_of(&[(1, 2..=3)]));
            let side = model.config().hidden_size;
            let by_token = |x: &[f32]| -> Vec<Vec<f64>> {
                x.chunks(side).map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect()
            };
            let (mut all_m, mut gaps, mut kept) = (vec![], vec![], vec![]);
            let (mut size, mut before) = (0.0, 0.0);
            for row in &rows("tiny_llama").examples {
                let seen = states(&model, row, &[0, 1, 2, 3]);
                let (out, m, target) =
                    (by_token(&seen[1].0), by_token(&seen[1].1), by_token(&seen[3].0));
                kept.push(m[0].clone());
                for ((out, m), target) in out.iter().zip(&m).zip(&target).skip(1) {
                    let gap: Vec<f64> = (0..side).map(|i| target[i] - (out[i] - m[i])).collect();
                    size += target.iter().map(|x| x * x).sum::<f64>();
                    before += (0..side).map(|i| (target[i] - out[i]).powi(2)).sum::<f64>();
                    gaps.push(gap);
                }
                all_m.extend(m.into_iter().skip(1));
            }
            assert_eq!(tokens, all_m.len());
            let expected = solved(&all_m, &gaps, &kept, 1e-3);
            let flat: Vec<f32> = expected.iter().flatten().map(|&x| x as f32).collect();
            let apart = testkit::relative_deviation(&found[0].matrix, &flat);
            assert!(apart < 1e-4, "adapted: {adapted}, {apart}");
            assert!((found[0].error_before / (before / size) - 1.0).abs() < 1e-5);
            assert!(found[0].error_after < found[0].error_before);
        }
    }

    /// A receiver that gives first tokens a state a thousand times as large gives them the same with its map, to within
    /// rounding; without these rows of the normal equations it would not.
    #[test]
    fn first_tokens_stay_as_they_are() {
        let _guard = tch::no_grad_guard();
        let at = (Kind::Double, Device::Cpu);
        let side = 16;
        let m = Tensor::randn([64, side], at);
        let kept = Tensor::randn([4, side], at) * 1e3;
        let products = m.tr().mm(&Tensor::randn([64, side], at));
        let change = |kept: Tensor, of: &Tensor| {
            let map = Ridge::new(&m.tr().mm(&m), 1e-3, kept).unwrap().solve(&products).unwrap();
            let apart = norm_squared(&(of.mm(&map) - of)).unwrap();
            (apart / norm_squared(of).unwrap()).sqrt()
        };
        let (with, without) =
            (change(kept.shallow_clone(), &kept), change(Tensor::zeros([0, side], at), &kept));
        assert!(with < 1e-3 && without > 0.1, "{with}, {without}");
    }

    /// The second run's map is fitted on what the first one leaves, and errors are of that.
    #[test]
    fn runs_are_fitted_one_after_another() {
        let model = golden_model("tiny_llama");
        let (both, _) = fitted(&model, &settings_of(&[(0, 1..=1), (2, 3..=4)]));
        let (second, _) = fitted(&model, &settings_of(&[(2, 3..=4)]));
        assert_eq!((both[0].receiver, both[1].receiver, both.len()), (0, 2, 2));
        assert_ne!(both[1].matrix, second[0].matrix);
        assert!(both[1].error_after < both[1].error_before);
    }

    /// Layers that go without a map are gone for the maps behind them.
    #[test]
    fn a_run_without_a_receiver_is_gone() {
        let model = golden_model("tiny_llama");
        let mut settings = settings_of(&[(2, 3..=4)]);
        let (without, _) = fitted(&model, &settings);
        settings.runs.insert(0, (None, 0..=0));
        let (found, _) = fitted(&model, &settings);
        assert_eq!((found.len(), found[0].receiver), (1, 2));
        assert_ne!(found[0].matrix, without[0].matrix);
        assert!(found[0].error_before > without[0].error_before);
    }

    /// However rows are packed, and whether or not weights are streamed, the map is the same but for rounding.
    #[test]
    fn packing_does_not_matter() {
        let runs = [(1, 2..=3)];
        let model = golden_model("tiny_llama");
        let (one, _) = fitted(&model, &settings_of(&runs));
        let (other, _) = fitted(&model, &MapSettings { batch_tokens: 1, ..settings_of(&runs) });
        assert!(testkit::relative_deviation(&one[0].matrix, &other[0].matrix) < 1e-4);
        let folder = testkit::fixture("tiny_llama/model");
        let streamed = Model::load_offloaded(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
        assert_eq!(fitted(&streamed, &settings_of(&runs)).0, one);
    }

    #[test]
    fn no_tokens_to_fit_on_is_an_error() {
        let model = golden_model("tiny_llama");
        let row = Example::whole(vec![3], vec![false]);
        let mut take = |_| Ok::<_, FinetuneError>(());
        let found = fit_linear_maps(&model, &[&row], &settings_of(&[(1, 2..=3)]), &mut take);
        assert!(found.unwrap_err().to_string().contains("rows of two tokens"));
    }
}
