//! How alike the hidden states before and after each layer are, gathered as forward passes go by.

use evidence::{Hidden, HiddenMeans};
use tch::{Kind, Tensor};

use crate::Result;
use crate::bridge::number;
use crate::observer::{LayerPass, Observer};

/// Rows that are looked at.
const ROWS: usize = 160;
/// Bytes of hidden states of one pass, all layers' together, that are held; of a pass with more every so many-th
/// token is looked at.
const HELD_BYTES: usize = 128 << 20;

/// Gathers means over hidden states.
pub(crate) struct HiddenMeter {
    num_layers: usize,
    rows: usize,
    tokens: usize,
    /// Sums of cosines over tokens and over last tokens, `[L + 1, L + 1]`, f64.
    cosines: [Option<Tensor>; 2],
    relative_step: Vec<f64>,
    /// Last tokens' states, a list a layer, each `[rows, hidden]` in f32.
    last: Vec<Vec<Tensor>>,
    /// What is looked at of the pass under way, and its states so far.
    looked_at: Option<Tensor>,
    pass: Vec<Tensor>,
}

impl HiddenMeter {
    pub(crate) fn new(num_layers: usize) -> Self {
        Self {
            num_layers,
            rows: 0,
            tokens: 0,
            cosines: [None, None],
            relative_step: vec![0.0; num_layers],
            last: (0..=num_layers).map(|_| Vec::new()).collect(),
            looked_at: None,
            pass: Vec::new(),
        }
    }

    fn keep(&mut self, seen: &LayerPass<'_>, states: &Tensor) -> Result<()> {
        let ends = Tensor::f_from_slice(&seen.rows.ends())?.f_to(states.device())?;
        let wide = |tokens: &Tensor| -> Result<Tensor> {
            Ok(states.f_index_select(0, tokens)?.f_to_kind(Kind::Float)?)
        };
        self.last[self.pass.len()].push(wide(&ends)?);
        if let Some(looked_at) = &self.looked_at {
            self.pass.push(wide(looked_at)?);
        }
        Ok(())
    }

    fn finish_pass(&mut self) -> Result<()> {
        let pass = std::mem::take(&mut self.pass);
        for (sum, states) in self.relative_step.iter_mut().zip(pass.windows(2)) {
            let [input, output] = states else { continue };
            let norm = |x: &Tensor| x.f_norm_scalaropt_dim(2.0, [-1_i64].as_slice(), false);
            let step = norm(&output.f_sub(input)?)?.f_div(&norm(input)?.f_clamp_min(1e-30)?)?;
            *sum += number(&step.f_sum(Kind::Double)?)?;
        }
        self.tokens += pass.first().map_or(0, |states| states.size()[0] as usize);
        let last: Vec<Tensor> = self
            .last
            .iter()
            .filter_map(|passes| passes.last())
            .map(Tensor::shallow_clone)
            .collect();
        for (sum, states) in self.cosines.iter_mut().zip([pass, last]) {
            let found = cosines(&states)?;
            *sum = Some(match sum.take() {
                Some(mut sum) => sum.f_add_(&found)?,
                None => found,
            });
        }
        Ok(())
    }

    /// The means.
    pub(crate) fn finish(self) -> Result<Hidden> {
        let layers = self.num_layers;
        let [all, last] = self.cosines;
        let means = |sums: Option<Tensor>, count: usize| -> Result<Vec<Vec<f64>>> {
            let sums = match sums {
                Some(sums) => Vec::<f64>::try_from(sums.f_flatten(0, -1)?)?,
                None => vec![0.0; (layers + 1) * (layers + 1)],
            };
            let mean = |sum: &f64| sum / count.max(1) as f64;
            Ok(sums.chunks(layers + 1).map(|row| row.iter().map(mean).collect()).collect())
        };
        let states = self
            .last
            .iter()
            .map(|passes| centred(&Tensor::f_cat(passes, 0)?))
            .collect::<Result<Vec<_>>>()?;
        let cka = states.windows(2).map(|pair| cka(&pair[0], &pair[1])).collect::<Result<_>>()?;
        let tokens = self.tokens.max(1) as f64;
        Ok(Hidden::new(HiddenMeans {
            rows: self.rows,
            tokens: self.tokens,
            cosines: means(all, self.tokens)?,
            last_cosines: means(last, self.rows)?,
            cka,
            relative_step: self.relative_step.iter().map(|sum| sum / tokens).collect(),
        }))
    }
}

