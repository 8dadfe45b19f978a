//! A layer's linear weight: as it is stored, or in four bits.

use checkpoint::{NF4_BLOCK, Nf4, TensorView, widen};
use tch::{Device, Kind, Tensor};

use crate::parameter::Parameter;
use crate::product::Factor;
use crate::{FinetuneError, Result};

/// A linear weight, `[out, in]`.
#[derive(Debug)]
pub(crate) enum Weight {
    /// In its stored or the compute type, or f32 while it trains.
    Whole(Parameter),
    /// Frozen, in NF4; products take some of its rows at a time.
    Packed(Packed4),
}

/// A frozen weight in NF4 (QLoRA; Dettmers et al., arXiv 2305.14314).
#[derive(Debug)]
pub(crate) struct Packed4 {
    rows: i64,
    columns: i64,
    held: Held,
}

/// Where it is.
#[derive(Debug)]
enum Held {
    /// Widened by a kernel of our own.
    Here(std::sync::Arc<Nf4>),
    /// Widened by libtorch: `[out, in / 2]` bytes, `[out, in / 64]` scales, and both values of each byte.
    Device { codes: Tensor, scales: Tensor, pairs: Tensor },
}

/// Elements that are rounded at a time: memory stays at little more than the rounded weight's.
const PART: usize = 1 << 20;

impl Packed4 {
    /// Whether weights of so many columns can be in NF4: a row has to be a whole number of blocks.
    pub(crate) fn takes(columns: usize) -> bool {
        columns.is_multiple_of(NF4_BLOCK)
    }

    /// A stored weight `[out, in]`, rounded to the nearest of each block's 16 values. It is read from its file a part at a
    /// time, not mapped: pages that were looked at would count as this process's memory.
    pub(crate) fn of(view: &TensorView<'_>, device: Device) -> Result<Self> {
        let (dtype, reader) = (view.dtype()?, view.reader()?);
        let &[rows, columns] = view.shape() else {
            let what = format!("`{}` is no matrix and cannot be put into four bits", view.name());
            return Err(FinetuneError::Settings(what));
        };
        let mut nf4 = Nf4::default();
        let most = (PART / columns.max(1)).max(1);
        for first in (0..rows).step_by(most) {
            let mut part = vec![0; most.min(rows - first) * columns * dtype.size()];
            reader.read((first * columns * dtype.size()) as u64, &mut part)?;
            nf4.extend(&widen(&part, dtype))
                .map_err(|_| FinetuneError::NotFiniteWeight { name: view.name().to_owned() })?;
        }
        let (rows, columns) = (rows as i64, columns as i64);
        let held = match device {
            Device::Cpu => Held::Here(nf4.into()),
            device => Held::on(device, &nf4, [rows, columns])?,
        };
        Ok(Self { rows, columns, held })
    }

    fn share(&self) -> Self {
        Self { held: self.held.share(), ..*self }
    }
}

impl Held {
    fn on(device: Device, nf4: &Nf4, [rows, columns]: [i64; 2]) -> Result<Self> {
        let here = |tensor: Tensor, columns: i64| -> Result<Tensor> {
            Ok(tensor.f_view([rows, columns])?.f_to_device(device)?)
        };
        // What the 256 bytes stand for, at a scale of one.
        let mut pairs = vec![0.0; 512];
        let all = Nf4 { codes: (0..=u8::MAX).collect(), scales: vec![1.0; 512 / NF4_BLOCK] };
        all.values(0, &mut pairs);
        Ok(Self::Device {
            codes: here(Tensor::f_from_slice(&nf4.codes)?, columns / 2)?,
            scales: here(Tensor::f_from_slice(&nf4.scales)?, columns / NF4_BLOCK as i64)?,
            pairs: Tensor::f_from_slice(&pairs)?.f_view([256, 2])?.f_to_device(device)?,
        })
    }

    fn share(&self) -> Self {
        match self {
            Self::Here(nf4) => Self::Here(nf4.clone()),
            Self::Device { codes, scales, pairs } => Self::Device {
                codes: codes.shallow_clone(),
                scales: scales.shallow_clone(),
                pairs: pairs.shallow_clone(),
            },
        }
    }
}

impl Factor for Packed4 {
    fn size(&self) -> Result<(i64, i64)> {
        Ok((self.rows, self.columns))
    }

    fn whole(&self, _: Kind) -> Result<Option<&Tensor>> {
        Ok(None)
    }

    fn rows(&self, first: i64, count: i64, kind: Kind) -> Result<Tensor> {
        let blocks = self.columns / NF4_BLOCK as i64;
        let wide = match &self.held {
            Held::Here(nf4) => {
                let mut out = vec![0.0; (count * self.columns) as usize];
                nf4.values((first * blocks) as usize, &mut out);
                Tensor::f_from_slice(&out)?
            }
            Held::Device { codes, scales, pairs } => {
                let codes = codes.f_narrow(0, first, count)?.f_reshape(-1)?;
                let values = pairs.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
                let values = values.f_view([count, blocks, NF4_BLOCK as i64])?;
                values.f_mul(&scales.f_narrow(0, first, count)?.f_unsqueeze(-1)?)?
            }
        };
        Ok(wide.f_view([count, self.columns])?.f_to_kind(kind)?)
    }
}

