//! AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), and clipping.

use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::bridge::number;
use crate::parameter::Parameter;
use crate::update_mask::largest;
use crate::{FinetuneError, Result};

/// `AdamW`'s constants.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the fields are the paper's symbols, spelt out")]
pub struct AdamWSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

/// `AdamW` over a list of f32 tensors.
///
/// Small tensors, such as adapters are, lie end to end in common memory, since an operation on a few thousand numbers
/// takes longer to begin than to do; every operation is on a block of them.
#[derive(Debug)]
pub(crate) struct AdamW {
    settings: AdamWSettings,
    /// How many updates were made.
    pub(crate) updates: usize,
    pub(crate) slots: Vec<Slot>,
    blocks: Vec<Block>,
    /// The share of each tensor's elements that moves in a step; `None` for all.
    share: Option<f64>,
}

/// One trained tensor and the running means of its gradient and of its gradient's square.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) gradient: Tensor,
    pub(crate) mean: Tensor,
    pub(crate) square: Tensor,
}

/// The same of several tensors end to end, or of a large one.
#[derive(Debug)]
struct Block {
    tensor: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    /// Where its tensors lie in it.
    parts: Vec<Part>,
}

/// One tensor's elements in a block.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: i64,
    count: i64,
}

/// Tensors of more elements are blocks of their own.
const SMALL: usize = 1 << 20;
/// Each tensor of a block begins at a multiple of so many elements, 64 bytes.
const ALIGNED: usize = 16;
/// Elements whose squares are summed in single precision.
const NORM_ROW: usize = 1 << 12;

impl AdamW {
    pub(crate) fn new(trained: Vec<(String, &Parameter)>, settings: AdamWSettings) -> Result<Self> {
        let _guard = no_grad_guard();
        let mut slots = trained
            .into_iter()
            .filter_map(|(name, parameter)| {
                let gradient = parameter.gradient.as_ref()?.shallow_clone();
                Some((name, parameter.value.shallow_clone(), gradient))
            })
            .map(|(name, tensor, gradient)| {
                let (mean, square) = (tensor.f_zeros_like()?, tensor.f_zeros_like()?);
                Ok(Slot { name, tensor, gradient, mean, square })
            })
            .collect::<Result<Vec<_>>>()?;
        let (mut small, mut blocks) = (Vec::new(), Vec::new());
        for slot in &mut slots {
            if slot.tensor.numel() <= SMALL {
                small.push(slot);
            } else {
                let Slot { tensor, gradient, mean, square, .. } = slot;
                let [tensor, gradient, mean, square] =
                    [tensor, gradient, mean, square].map(|x| x.shallow_clone());
                let parts = vec![Part { first: 0, count: tensor.numel() as i64 }];
                blocks.push(Block { tensor, gradient, mean, square, parts });
            }
        }
        if !small.is_empty() {
            let parts = small.iter().scan(0, |end, slot| {
                let first = *end;
                *end += room(&slot.tensor);
                Some(Part { first, count: slot.tensor.numel() as i64 })
            });
            blocks.push(Block {
                parts: parts.collect(),
                tensor: end_to_end(small.iter_mut().map(|slot| &mut slot.tensor).collect())?,
                gradient: end_to_end(small.iter_mut().map(|slot| &mut slot.gradient).collect())?,
                mean: end_to_end(small.iter_mut().map(|slot| &mut slot.mean).collect())?,
                square: end_to_end(small.iter_mut().map(|slot| &mut slot.square).collect())?,
            });
        }
        Ok(Self { settings, updates: 0, slots, blocks, share: None })
    }

    /// Lets only a share of each tensor's elements move in a step: those with the largest gradients (GMT,
    /// arXiv 2406.15330), at least one.
    ///
    /// # Errors
    ///
    /// If the share is not above 0 and at most 1.
    pub(crate) fn masked(self, share: Option<f64>) -> Result<Self> {
        match share {
            Some(share) if !(share > 0.0 && share <= 1.0) => {
                let what = format!(
                    "the share of elements to update is {share}; it must be above 0 and at most 1"
                );
                Err(FinetuneError::Settings(what))
            }
            share => Ok(Self { share, ..self }),
        }
    }

