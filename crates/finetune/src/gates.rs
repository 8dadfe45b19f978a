//! Gates of layers, trained (`TRSP`, arXiv 2505.18232).

use evidence::GateSettings;
use tch::Kind;

use crate::bridge::number;
use crate::gated::{Gated, GatedPass};
use crate::walk::{Pack, Walk};
use crate::{FinetuneError, Result};

/// AdamW's usual constants.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// Trains one scalar a layer from 1 on, a pack of rows a step, by Adam on
///
/// ```text
/// L + λ·Σ|s_l|,   x_{l+1} = x_l + s_l·(layer_l(x_l) − x_l)
/// ```
///
/// with `L` the mean token loss of the pack. A step that would take a scalar below 0 takes it to 0: beyond, a layer would be
/// turned round. Returns the scalars.
pub(crate) fn train_gates(walk: &Walk<'_>, settings: &GateSettings) -> Result<Vec<f64>> {
    let GateSettings { steps, learning_rate, penalty } = *settings;
    let num_layers = walk.model.config.num_layers;
    let labelled: Vec<&Pack> =
        walk.packs.iter().filter(|pack| pack.rows.num_predicted() > 0).collect();
    let mut gates = vec![1.0_f64; num_layers];
    let mut moments = vec![(0.0, 0.0); num_layers];
    for (step, pack) in (1..=steps as i32).zip(labelled.into_iter().cycle()) {
        let (_, gradients) = gate_gradients(walk, pack, &gates)?;
        for ((gate, (mean, square)), of_loss) in gates.iter_mut().zip(&mut moments).zip(gradients) {
            // The slope of |s| at zero is taken to be zero.
            let sign = if *gate == 0.0 { 0.0 } else { gate.signum() };
            let gradient = of_loss + penalty * sign;
            *mean += (1.0 - BETAS.0) * (gradient - *mean);
            *square += (1.0 - BETAS.1) * (gradient * gradient - *square);
            let unbiased = *mean / (1.0 - BETAS.0.powi(step));
            let spread = (*square / (1.0 - BETAS.1.powi(step))).sqrt();
            *gate -= learning_rate * unbiased / (spread + EPSILON);
            if !gate.is_finite() {
                return Err(FinetuneError::NotANumber);
            }
            // Adam's steps can be larger than the rate.
            *gate = gate.max(0.0);
        }
    }
    Ok(gates)
}

/// The mean token loss of a pack, of which something is labelled, and its gradients by the gates:
///
/// ```text
/// ∂L/∂s_l = Σ ⟨δ, layer_l(x) − x⟩
/// ```
///
/// over tokens, with `δ` the gradient of the state behind the gate; sums in f64.
fn gate_gradients(walk: &Walk<'_>, pack: &Pack, gates: &[f64]) -> Result<(f64, Vec<f64>)> {
    let path: Vec<Gated> =
        gates.iter().enumerate().map(|(layer, &gate)| Gated { layer, gate }).collect();
    let scale = 1.0 / pack.rows.num_predicted() as f64;
    let mut gradients = vec![0.0; gates.len()];
    let pass = GatedPass { walk, pack, path: &path, scale };
    let loss = pass.forth_and_back(&mut |turn| {
        let added = turn.output.f_sub(turn.input)?.f_to_kind(Kind::Double)?;
        let products = added.f_mul(&turn.gradient.f_to_kind(Kind::Double)?)?;
        gradients[turn.place] = number(&products.f_sum(Kind::Double)?)?;
        Ok(())
    })?;
    Ok((loss * scale, gradients))
}

#[cfg(test)]
mod tests {
    use dataset::Example;
    use tch::{Device, Tensor};

    use super::*;
    use crate::observer::Nobody;
    use crate::train::tests::{golden_model, rows};

