//! A linear weight, or a table of embeddings: as it is stored, or rounded to fewer bits.

mod packed4;
mod packed8;

use checkpoint::{TensorView, widen};
use tch::{Device, Kind, Tensor};

use crate::parameter::Parameter;
use crate::product::Factor;
use crate::{FinetuneError, Result};

pub(crate) use packed4::Packed4;
pub(crate) use packed8::Packed8;

/// Which frozen weights are rounded to fewer bits when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rounding {
    /// The layers' linear weights are in NF4, four bits an element and a scale for 64 of them (`QLoRA`; Dettmers et al.,
    /// arXiv 2305.14314), as bitsandbytes rounds them. A weight whose rows are no whole number of 64 elements stays as
    /// it is.
    pub layers_in_4bit: bool,
    /// The embedding and the head are in eight bits an element, with a scale for each token's row.
    pub embedding_in_8bit: bool,
}

impl Rounding {
    /// None are.
    pub const NONE: Self = Self { layers_in_4bit: false, embedding_in_8bit: false };

    /// What recipes call it; `None` if nothing is rounded.
    pub fn name(self) -> Option<&'static str> {
        match (self.layers_in_4bit, self.embedding_in_8bit) {
            (false, false) => None,
            (true, false) => Some("nf4"),
            (false, true) => Some("int8 embedding"),
            (true, true) => Some("nf4, int8 embedding"),
        }
    }
}

/// A linear weight, `[out, in]`.
#[derive(Debug)]
pub(crate) enum Weight {
    /// In its stored or the compute type, or f32 while it trains.
    Whole(Parameter),
    /// Frozen, in NF4; products take some of its rows at a time.
    Nf4(Packed4),
    /// Frozen, in eight bits; products take some of its rows at a time.
    Int8(Packed8),
}

/// Elements that are rounded at a time: memory stays at little more than the rounded weight's.
const PART: usize = 1 << 20;

/// Rows and columns of a weight to round.
fn shape(view: &TensorView<'_>) -> Result<[usize; 2]> {
    <[usize; 2]>::try_from(view.shape()).map_err(|_| {
        FinetuneError::Settings(format!("`{}` is no matrix and cannot be rounded", view.name()))
    })
}

/// Hands out a stored matrix some whole rows at a time, in f32. It is read from its file a part at a time, not mapped:
/// pages that were looked at would count as this process's memory.
fn each_part(
    view: &TensorView<'_>,
    mut take: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<[i64; 2]> {
    let (dtype, reader) = (view.dtype()?, view.reader()?);
    let [rows, columns] = shape(view)?;
    let most = (PART / columns.max(1)).max(1);
    for first in (0..rows).step_by(most) {
        let mut part = vec![0; most.min(rows - first) * columns * dtype.size()];
        reader.read((first * columns * dtype.size()) as u64, &mut part)?;
        take(columns, &widen(&part, dtype))?;
    }
    Ok([rows as i64, columns as i64])
}

impl Weight {
    /// The weight as products take it.
    pub(crate) fn factor(&self) -> &dyn Factor {
        match self {
            Self::Whole(parameter) => &parameter.value,
            Self::Nf4(packed) => packed,
            Self::Int8(packed) => packed,
        }
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Whole(parameter) => parameter.value.device(),
            Self::Nf4(packed) => packed.device(),
            Self::Int8(packed) => packed.device(),
        }
    }

    /// The weight, if it is not rounded to fewer bits.
    pub(crate) fn parameter(&self) -> Option<&Parameter> {
        match self {
            Self::Whole(parameter) => Some(parameter),
            Self::Nf4(_) | Self::Int8(_) => None,
        }
    }

    /// As [`Weight::parameter`], to change it.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if it is rounded to fewer bits.
    pub(crate) fn parameter_mut(&mut self) -> Result<&mut Parameter> {
        match self {
            Self::Whole(parameter) => Ok(parameter),
            Self::Nf4(_) | Self::Int8(_) => {
                let what = "weights in four or eight bits do not train: fine-tune by LoRA, or leave out --load-in-4bit";
                Err(FinetuneError::Settings(what.into()))
            }
        }
    }

    /// The weight itself, or what its few bits stand for, in f32.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Whole(parameter) => Ok(parameter.value.shallow_clone()),
            Self::Nf4(_) | Self::Int8(_) => {
                let (rows, _) = self.factor().size()?;
                self.factor().rows(0, rows, Kind::Float)
            }
        }
    }

    /// Whether it trains.
    pub(crate) fn trains(&self) -> bool {
        self.parameter().is_some_and(Parameter::trains)
    }

    /// Adds to the gradient, which is computed only if the weight trains.
    pub(crate) fn gather(&self, gradient: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.parameter().map_or(Ok(()), |parameter| parameter.gather(gradient))
    }

    /// Whether both are rounded to the same few bits.
    pub(crate) fn is_rounded_alike(&self, other: &Self) -> Result<bool> {
        match (self, other) {
            (Self::Nf4(one), Self::Nf4(other)) => one.is_alike(other),
            (Self::Int8(one), Self::Int8(other)) => one.is_alike(other),
            _ => Ok(false),
        }
    }

    /// Another handle on the same weight and gradient.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Whole(parameter) => Self::Whole(parameter.share()),
            Self::Nf4(packed) => Self::Nf4(packed.share()),
            Self::Int8(packed) => Self::Int8(packed.share()),
        }
    }

    /// Another handle on the same weight, which does not train.
    pub(crate) fn untrained(&self) -> Self {
        match self {
            Self::Whole(parameter) => Self::Whole(parameter.untrained()),
            Self::Nf4(_) | Self::Int8(_) => self.share(),
        }
    }
}