impl Observer for HiddenMeter {
    /// Looks at the layer, unless there were rows enough before it.
    fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
        if self.rows >= ROWS {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        if seen.layer == 0 {
            let (tokens, width) = seen.input.size2()?;
            let bytes = (self.num_layers + 1) * tokens as usize * width as usize * size_of::<f32>();
            let stride = bytes.div_ceil(HELD_BYTES).max(1) as i64;
            let at = (Kind::Int64, seen.input.device());
            self.looked_at = Some(Tensor::f_arange_start_step(0, tokens, stride, at)?);
            self.keep(seen, seen.input)?;
        }
        self.keep(seen, seen.output)?;
        if seen.layer + 1 == self.num_layers {
            self.finish_pass()?;
            self.rows += seen.rows.ends().len();
        }
        Ok(())
    }
}

/// `Σ cos(x_i, x_j)` over tokens, of states `[n, hidden]` a layer; `[layers, layers]`, f64.
fn cosines(states: &[Tensor]) -> Result<Tensor> {
    let units = states
        .iter()
        .map(|x| {
            let norm = x.f_norm_scalaropt_dim(2.0, [-1_i64].as_slice(), true)?;
            Ok(x.f_div(&norm.f_clamp_min(1e-30)?)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let units = Tensor::f_stack(&units, 1)?;
    let products = units.f_bmm(&units.f_transpose(1, 2)?)?;
    Ok(products.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double)?)
}

fn centred(x: &Tensor) -> Result<Tensor> {
    let x = x.f_to_kind(Kind::Double)?;
    let centred = x.f_sub(&x.f_mean_dim([0_i64].as_slice(), true, Kind::Double)?)?;
    let norm = |x: &Tensor| number(&x.f_norm()?);
    // What rounding leaves of rows that are all alike is nothing.
    Ok(if norm(&centred)? > 1e-12 * norm(&x)? { centred } else { x.f_zeros_like()? })
}

/// Linear CKA of centred states: `‖Yᵀ·X‖² / (‖Xᵀ·X‖ · ‖Yᵀ·Y‖)`, by the Gram matrices of rows. Rows that all end in the same
/// token have one embedding, so that nothing is left of it after centring: what tells them apart then is not like it, and of one
/// row both are alike.
fn cka(x: &Tensor, y: &Tensor) -> Result<f64> {
    let gram = |x: &Tensor| x.f_mm(&x.f_numpy_t()?);
    let (of_x, of_y) = (gram(x)?, gram(y)?);
    let inner = |a: &Tensor, b: &Tensor| number(&a.f_mul(b)?.f_sum(Kind::Double)?);
    let (x, y) = (inner(&of_x, &of_x)?, inner(&of_y, &of_y)?);
    Ok(match (x > 0.0, y > 0.0) {
        (true, true) => inner(&of_x, &of_y)? / (x * y).sqrt(),
        (x_varies, y_varies) => f64::from(u8::from(x_varies == y_varies)),
    })
}

#[cfg(test)]
mod tests {
    use dataset::Example;

    use super::*;
    use crate::bridge::values;
    use crate::pack::Packed;
    use crate::train::tests::{golden_model, rows};

    /// Keeps the states of a pass's rows, which a meter sees too.
    struct Copies<'a> {
        real: i64,
        states: &'a mut [Vec<Vec<f64>>],
        meter: &'a mut HiddenMeter,
    }

    impl Observer for Copies<'_> {
        fn layer(&mut self, seen: &LayerPass<'_>) -> Result<()> {
            let rows = |x: &Tensor| x.narrow(0, 0, self.real);
            let (input, output) = (rows(seen.input), rows(seen.output));
            let mut add = |at: usize, x: &Tensor| {
                let width = x.size()[1] as usize;
                let x = values(x).unwrap();
                let tokens = x.chunks(width);
                self.states[at].extend(tokens.map(|x| x.iter().map(|&x| f64::from(x)).collect()));
            };
            if seen.layer == 0 {
                add(0, &input);
            }
            add(seen.layer + 1, &output);
            self.meter.layer(&LayerPass { input: &input, output: &output, ..*seen })
        }
    }

    /// Against plain loops over the states in f64, rows in two passes.
    #[test]
    fn means_are_those_of_the_states() {
        let (model, data) = (golden_model("tiny_llama"), rows("tiny_llama"));
        let layers = model.config().num_layers;
        let mut meter = HiddenMeter::new(layers);
        let mut states: Vec<Vec<Vec<f64>>> = vec![Vec::new(); layers + 1];
        let mut ends = Vec::new();
        let examples: Vec<_> = data.examples.iter().collect();
        for together in examples.chunks(examples.len().div_ceil(2)) {
            let batch = Packed::examples_rounded(together, model.device).unwrap();
            let mut count = states[0].len();
            for row in together {
                count += row.tokens.len();
                ends.push(count - 1);
            }
            let mut seen =
                Copies { real: batch.num_tokens() as i64, states: &mut states, meter: &mut meter };
            let _ = model.hidden(&batch, &mut seen).unwrap();
        }
        let found = meter.finish().unwrap();
        assert_eq!((found.rows, found.tokens), (examples.len(), states[0].len()));

        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let cosine = |x: &[f64], y: &[f64]| dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
        let mean = |at: &[usize], i: usize, j: usize| {
            at.iter().map(|&at| cosine(&states[i][at], &states[j][at])).sum::<f64>()
                / at.len() as f64
        };
        let all: Vec<usize> = (0..states[0].len()).collect();
        for i in 0..=layers {
            for j in 0..=layers {
                assert!((found.cosines[i][j] - mean(&all, i, j)).abs() < 1e-5);
                assert!((found.last_cosines[i][j] - mean(&ends, i, j)).abs() < 1e-5);
            }
        }
        for layer in 0..layers {
            let step = |at: &usize| {
                let (x, y) = (&states[layer][*at], &states[layer + 1][*at]);
                let apart: Vec<f64> = y.iter().zip(x).map(|(y, x)| y - x).collect();
                (dot(&apart, &apart) / dot(x, x)).sqrt()
            };
            let expected = all.iter().map(step).sum::<f64>() / all.len() as f64;
            assert!((found.relative_step[layer] / expected - 1.0).abs() < 1e-5);

            let centred = |layer: usize| -> Vec<Vec<f64>> {
                let rows: Vec<&Vec<f64>> = ends.iter().map(|&at| &states[layer][at]).collect();
                let mean: Vec<f64> = (0..rows[0].len())
                    .map(|n| rows.iter().map(|row| row[n]).sum::<f64>() / rows.len() as f64)
                    .collect();
                rows.iter()
                    .map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean).collect())
                    .collect()
            };
            let (x, y) = (centred(layer), centred(layer + 1));
            let hsic = |x: &[Vec<f64>], y: &[Vec<f64>]| {
                let mut sum = 0.0;
                for i in 0..x.len() {
                    for j in 0..x.len() {
                        sum += dot(&x[i], &x[j]) * dot(&y[i], &y[j]);
                    }
                }
                sum
            };
            let expected = hsic(&x, &y) / (hsic(&x, &x) * hsic(&y, &y)).sqrt();
            assert!((found.cka[layer] - expected).abs() < 1e-6);
        }
    }

    /// Rows that end in the same token are alike before the first layer, and told apart behind it.
    #[test]
    fn a_layer_that_tells_rows_apart_is_not_alike() {
        let model = golden_model("tiny_llama");
        let whole = |tokens: &[u32]| Example::whole(tokens.to_vec(), vec![false, true, true]);
        let rows = [whole(&[3, 9, 7]), whole(&[4, 30, 7]), whole(&[50, 8, 7])];
        let found = |rows: &[&Example]| {
            let mut meter = HiddenMeter::new(model.config().num_layers);
            let pack = Packed::examples(rows, model.device()).unwrap();
            let _states = model.hidden(&pack, &mut meter).unwrap();
            meter.finish().unwrap().cka
        };
        let all = found(&rows.iter().collect::<Vec<_>>());
        assert!(all[0] == 0.0 && all[1] > 0.0, "{all:?}");
        assert!(found(&[&rows[0]]).iter().all(|&alike| alike == 1.0));
    }
}
