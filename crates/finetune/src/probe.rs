//! What is lost when layers are skipped: forward passes from where the last ones still agree.

use std::collections::BTreeMap;

use dataset::Example;
use evidence::{EvidenceError, GateSettings, LossProbe, RunErrors, RunSettings};
use tch::Tensor;

use crate::discrepancy::Discrepancy;
use crate::gated::{Gated, GatedPass};
use crate::gates::train_gates;
use crate::offload::Passage;
use crate::run_errors::run_errors;
use crate::sensitivity::norm_sum;
use crate::stop;
use crate::{FinetuneError, Model, Result};

/// Bytes of states between layers that are held.
const HELD_BYTES: usize = 512 << 20;

/// Skips layers of a model and compares what is left with the whole, on some rows: `D(S)` (method.md §3), as
/// [`Discrepancy`] has it.
///
/// A skipped layer costs nothing, and neither do the layers before the first in which a set differs from the one of
/// [`LossProbe::begin_with`] (from the whole model before that is called): their states are held.
pub struct SkipProbe<'a> {
    rule: Discrepancy<'a>,
    /// The layers of the model that passes begin with, in order.
    path: Vec<usize>,
    /// The states before some places of it, by place, as far as passes have come.
    states: BTreeMap<usize, Vec<Tensor>>,
    /// Places between two that are held.
    stride: usize,
    /// How many times a layer was computed.
    layers_computed: usize,
}

impl std::fmt::Debug for SkipProbe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SkipProbe").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<'a> SkipProbe<'a> {
    /// Passes rows through the whole model.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if nothing of the rows is labelled; if libtorch refuses.
    pub fn new(model: &'a Model, rows: &[&Example], batch_tokens: usize) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let rule = Discrepancy::before_the_pass(model, rows, batch_tokens)?;
        let embedded = rule.walk.embedded()?;
        let bytes: usize = embedded.iter().map(|x| x.numel() * x.kind().elt_size_in_bytes()).sum();
        let stride = (bytes * (model.config.num_layers + 1)).div_ceil(HELD_BYTES).max(1);
        let states = BTreeMap::from([(0, embedded)]);
        let path = (0..model.config.num_layers).collect();
        let mut probe = Self { rule, path, states, stride, layers_computed: 0 };
        let whole = probe.pass(&[])?;
        probe.rule.is_of(whole);
        Ok(probe)
    }

    /// How many times one layer was computed for all rows so far.
    pub fn layers_computed(&self) -> usize {
        self.layers_computed
    }

    /// The last states without some layers.
    fn pass(&mut self, without: &[usize]) -> Result<Vec<Tensor>> {
        let kept = self.kept(without);
        let walk = &self.rule.walk;
        let common = self.common(&kept);
        let held = self.states.range(..=common).next_back();
        let (first, mut states) = held.map_or_else(
            || Ok((0, walk.embedded()?)),
            |(&place, states)| {
                let states: Vec<Tensor> = states.iter().map(Tensor::shallow_clone).collect();
                Ok::<_, FinetuneError>((place, states))
            },
        )?;
        let mut passage = Passage::new(self.rule.model, kept[first..].iter().copied());
        for (place, &number) in kept.iter().enumerate().skip(first) {
            stop::check()?;
            let layer = passage.next()?;
            for (pack, state) in walk.packs.iter().zip(&mut states) {
                *state = walk.through(pack, number, &layer, state)?.0;
            }
            self.layers_computed += 1;
            if place < common && (place + 1).is_multiple_of(self.stride) {
                let copies = states.iter().map(Tensor::shallow_clone).collect();
                self.states.insert(place + 1, copies);
            }
        }
        Ok(states)
    }

    /// How many of these layers the path that passes begin with has in common with them, from the first on.
    fn common(&self, kept: &[usize]) -> usize {
        self.path.iter().zip(kept).take_while(|(x, y)| x == y).count()
    }

    /// The layers that are left without some.
    fn kept(&self, without: &[usize]) -> Vec<usize> {
        (0..self.rule.model.config.num_layers).filter(|layer| !without.contains(layer)).collect()
    }

    /// `mean ‖∂L/∂x_{l+1}‖` over tokens without some layers, by layer.
    fn gradient_norms(&self, without: &[usize]) -> Result<BTreeMap<usize, f64>> {
        let path: Vec<Gated> =
            self.kept(without).into_iter().map(|layer| Gated { layer, gate: 1.0 }).collect();
        let walk = &self.rule.walk;
        let packs = &walk.packs;
        let labels: usize = packs.iter().map(|pack| pack.rows.num_predicted()).sum();
        let tokens: usize = packs.iter().map(|pack| pack.rows.num_tokens()).sum();
        let mut norms = vec![0.0; path.len()];
        // Where nothing is labelled, nothing has a gradient.
        for pack in packs.iter().filter(|pack| pack.rows.num_predicted() > 0) {
            let scale = 1.0 / labels as f64;
            let pass = GatedPass { walk, pack, path: &path, scale };
            pass.forth_and_back(&mut |turn| {
                norms[turn.place] += norm_sum(turn.gradient)?;
                Ok(())
            })?;
        }
        if norms.iter().any(|norm| !norm.is_finite()) {
            return Err(FinetuneError::NotANumber);
        }
        let mean = |(at, sum): (&Gated, f64)| (at.layer, sum / tokens.max(1) as f64);
        Ok(path.iter().zip(norms).map(mean).collect())
    }
}