    /// The norm of all gradients together.
    pub(crate) fn grad_norm(&self) -> Result<f64> {
        let _guard = no_grad_guard();
        let mut sum = 0.0;
        for block in &self.blocks {
            let flat = block.gradient.f_view(-1)?;
            let rows = flat.numel() / NORM_ROW;
            let whole =
                flat.f_narrow(0, 0, (rows * NORM_ROW) as i64)?.f_view([-1, NORM_ROW as i64])?;
            let rest = (rows * NORM_ROW) as i64;
            let rest = flat.f_narrow(0, rest, flat.numel() as i64 - rest)?.f_view([1, -1])?;
            for part in [whole, rest] {
                let norms = part.f_norm_scalaropt_dim(2.0, [-1_i64].as_slice(), false)?;
                sum += number(&norms.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?)?;
            }
        }
        Ok(sum.sqrt())
    }

    /// Scales all gradients so that their norm together is at most `max_norm`.
    pub(crate) fn clip(&self, norm: f64, max_norm: f64) -> Result<()> {
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            let _guard = no_grad_guard();
            for block in &self.blocks {
                let _ = block.gradient.shallow_clone().f_mul_scalar_(factor)?;
            }
        }
        Ok(())
    }

    /// One update of every tensor from its gradient:
    ///
    /// ```text
    /// p ← p − lr·λ·p,   m ← β₁m + (1−β₁)g,   v ← β₂v + (1−β₂)g²
    /// p ← p − lr · m/(1−β₁ᵗ) / ( √(v/(1−β₂ᵗ)) + ε )
    /// ```
    ///
    /// With a share set, `m` and `v` follow every element, and `p` those alone whose `|g|` is among the tensor's
    /// largest; of equal ones those with the lower index.
    pub(crate) fn update(&mut self, rate: f64) -> Result<()> {
        let _guard = no_grad_guard();
        self.updates += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let count = self.updates as i32;
        let (scale1, scale2) = (1.0 - beta1.powi(count), 1.0 - beta2.powi(count));
        for Block { tensor, gradient, mean, square, parts } in &mut self.blocks {
            let before = match self.share {
                Some(share) => Some((tensor.f_detach_copy()?, moves(gradient, parts, share)?)),
                None => None,
            };
            let _ = tensor.f_mul_scalar_(1.0 - rate * weight_decay)?;
            let _ = mean.f_lerp_(gradient, 1.0 - beta1)?;
            let _ = square.f_mul_scalar_(beta2)?;
            let _ = square.f_addcmul_(&gradient.f_mul_scalar(1.0 - beta2)?, gradient)?;
            let mut step = square.f_sqrt()?;
            let _ = step.f_div_scalar_(scale2.sqrt())?.f_add_scalar_(epsilon)?;
            let step = mean.f_div(&step)?.f_mul_scalar(rate / scale1)?;
            let _ = tensor.f_sub_(&step)?;
            if let Some((before, moves)) = before {
                tensor.f_copy_(&tensor.f_where_self(&moves, &before)?)?;
            }
        }
        Ok(())
    }

    /// Forgets all gradients.
    pub(crate) fn zero_gradients(&mut self) -> Result<()> {
        for block in &mut self.blocks {
            let _ = block.gradient.f_zero_()?;
        }
        Ok(())
    }
}

/// Which elements of a block move, of its gradient's shape.
fn moves(gradient: &Tensor, parts: &[Part], share: f64) -> Result<Tensor> {
    let flat = gradient.f_view(-1)?;
    let moves = Tensor::f_zeros([flat.numel() as i64], (Kind::Bool, flat.device()))?;
    for &Part { first, count } in parts {
        let keep = (share * count as f64).ceil() as i64;
        let own = largest(&flat.f_narrow(0, first, count)?, keep.clamp(1, count))?;
        moves.f_narrow(0, first, count)?.f_copy_(&own)?;
    }
    Ok(moves.f_view_as(gradient)?)
}

/// Elements that a tensor takes up in common memory.
fn room(tensor: &Tensor) -> i64 {
    tensor.numel().next_multiple_of(ALIGNED) as i64
}