#[cfg(test)]
impl Weight {
    /// The weight, to read it in a test.
    pub(crate) fn value(&self) -> &Tensor {
        &self.parameter().unwrap().value
    }

    /// The weight, to change it in a test.
    pub(crate) fn value_mut(&mut self) -> &mut Tensor {
        &mut self.parameter_mut().unwrap().value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tests::{golden_model, lora, rows, settings, weights_of};
    use crate::{ComputeType, DeviceChoice, Method, Model, Trainer};

    const BOTH: Rounding = Rounding { layers_in_4bit: true, embedding_in_8bit: true };

    fn load(name: &str, rounding: Rounding) -> Model {
        let folder = golden_model(name).folder().to_owned();
        Model::load_rounded(&folder, DeviceChoice::Cpu, ComputeType::F32, rounding).unwrap()
    }

    /// A rounded model computes what one does that has the rounded weights: losses and gradients of adapters, and
    /// what an evaluation sees. Nothing of it trains but adapters.
    #[test]
    fn products_are_those_of_the_rounded_weights() {
        let layers = Rounding { embedding_in_8bit: false, ..BOTH };
        let embedding = Rounding { layers_in_4bit: false, ..BOTH };
        for (name, rounding) in [
            ("tiny_llama", layers),
            ("tiny_llama", BOTH),
            ("tiny_llama_tied", embedding),
            ("tiny_qwen2", BOTH),
        ] {
            let packed = load(name, rounding);
            let mut rounded = golden_model(name);
            let (mut in_few_bits, mut all) = (0, 0);
            // A copy: the mapping goes with the other model.
            let mut put = |from: &Weight, to: &mut Weight| {
                *to.value_mut() = from.tensor().unwrap().copy();
                all += 1;
                in_few_bits += usize::from(from.parameter().is_none());
            };
            for (from, to) in packed.layers.iter().zip(&mut rounded.layers) {
                for (module, to) in &mut to.linears {
                    put(&from.linears[module].weight, &mut to.weight);
                }
            }
            put(&packed.embedding, &mut rounded.embedding);
            if let (Some(from), Some(to)) = (&packed.head, &mut rounded.head) {
                put(from, to);
            }
            // In two of them a hidden size of 48 is no whole number of blocks, nor is an inner one of 72 or 80.
            let expected = match (name, rounding.embedding_in_8bit) {
                ("tiny_llama", true) => all,
                ("tiny_llama", false) => all - 2,
                _ => 1,
            };
            assert_eq!(in_few_bits, expected, "{name}");
            let found = [packed, rounded].map(|model| {
                let mut trainer = Trainer::new(model, settings(lora()), rows(name)).unwrap();
                trainer.run_until(3, None, &mut |_| {}).unwrap();
                let likelihoods = trainer.model().all_logits(&[&[3, 4, 5]]).unwrap();
                (weights_of(trainer.model()), likelihoods)
            });
            let [(one, seen), (other, expected)] = found;
            let apart = testkit::relative_deviation(&seen, &expected);
            assert!(apart < 1e-6, "{name}: {apart}");
            assert_eq!(one.len(), other.len());
            for (one, other) in one.iter().zip(&other) {
                let apart = testkit::relative_deviation(one, other);
                assert!(apart < 1e-5, "{name}: {apart}");
            }
        }
        for method in [Method::Full, Method::HeadAndLast(0)] {
            let model = load("tiny_llama", BOTH);
            let refused = Trainer::new(model, settings(method), rows("tiny_llama")).unwrap_err();
            let reason = "weights in four or eight bits do not train";
            assert!(refused.to_string().contains(reason), "{refused}");
        }
    }
}