    /// Against libtorch's automatic gradients through a forward pass with gates, written out here.
    #[test]
    fn gradients_are_automatic_ones() {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let model = golden_model(name);
            let data = rows(name);
            let examples: Vec<&Example> = data.examples.iter().collect();
            let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
            let pack = &walk.packs[0];
            let gates = [1.0, 0.5, -0.25, 1.5, 0.0, 0.75];
            let leaf = Tensor::from_slice(&gates).to_kind(Kind::Float).set_requires_grad(true);
            let mut x = model.embed(&pack.rows).unwrap();
            for (number, layer) in model.layers.iter().enumerate() {
                let (output, _) = walk.through(pack, number, layer, &x).unwrap();
                x = &x + leaf.get(number as i64) * (output - &x);
            }
            let logits = model.head().logits(&x.index_select(0, &pack.rows.predict)).unwrap();
            let loss = logits.cross_entropy_for_logits(&pack.rows.targets);
            let expected = Tensor::run_backward(&[&loss], &[&leaf], false, false);
            let expected = crate::bridge::values(&expected[0]).unwrap();

            let _guard = tch::no_grad_guard();
            let (found_loss, found) = gate_gradients(&walk, pack, &gates).unwrap();
            assert!((found_loss / loss.double_value(&[]) - 1.0).abs() < 1e-5, "{name}");
            let found: Vec<f32> = found.into_iter().map(|x| x as f32).collect();
            let apart = testkit::relative_deviation(&found, &expected);
            assert!(apart < 1e-5, "{name}: {apart}");
        }
    }

    /// Against the slope of the loss.
    #[test]
    fn gradients_are_slopes() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
        let _guard = tch::no_grad_guard();
        let gates = [0.9, 1.0, 0.3, 1.0, 0.6, 1.0];
        let (_, found) = gate_gradients(&walk, &walk.packs[0], &gates).unwrap();
        for layer in 0..gates.len() {
            let loss_at = |shift: f64| {
                let mut gates = gates;
                gates[layer] += shift;
                gate_gradients(&walk, &walk.packs[0], &gates).unwrap().0
            };
            let step = 1e-2;
            let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
            let apart = (slope - found[layer]).abs();
            // The loss is a sum of f32, and its third derivative shows over a step of 0.02.
            assert!(apart < 5e-3 * slope.abs() + 1e-3, "{layer}: {slope}, {}", found[layer]);
        }
    }

    /// The first step moves each gate by the rate, against its gradient; later ones lower what is minimised.
    #[test]
    fn steps_go_down() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let silent = Example::whole(vec![5, 6, 7], vec![false; 3]);
        let examples: Vec<&Example> = data.examples.iter().chain([&silent]).collect();
        let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
        let _guard = tch::no_grad_guard();
        let settings = GateSettings { steps: 1, learning_rate: 0.01, penalty: 0.05 };
        let (loss, gradients) = gate_gradients(&walk, &walk.packs[0], &[1.0; 6]).unwrap();
        let first = train_gates(&walk, &settings).unwrap();
        for (gate, gradient) in first.iter().zip(gradients) {
            let expected = 1.0 - 0.01 * (gradient + 0.05).signum();
            assert!((gate - expected).abs() < 1e-6, "{gate}, {expected}");
        }
        let settings = GateSettings { steps: 30, ..settings };
        let gates = train_gates(&walk, &settings).unwrap();
        let (after, _) = gate_gradients(&walk, &walk.packs[0], &gates).unwrap();
        let minimised = |loss: f64, gates: &[f64]| {
            loss + 0.05 * gates.iter().map(|gate| gate.abs()).sum::<f64>()
        };
        assert!(minimised(after, &gates) < minimised(loss, &[1.0; 6]), "{gates:?}");
        assert_eq!(train_gates(&walk, &settings).unwrap(), gates);

        // A row a step; those with nothing to learn are passed over.
        let apart = Walk::new(&model, &examples, 1).unwrap();
        assert!(train_gates(&apart, &settings).unwrap().iter().all(|gate| gate.is_finite()));
    }

    /// Steps that would go below zero end there, by plain loops over the same gradients.
    #[test]
    fn no_gate_passes_through_zero() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
        let _guard = tch::no_grad_guard();
        let settings = GateSettings { steps: 6, learning_rate: 0.3, penalty: 2.0 };
        let (mut expected, mut means, mut squares) = ([1.0_f64; 6], [0.0; 6], [0.0; 6]);
        let mut passed = 0;
        for step in 1..=6 {
            let (_, gradients) = gate_gradients(&walk, &walk.packs[0], &expected).unwrap();
            for layer in 0..6 {
                let slope = if expected[layer] > 0.0 { 2.0 } else { 0.0 };
                let gradient = gradients[layer] + slope;
                means[layer] = 0.9 * means[layer] + 0.1 * gradient;
                squares[layer] = 0.999 * squares[layer] + 0.001 * gradient * gradient;
                let mean = means[layer] / (1.0 - 0.9_f64.powi(step));
                let square = squares[layer] / (1.0 - 0.999_f64.powi(step));
                expected[layer] -= 0.3 * mean / (square.sqrt() + 1e-8);
                if expected[layer] < 0.0 {
                    passed += 1;
                    expected[layer] = 0.0;
                }
            }
        }
        let found = train_gates(&walk, &settings).unwrap();
        assert!(passed > 0, "{expected:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(*found >= 0.0 && (found - expected).abs() < 1e-6, "{found}, {expected}");
        }
    }

    /// Gates that are all open or shut are layers that are there or not.
    #[test]
    fn a_shut_gate_is_a_layer_skipped() {
        let model = golden_model("tiny_llama");
        let data = rows("tiny_llama");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let walk = Walk::new(&model, &examples, usize::MAX).unwrap();
        let _guard = tch::no_grad_guard();
        let (found, _) =
            gate_gradients(&walk, &walk.packs[0], &[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]).unwrap();
        let mut rest = golden_model("tiny_llama");
        for layer in [4, 1] {
            rest.layers.remove(layer);
            rest.config.layers.remove(layer);
        }
        let batch = crate::pack::Packed::examples(&examples, Device::Cpu).unwrap();
        let hidden = rest.hidden(&batch, &mut Nobody).unwrap();
        let logits = rest.head().logits(&hidden.index_select(0, &batch.predict)).unwrap();
        let expected = logits.cross_entropy_for_logits(&batch.targets).double_value(&[]);
        assert!((found / expected - 1.0).abs() < 1e-5, "{found}, {expected}");
    }
}