/// Moves tensors into common memory, one after the other with zeros between, and returns it whole; every handle on them
/// is on the new place then.
fn end_to_end(tensors: Vec<&mut Tensor>) -> Result<Tensor> {
    let all = tensors.iter().map(|tensor| room(tensor)).sum::<i64>();
    let options = tensors.first().map_or((Kind::Float, Device::Cpu), |x| (x.kind(), x.device()));
    let whole = Tensor::f_zeros([all], options)?;
    let mut first = 0;
    for tensor in tensors {
        let size = tensor.size();
        let mut place = whole.f_narrow(0, first, tensor.numel() as i64)?.f_view(size.as_slice())?;
        place.f_copy_(tensor)?;
        let _ = tensor.f_set_source_tensor_(&place)?;
        first += room(tensor);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::values;

    /// Small tensors lie end to end, and who holds one sees what becomes of it.
    #[test]
    fn small_and_large_tensors_are_updated_alike() {
        let sizes = [[3, 5], [1 << 11, 1 << 10], [1, 1], [40, 100]];
        let drawn = sizes.map(|size| {
            let random = || Tensor::randn(size, (Kind::Float, Device::Cpu));
            (size, random(), random())
        });
        let make = || -> Vec<(String, Parameter)> {
            let one = |(size, value, gradient): &([i64; 2], Tensor, Tensor)| {
                let parameter = Parameter::trained(value).unwrap();
                parameter.gather(|| Ok(gradient.copy())).unwrap();
                (format!("{size:?}"), parameter)
            };
            drawn.iter().map(one).collect()
        };
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        let together = make();
        let named = together.iter().map(|(name, parameter)| (name.clone(), parameter));
        let mut adamw = AdamW::new(named.collect(), settings).unwrap();
        assert_eq!(adamw.blocks.len(), 2);
        let (mut squares, mut expected) = (0.0, Vec::new());
        for (name, parameter) in &make() {
            let gradient = values(parameter.gradient.as_ref().unwrap()).unwrap();
            squares += gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            let mut alone = AdamW::new(vec![(name.clone(), parameter)], settings).unwrap();
            alone.update(1e-2).unwrap();
            expected.push(values(&parameter.value).unwrap());
        }
        assert!((adamw.grad_norm().unwrap() / squares.sqrt() - 1.0).abs() < 1e-6);
        adamw.update(1e-2).unwrap();
        for ((name, parameter), expected) in together.iter().zip(&expected) {
            assert_eq!(&values(&parameter.value).unwrap(), expected, "{name}");
        }
        adamw.clip(4.0, 2.0).unwrap();
        adamw.zero_gradients().unwrap();
        for (_, parameter) in &together {
            assert!(
                values(parameter.gradient.as_ref().unwrap()).unwrap().iter().all(|&x| x == 0.0)
            );
        }
    }

    /// Elements move as without a mask or not at all, and it is the largest gradients that move; small and large
    /// tensors, gradients with ties. What an element that waited moves by next time is what its means gathered.
    #[test]
    fn masked_updates_move_the_largest_gradients() {
        let sizes = [[3, 5], [1 << 10, 1025], [1, 1], [40, 100]];
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        for share in [0.3, 0.011] {
            tch::manual_seed(6);
            let parameters = sizes.each_ref().map(|size| {
                let value = Tensor::randn(size, (Kind::Float, Device::Cpu));
                let parameter = Parameter::trained(&value).unwrap();
                (format!("{size:?}"), parameter)
            });
            let named = || parameters.iter().map(|(name, parameter)| (name.clone(), parameter));
            let mut adamw =
                AdamW::new(named().collect(), settings).unwrap().masked(Some(share)).unwrap();
            // The plain twin: one tensor after the other, in loops.
            let mut twin: Vec<[Vec<f32>; 3]> = named()
                .map(|(_, parameter)| {
                    let value = values(&parameter.value).unwrap();
                    let zeros = vec![0.0; value.len()];
                    [value, zeros.clone(), zeros]
                })
                .collect();
            for step in 1..=2 {
                adamw.zero_gradients().unwrap();
                for ((_, parameter), [value, mean, square]) in parameters.iter().zip(&mut twin) {
                    // Quarters, so that many are equal.
                    let gradient = (parameter.value.randn_like() * 4.0).round() / 4.0;
                    parameter.gather(|| Ok(gradient.copy())).unwrap();
                    let gradient = values(&gradient).unwrap();
                    let mut order: Vec<usize> = (0..gradient.len()).collect();
                    order.sort_by(|&i, &j| gradient[j].abs().total_cmp(&gradient[i].abs()));
                    let keep = ((share * gradient.len() as f64).ceil() as usize).max(1);
                    let mut moves = vec![false; gradient.len()];
                    for &at in &order[..keep] {
                        moves[at] = true;
                    }
                    for (at, &g) in gradient.iter().enumerate() {
                        mean[at] += 0.1 * (g - mean[at]);
                        square[at] = 0.999 * square[at] + 0.001 * g * g;
                        let m = f64::from(mean[at]) / (1.0 - 0.9_f64.powi(step));
                        let v = f64::from(square[at]) / (1.0 - 0.999_f64.powi(step));
                        if moves[at] {
                            let decayed = f64::from(value[at]) * (1.0 - 1e-2 * 0.1);
                            value[at] = (decayed - 1e-2 * m / (v.sqrt() + 1e-8)) as f32;
                        }
                    }
                }
                let before: Vec<_> =
                    parameters.iter().map(|(_, x)| values(&x.value).unwrap()).collect();
                adamw.update(1e-2).unwrap();
                for (((name, parameter), [expected, ..]), before) in
                    parameters.iter().zip(&twin).zip(&before)
                {
                    let found = values(&parameter.value).unwrap();
                    let apart = found.iter().zip(expected).map(|(x, y)| (x - y).abs());
                    let apart = apart.fold(0.0_f32, f32::max);
                    // Steps of 0.01 on numbers near 1, rounded at every operation.
                    assert!(apart < 2e-6, "{name} {share}: {apart}");
                    let moved = found.iter().zip(before).filter(|(x, y)| x != y).count();
                    let most = (share * found.len() as f64).ceil() as usize;
                    assert!(moved <= most.max(1), "{name} {share}: {moved} of {most}");
                }
            }
        }
    }

    /// A mask of everything changes no bit.
    #[test]
    fn a_whole_share_is_no_mask() {
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        let random = || Tensor::randn([40, 100], (Kind::Float, Device::Cpu));
        let (value, gradient) = (random(), random());
        let updated = |share: Option<f64>| {
            let parameter = Parameter::trained(&value).unwrap();
            parameter.gather(|| Ok(gradient.copy())).unwrap();
            let named = vec![("weight".to_owned(), &parameter)];
            let mut adamw = AdamW::new(named, settings).unwrap().masked(share).unwrap();
            adamw.update(1e-2).unwrap();
            adamw.update(1e-2).unwrap();
            values(&parameter.value).unwrap()
        };
        assert_eq!(updated(Some(1.0)), updated(None));
        for share in [0.0, -0.1, 1.01, f64::NAN] {
            assert!(AdamW::new(vec![], settings).unwrap().masked(Some(share)).is_err(), "{share}");
        }
    }

    /// The golden states of `AdamW`, fed the record's own gradients.
    #[test]
    fn golden_updates() {
        for name in testkit::GOLDEN {
            let at = |file: String| testkit::fixture(&format!("{name}/{file}"));
            let expected = testkit::json(&at("expected.json".into()));
            let rates = expected["settings"]["learning_rates"].as_array().unwrap().clone();
            let tensor = |file: &std::path::Path, tensor: &str| {
                let (shape, values) = testkit::tensor_f32(file, tensor);
                let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
                Tensor::from_slice(&values).view(shape.as_slice())
            };
            let first = at("lora_before_step1.safetensors".into());
            let names = testkit::tensor_names(&first);
            let leaves: Vec<_> = names
                .iter()
                .map(|name| (name.clone(), Parameter::trained(&tensor(&first, name)).unwrap()))
                .collect();
            let leaves = leaves.iter().map(|(name, parameter)| (name.clone(), parameter));
            let settings =
                AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
            let mut adamw = AdamW::new(leaves.collect(), settings).unwrap();
            for (step, rate) in rates.iter().enumerate() {
                let record = at(format!("record/step-{:05}.safetensors", step + 1));
                for slot in &mut adamw.slots {
                    slot.gradient.copy_(&tensor(&record, &slot.name));
                }
                adamw.update(rate.as_f64().unwrap()).unwrap();
                adamw.zero_gradients().unwrap();
                let after = at(format!("lora_before_step{}.safetensors", step + 2));
                for slot in &adamw.slots {
                    let (_, expected) = testkit::tensor_f32(&after, &slot.name);
                    let found = values(&slot.tensor).unwrap();
                    let apart = found.iter().zip(&expected).map(|(x, y)| (x - y).abs());
                    let apart = apart.fold(0.0_f32, f32::max);
                    // The golden states are f64 rounded once; these round at every operation.
                    assert!(apart <= 1e-7, "{name} {}: {apart}", slot.name);
                }
            }
        }
    }
}
