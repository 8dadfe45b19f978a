//! How far a model is from the dense one on some rows: `D` (method.md §3).

use dataset::Example;
use tch::{Kind, Tensor};

use crate::bridge::number;
use crate::head::{Head, LOGIT_BYTES};
use crate::offload::Passage;
use crate::stop;
use crate::walk::{Pack, Walk};
use crate::{FinetuneError, Model, Origin, Result};

/// Compares models with a dense one on some rows:
///
/// ```text
/// D = mean over answer tokens of KL(p_T ‖ p_S) + ½ · mean over tokens of ‖x_S − x_T‖² / ‖x_T‖²
/// ```
///
/// `T` is the dense model, with the adapters it has; `x` is the state before the final norm, first tokens of rows left
/// out. Held are the dense model's last states.
pub struct Discrepancy<'a> {
    pub(crate) model: &'a Model,
    pub(crate) walk: Walk<'a>,
    /// The dense model's last states, a tensor a pack.
    whole: Vec<Tensor>,
}

impl std::fmt::Debug for Discrepancy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discrepancy").field("packs", &self.walk.packs.len()).finish_non_exhaustive()
    }
}

impl<'a> Discrepancy<'a> {
    /// Passes rows through the dense model, `batch_tokens` tokens together if a row is not longer.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if nothing of the rows is labelled; if libtorch refuses.
    pub fn new(model: &'a Model, rows: &[&Example], batch_tokens: usize) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let mut found = Self::before_the_pass(model, rows, batch_tokens)?;
        let all: Vec<usize> = (0..model.config.num_layers).collect();
        found.whole = found.states(Passage::new(model, all.iter().copied()), &all)?;
        Ok(found)
    }

    /// As [`Discrepancy::new`], for a caller that passes the rows through itself and then calls
    /// [`Discrepancy::is_of`].
    pub(crate) fn before_the_pass(
        model: &'a Model,
        rows: &[&Example],
        batch_tokens: usize,
    ) -> Result<Self> {
        let walk = Walk::new(model, rows, batch_tokens)?;
        if walk.packs.iter().all(|pack| pack.rows.num_predicted() == 0) {
            let what = "the rows that losses are computed on have no tokens to learn";
            return Err(FinetuneError::Settings(what.into()));
        }
        Ok(Self { model, walk, whole: Vec::new() })
    }

    /// Takes the dense model's last states.
    pub(crate) fn is_of(&mut self, whole: Vec<Tensor>) {
        self.whole = whole;
    }

    /// `D` of a model that lacks some of the dense one's layers and may have other weights in the rest.
    ///
    /// Its layers get the adapters that the dense model's have; where the stream is smaller by scales, what adapters add to
    /// it is made smaller too, and the last state is multiplied back before it is compared.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if the model is not one of the dense model's layers, or `D` is not finite; if libtorch
    /// refuses.
    pub fn of(&self, edited: Model, origin: &Origin<'_>) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        self.require_origin(&edited, origin)?;
        let mut edited = edited;
        origin.share_adapters(self.model, &mut edited);
        let passage = Passage::new(&edited, 0..origin.layers.len());
        let mut states = self.states(passage, origin.layers)?;
        let smaller = origin.smaller_before(usize::MAX);
        if !origin.scales.is_empty() {
            for state in &mut states {
                *state = state.f_mul_scalar(smaller)?;
            }
        }
        finite(self.distance(&states, &edited.head())?)
    }