impl Weight {
    /// The weight as products take it.
    pub(crate) fn factor(&self) -> &dyn Factor {
        match self {
            Self::Whole(parameter) => &parameter.value,
            Self::Packed(packed) => packed,
        }
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Whole(parameter) => parameter.value.device(),
            Self::Packed(Packed4 { held: Held::Here(_), .. }) => Device::Cpu,
            Self::Packed(Packed4 { held: Held::Device { codes, .. }, .. }) => codes.device(),
        }
    }

    /// The weight, if it is not in four bits.
    pub(crate) fn parameter(&self) -> Option<&Parameter> {
        match self {
            Self::Whole(parameter) => Some(parameter),
            Self::Packed(_) => None,
        }
    }

    /// As [`Weight::parameter`], to change it.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if it is in four bits.
    pub(crate) fn parameter_mut(&mut self) -> Result<&mut Parameter> {
        match self {
            Self::Whole(parameter) => Ok(parameter),
            Self::Packed(_) => {
                let what = "weights in four bits do not train: fine-tune by LoRA, or leave out --load-in-4bit";
                Err(FinetuneError::Settings(what.into()))
            }
        }
    }

    /// The weight itself, or what its four bits stand for, in f32.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Whole(parameter) => Ok(parameter.value.shallow_clone()),
            Self::Packed(packed) => packed.rows(0, packed.rows, Kind::Float),
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

    /// Another handle on the same weight and gradient.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Whole(parameter) => Self::Whole(parameter.share()),
            Self::Packed(packed) => Self::Packed(packed.share()),
        }
    }

    /// Another handle on the same weight, which does not train.
    pub(crate) fn untrained(&self) -> Self {
        match self {
            Self::Whole(parameter) => Self::Whole(parameter.untrained()),
            Self::Packed(packed) => Self::Packed(packed.share()),
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
    use checkpoint::Checkpoint;

    use super::*;
    use crate::bridge::values;
    use crate::train::tests::{golden_model, lora, rows, settings, weights_of};
    use crate::{ComputeType, DeviceChoice, Method, Model, Trainer};

    /// A model in four bits computes what one does that has the rounded weights: losses and gradients of adapters, and
    /// what an evaluation sees. Nothing of it trains but adapters.
    #[test]
    fn products_are_those_of_the_rounded_weights() {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let folder = golden_model(name).folder().to_owned();
            let load =
                || Model::load_in_4bit(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
            let packed = load();
            let mut rounded = golden_model(name);
            let (mut in_four_bits, mut all) = (0, 0);
            for (from, to) in packed.layers.iter().zip(&mut rounded.layers) {
                for (module, to) in &mut to.linears {
                    let from = &from.linears[module].weight;
                    // A copy: the mapping goes with the other model.
                    *to.weight.value_mut() = from.tensor().unwrap().copy();
                    in_four_bits += usize::from(from.parameter().is_none());
                    all += 1;
                }
            }
            // A hidden size of 48 is no whole number of blocks, nor is an inner one of 72.
            let expected = if name == "tiny_llama" { all } else { 0 };
            assert_eq!(in_four_bits, expected, "{name}");
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
        let folder = golden_model("tiny_llama").folder().to_owned();
        let model = Model::load_in_4bit(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
        let full = Trainer::new(model, settings(Method::Full), rows("tiny_llama")).unwrap_err();
        assert!(full.to_string().contains("weights in four bits do not train"), "{full}");
    }

    /// Rows from the middle on, by the kernel and by libtorch as a GPU has them widened.
    #[test]
    fn both_ways_widen_to_the_same_bits() {
        let folder = golden_model("tiny_llama").folder().to_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let view = checkpoint.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
        assert_eq!(view.shape(), [64, 128]);
        let here = Packed4::of(&view, Device::Cpu).unwrap();
        let Held::Here(nf4) = &here.held else { panic!("a CPU's weight is widened by the kernel") };
        let held = Held::on(Device::Cpu, nf4, [64, 128]).unwrap();
        let there = Packed4 { held, ..here };
        for (first, count) in [(0, 64), (2, 3), (63, 1)] {
            let rows = |of: &Packed4| values(&of.rows(first, count, Kind::Float).unwrap()).unwrap();
            assert_eq!(rows(&here), rows(&there));
        }
        let apart = testkit::relative_deviation(
            &values(&here.rows(0, 64, Kind::Float).unwrap()).unwrap(),
            &view.to_f32().unwrap(),
        );
        assert!((0.01..0.16).contains(&apart), "{apart}");
    }
}