impl LossProbe for SkipProbe<'_> {
    fn loss(&mut self, without: &[usize]) -> Result<f64, EvidenceError> {
        let _guard = tch::no_grad_guard();
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| EvidenceError::Loss {
            without: without.to_vec(),
            source,
        };
        let head = self.rule.model.head();
        let found = self.pass(without).and_then(|states| self.rule.distance(&states, &head));
        match found {
            Ok(found) if found.is_finite() => Ok(found),
            Ok(_) => Err(fail("it is not finite; compute in f32".into())),
            Err(error) => Err(fail(error.into())),
        }
    }

    fn begin_with(&mut self, without: &[usize]) {
        let path = self.kept(without);
        let common = self.common(&path);
        self.states.retain(|&place, _| place <= common);
        self.path = path;
    }

    fn state_gradients(
        &mut self,
        without: &[usize],
    ) -> Result<BTreeMap<usize, f64>, EvidenceError> {
        let _guard = tch::no_grad_guard();
        self.gradient_norms(without).map_err(|error| EvidenceError::Probe {
            what: format!("the gradients of states without layers {without:?}"),
            source: error.into(),
        })
    }

    fn gates(&mut self, settings: &GateSettings) -> Result<Vec<f64>, EvidenceError> {
        let _guard = tch::no_grad_guard();
        train_gates(&self.rule.walk, settings).map_err(|error| EvidenceError::Probe {
            what: "the layers' gates".into(),
            source: error.into(),
        })
    }

    fn run_errors(&mut self, settings: &RunSettings) -> Result<RunErrors, EvidenceError> {
        let _guard = tch::no_grad_guard();
        run_errors(&self.rule.walk, settings).map_err(|error| EvidenceError::Probe {
            what: "linear maps in the place of runs of layers".into(),
            source: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trainer;
    use crate::bridge::values;
    use crate::observer::Nobody;
    use crate::observer::tests::Outputs;
    use crate::pack::Packed;
    use crate::train::tests::{golden_model, lora, rows, settings};

    /// By a model that really lacks the layers, and plain loops in f64.
    fn expected(without: &[usize]) -> f64 {
        let (whole, mut rest) = (golden_model("tiny_llama"), golden_model("tiny_llama"));
        for &layer in without.iter().rev() {
            rest.layers.remove(layer);
            rest.config.layers.remove(layer);
        }
        let (mut divergence, mut answers, mut error, mut tokens) = (0.0, 0, 0.0, 0);
        for row in &rows("tiny_llama").examples {
            let batch = Packed::examples(&[row], whole.device).unwrap();
            let states = |model: &Model| model.hidden(&batch, &mut Nobody).unwrap();
            let (x, y) = (states(&whole), states(&rest));
            let logits = |x: &Tensor| {
                let logits = whole.head().logits(&x.index_select(0, &batch.predict)).unwrap();
                let width = whole.config.vocab_size;
                values(&logits).unwrap().chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
            };
            for (p, q) in logits(&x).iter().zip(logits(&y)) {
                let normaliser =
                    |z: &[f32]| z.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
                let (of_p, of_q) = (normaliser(p), normaliser(&q));
                for (&p, &q) in p.iter().zip(&q) {
                    let (p, q) = (f64::from(p) - of_p, f64::from(q) - of_q);
                    divergence += p.exp() * (p - q);
                }
                answers += 1;
            }
            let width = whole.config.hidden_size;
            let (x, y) = (values(&x).unwrap(), values(&y).unwrap());
            for (x, y) in x.chunks(width).zip(y.chunks(width)).skip(1) {
                let square = |x: f32| f64::from(x).powi(2);
                let apart: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
                error += apart / x.iter().map(|&x| square(x)).sum::<f64>();
                tokens += 1;
            }
        }
        divergence / f64::from(answers) + 0.5 * error / f64::from(tokens)
    }

    #[test]
    fn what_is_lost_is_what_the_shorter_model_lacks() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        for (batch_tokens, stride) in [(20, 1), (usize::MAX, 4)] {
            let mut probe = SkipProbe::new(&model, &examples, batch_tokens).unwrap();
            probe.stride = stride;
            assert!(probe.loss(&[]).unwrap().abs() < 1e-9);
            // Forth and back, so that what is held of one set serves or must not serve another.
            let sets = [vec![4], vec![2, 4], vec![0], vec![2, 3], vec![2, 4], vec![1, 2, 3, 4]];
            for (number, without) in sets.iter().cycle().take(3 * sets.len()).enumerate() {
                match number {
                    6 => probe.begin_with(&[2]),
                    10 => probe.begin_with(&[2, 4]),
                    14 => probe.begin_with(&[]),
                    _ => {}
                }
                let (found, expected) = (probe.loss(without).unwrap(), expected(without));
                assert!((found / expected - 1.0).abs() < 1e-4, "{without:?}: {found}, {expected}");
            }
        }
    }

    /// By a model that really lacks the layers, through libtorch's automatic gradients.
    #[test]
    fn gradients_of_states_are_automatic_ones() {
        let model = golden_model("tiny_qwen2");
        let data = rows("tiny_qwen2");
        let silent = Example::whole(vec![5, 6, 7], vec![false; 3]);
        let examples: Vec<&Example> = data.examples.iter().chain([&silent]).collect();
        for without in [vec![], vec![2], vec![0, 3, 5]] {
            let mut rest = golden_model("tiny_qwen2");
            for &layer in without.iter().rev() {
                rest.layers.remove(layer);
                rest.config.layers.remove(layer);
            }
            let _ = rest.embedding.value().set_requires_grad(true);
            let batch = Packed::examples(&examples, rest.device).unwrap();
            let mut outputs = Outputs::default();
            let hidden = rest.hidden(&batch, &mut outputs).unwrap();
            let logits = rest.head().logits(&hidden.index_select(0, &batch.predict)).unwrap();
            let loss = logits.cross_entropy_for_logits(&batch.targets);
            let gradients = Tensor::run_backward(&[loss], &outputs.0, false, false);
            let kept = (0..6).filter(|layer| !without.contains(layer));
            let expected: BTreeMap<usize, f64> = kept
                .zip(&gradients)
                .map(|(layer, gradient)| {
                    let values = values(gradient).unwrap();
                    let norm =
                        |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                    let norms: Vec<f64> =
                        values.chunks(rest.config.hidden_size).map(norm).collect();
                    (layer, norms.iter().sum::<f64>() / norms.len() as f64)
                })
                .collect();
            for batch_tokens in [usize::MAX, 20] {
                let mut probe = SkipProbe::new(&model, &examples, batch_tokens).unwrap();
                let found = probe.state_gradients(&without).unwrap();
                assert!(found.keys().eq(expected.keys()), "{found:?}");
                for (layer, found) in &found {
                    let expected = expected[layer];
                    assert!((found / expected - 1.0).abs() < 1e-4, "{layer}: {found}, {expected}");
                }
            }
        }
    }

    /// Adapters count, and what they gather for their training is not touched.
    #[test]
    fn adapters_gather_nothing() {
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let mut trainer =
            Trainer::new(golden_model("tiny_llama"), settings(lora()), rows("tiny_llama")).unwrap();
        trainer.run(None, None, &mut |_| {}).unwrap();
        let model = trainer.into_model();
        let mut probe = SkipProbe::new(&model, &examples, usize::MAX).unwrap();
        let adapted = probe.state_gradients(&[1]).unwrap();
        for (name, weight) in model.trained() {
            let gradient = values(weight.gradient.as_ref().unwrap()).unwrap();
            assert!(gradient.iter().all(|&x| x == 0.0), "{name}");
        }
        let plain = golden_model("tiny_llama");
        let mut probe = SkipProbe::new(&plain, &examples, usize::MAX).unwrap();
        assert_ne!(adapted, probe.state_gradients(&[1]).unwrap());
    }

    #[test]
    fn a_pass_begins_where_it_leaves_the_path() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let mut probe = SkipProbe::new(&model, &examples, usize::MAX).unwrap();
        let cost = |probe: &mut SkipProbe<'_>, without: &[usize]| {
            let before = probe.layers_computed();
            probe.loss(without).unwrap();
            probe.layers_computed() - before
        };
        assert_eq!(cost(&mut probe, &[4]), 1);
        assert_eq!(cost(&mut probe, &[0]), 5);
        assert_eq!(cost(&mut probe, &[4]), 1);
        probe.begin_with(&[1]);
        // The first that goes further along the path leaves its states to the others.
        assert_eq!(cost(&mut probe, &[1, 2]), 3);
        assert_eq!(cost(&mut probe, &[1, 4]), 3);
        assert_eq!(cost(&mut probe, &[1, 3]), 2);
        assert_eq!(cost(&mut probe, &[1, 4]), 1);
    }
}