    /// `D` of the dense model with some of its layers alone, in order: what is lost where the others are dropped and
    /// nothing else is done.
    ///
    /// # Errors
    ///
    /// If `D` is not finite, or libtorch refuses.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    pub fn of_layers(&self, layers: &[usize]) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let states = self.states(Passage::new(self.model, layers.iter().copied()), layers)?;
        finite(self.distance(&states, &self.model.head())?)
    }

    /// The last states of rows that pass through layers which are these of the dense model.
    fn states(&self, mut passage: Passage<'_>, numbers: &[usize]) -> Result<Vec<Tensor>> {
        let mut states = self.walk.embedded()?;
        for &number in numbers {
            stop::check()?;
            let layer = passage.next()?;
            for (pack, state) in self.walk.packs.iter().zip(&mut states) {
                // By the dense model's number, whose window of attention it is.
                *state = self.walk.through(pack, number, &layer, state)?.0;
            }
        }
        Ok(states)
    }

    fn require_origin(&self, edited: &Model, origin: &Origin<'_>) -> Result<()> {
        let (dense, layers) = (&self.model.config, origin.layers);
        let fail = |what: String| Err(FinetuneError::Settings(what));
        if layers.len() != edited.config.num_layers {
            return fail(format!(
                "the pruned model has {} layers, and {} are said to be left",
                edited.config.num_layers,
                layers.len()
            ));
        }
        if !layers.is_sorted_by(|x, y| x < y) || layers.iter().any(|&l| l >= dense.num_layers) {
            return fail(format!("{layers:?} are not layers of {}, ascending", dense.num_layers));
        }
        let of = |model: &Model| {
            let config = &model.config;
            (config.hidden_size, config.vocab_size, model.device, model.kind)
        };
        if of(edited) != of(self.model) {
            return fail(format!(
                "the pruned model and the dense one differ in width, vocabulary, device or type: {:?} and {:?}",
                of(edited),
                of(self.model)
            ));
        }
        Ok(())
    }

    /// `D` of last states, of which `head` makes logits.
    pub(crate) fn distance(&self, states: &[Tensor], head: &Head<'_>) -> Result<f64> {
        let (mut divergence, mut answers) = (0.0, 0);
        let (mut error, mut tokens) = (0.0, 0);
        for ((pack, state), whole) in self.walk.packs.iter().zip(states).zip(&self.whole) {
            divergence += self.divergence(pack, state, head, whole)?;
            answers += pack.rows.num_predicted();
            error += relative_error(&pack.later, state, whole)?;
            tokens += pack.later.numel();
        }
        Ok(divergence / answers.max(1) as f64 + 0.5 * error / tokens.max(1) as f64)
    }

    /// `Σ KL(p_T ‖ p_S)` over the answer tokens of a pack.
    fn divergence(
        &self,
        pack: &Pack,
        state: &Tensor,
        head: &Head<'_>,
        whole: &Tensor,
    ) -> Result<f64> {
        let vocabulary = self.model.config.vocab_size as i64;
        let most = (LOGIT_BYTES / (4 * vocabulary)).max(1);
        let count = pack.rows.num_predicted() as i64;
        let mut sum = 0.0;
        for first in (0..count).step_by(most as usize) {
            let places = pack.rows.predict.f_narrow(0, first, most.min(count - first))?;
            let log_probabilities = |head: &Head<'_>, x: &Tensor| -> Result<Tensor> {
                let logits = head.logits(&x.f_index_select(0, &places)?)?;
                Ok(logits.f_log_softmax(-1, Kind::Float)?)
            };
            let of_whole = log_probabilities(&self.model.head(), whole)?;
            let apart =
                of_whole.f_sub(&log_probabilities(head, state)?)?.f_mul(&of_whole.f_exp()?)?;
            sum += number(&apart.f_sum(Kind::Double)?)?;
        }
        Ok(sum)
    }
}

fn finite(found: f64) -> Result<f64> {
    if found.is_finite() { Ok(found) } else { Err(FinetuneError::NotANumber) }
}

/// `Σ ‖x_S − x_T‖² / ‖x_T‖²` over some tokens.
fn relative_error(tokens: &Tensor, state: &Tensor, whole: &Tensor) -> Result<f64> {
    let wide =
        |x: &Tensor| -> Result<Tensor> { Ok(x.f_index_select(0, tokens)?.f_to_kind(Kind::Float)?) };
    let (state, whole) = (wide(state)?, wide(whole)?);
    let squares =
        |x: &Tensor| x.f_square()?.f_sum_dim_intlist([-1_i64].as_slice(), false, Kind::Double);
    let (apart, size) = (squares(&state.f_sub(&whole)?)?, squares(&whole)?);
    number(&apart.f_div(&size.f_clamp_min(f64::MIN_POSITIVE)?)?.f_sum(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use checkpoint::Module;
    use evidence::LossProbe;
    use repair::{PruneSettings, apply};
    use selection::{Plan, Repair};

    use super::*;
    use crate::scale::tests::repaired;
    use crate::train::tests::{golden_model, lora, rows, settings};
    use crate::{ComputeType, DeviceChoice, ScaleSettings, SkipProbe, Trainer, measure_scales};

    /// A model with trained adapters.
    fn adapted(name: &str) -> Model {
        let mut trainer = Trainer::new(golden_model(name), settings(lora()), rows(name)).unwrap();
        trainer.run(None, None, &mut |_| {}).unwrap();
        trainer.into_model()
    }

    /// The pruned checkpoint of a plan that needs neither record nor fit.
    fn pruned(folder: &std::path::Path, name: &str, plan: &Plan) -> Model {
        let settings = PruneSettings {
            model: testkit::fixture(&format!("{name}/model")),
            plan: plan.clone(),
            record: None,
            fitted: None,
            target: folder.join("pruned"),
            shard_bytes: u64::MAX,
            verify: false,
        };
        apply(&settings, &mut |_, _| {}).unwrap();
        Model::load(&settings.target, DeviceChoice::Cpu, ComputeType::F32).unwrap()
    }

    /// The written checkpoint of a plain drop is as far from the dense model as skipped layers are, with adapters and
    /// without, in a family with windows too.
    #[test]
    fn a_plain_drop_is_what_skipping_is() {
        for (name, with_adapters) in
            [("tiny_llama", false), ("tiny_llama", true), ("tiny_mistral", true)]
        {
            let dense = if with_adapters { adapted(name) } else { golden_model(name) };
            let data = rows(name);
            let examples: Vec<&Example> = data.examples.iter().collect();
            let mut probe = SkipProbe::new(&dense, &examples, 40).unwrap();
            let rule = Discrepancy::new(&dense, &examples, 40).unwrap();
            for without in [vec![4], vec![0, 2, 3], vec![1, 5]] {
                let folder = testkit::temporary_folder();
                let plan = Plan::new(dense.config.num_layers, without.clone(), vec![], 0.2);
                let layers = plan.retained();
                let origin = Origin { layers: &layers, scales: &[] };
                let found = rule.of(pruned(folder.path(), name, &plan), &origin).unwrap();
                let expected = probe.loss(&without).unwrap();
                assert!((rule.of_layers(&layers).unwrap() / expected - 1.0).abs() < 1e-6);
                assert!(
                    found > 0.0 && (found / expected - 1.0).abs() < 1e-6,
                    "{found}, {expected}"
                );
            }
        }
    }

    /// Another repair is another distance, and the dense model itself has none.
    #[test]
    fn edited_weights_are_seen() {
        let dense = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let rule = Discrepancy::new(&dense, &examples, usize::MAX).unwrap();
        let whole: Vec<usize> = (0..6).collect();
        let origin = Origin { layers: &whole, scales: &[] };
        assert!(rule.of(golden_model("tiny_llama"), &origin).unwrap().abs() < 1e-9);
        let of = |plan: &Plan| {
            let (folder, layers) = (testkit::temporary_folder(), plan.retained());
            let origin = Origin { layers: &layers, scales: &[] };
            rule.of(pruned(folder.path(), "tiny_llama", plan), &origin).unwrap()
        };
        let plan = Plan::new(6, vec![2, 3], vec![], 0.2);
        let merged = plan.clone().with_repair(Repair::Laco).unwrap();
        assert!((of(&plan) - of(&merged)).abs() > 1e-3);
    }

    /// With scales the stream is multiplied back: as far as the cut model whose stream is multiplied at the cut, with
    /// adapters on both.
    #[test]
    fn a_smaller_stream_is_compared_at_its_size() {
        let mut dense = adapted("tiny_llama");
        for layer in &mut dense.layers {
            layer.norms.all_mut().for_each(|norm| norm.epsilon = 0.0);
        }
        dense.norm.epsilon = 0.0;
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let plan = Plan::new(6, vec![1, 2, 4, 5], vec![], 0.2).with_repair(Repair::Scale).unwrap();
        let runs = plan.runs().into_iter().map(|(_, run)| run).collect();
        let of = ScaleSettings { runs, batch_tokens: 64 };
        let measured = measure_scales(&dense, &examples, &of).unwrap();
        let folder = testkit::temporary_folder();
        let source = testkit::fixture("tiny_llama/model");
        let mut scaled = repaired(folder.path(), &source, (&plan, &measured));
        for layer in &mut scaled.layers {
            layer.norms.all_mut().for_each(|norm| norm.epsilon = 0.0);
        }
        scaled.norm.epsilon = 0.0;
        let rule = Discrepancy::new(&dense, &examples, 40).unwrap();
        let layers = plan.retained();
        let origin = Origin { layers: &layers, scales: &measured.runs };
        let found = rule.of(scaled, &origin).unwrap();

        let _guard = tch::no_grad_guard();
        let mut states = rule.walk.embedded().unwrap();
        for number in 0..6 {
            for (pack, state) in rule.walk.packs.iter().zip(&mut states) {
                if let Some(scale) = measured.runs.iter().find(|scale| *scale.run.start() == number)
                {
                    *state *= scale.factor;
                }
                if layers.contains(&number) {
                    *state =
                        rule.walk.through(pack, number, &dense.layers[number], state).unwrap().0;
                }
            }
        }
        let expected = rule.distance(&states, &dense.head()).unwrap();
        assert!((found / expected - 1.0).abs() < 1e-4, "{found}, {expected}");
    }

    #[test]
    fn models_of_other_layers_are_refused() {
        let dense = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let rule = Discrepancy::new(&dense, &examples, usize::MAX).unwrap();
        let all: Vec<usize> = (0..6).collect();
        for (layers, reason) in [
            (&all[..5], "the pruned model has 6 layers, and 5 are said to be left"),
            (&[0, 1, 2, 4, 3, 5][..], "are not layers of 6, ascending"),
            (&[0, 1, 2, 3, 4, 6], "are not layers of 6, ascending"),
        ] {
            let origin = Origin { layers, scales: &[] };
            let error = rule.of(golden_model("tiny_llama"), &origin).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let mut broken = golden_model("tiny_llama");
        let weight = &mut broken.layers[3].linears.get_mut(&Module::UpProj).unwrap().weight;
        *weight.value_mut() = weight.value().full_like(f64::INFINITY);
        let origin = Origin { layers: &all, scales: &[] };
        assert!(matches!(rule.of(broken, &origin), Err(FinetuneError::NotANumber)));
        let row = Example::whole(vec![3, 4], vec![false; 2]);
        assert!(
            Discrepancy::new(&dense, &[&row], 9)
                .unwrap_err()
                .to_string()
                .contains("no tokens to learn")
        );
    }
}
