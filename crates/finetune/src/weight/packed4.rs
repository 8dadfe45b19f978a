//! A frozen weight in four bits.

use checkpoint::{NF4_BLOCK, Nf4, TensorView};
use tch::{Device, Kind, Tensor};

use super::each_part;
use crate::product::Factor;
use crate::{FinetuneError, Result};

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

impl Packed4 {
    /// Whether weights of so many columns can be in NF4: a row has to be a whole number of blocks.
    pub(crate) fn takes(columns: usize) -> bool {
        columns.is_multiple_of(NF4_BLOCK)
    }

    /// A stored weight `[out, in]`, rounded to the nearest of each block's 16 values.
    pub(crate) fn of(view: &TensorView<'_>, device: Device) -> Result<Self> {
        let mut nf4 = Nf4::default();
        let [rows, columns] = each_part(view, |_, part| {
            nf4.extend(part)
                .map_err(|_| FinetuneError::NotFiniteWeight { name: view.name().to_owned() })
        })?;
        let held = match device {
            Device::Cpu => Held::Here(nf4.into()),
            device => Held::on(device, &nf4, [rows, columns])?,
        };
        Ok(Self { rows, columns, held })
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        match &self.held {
            Held::Here(_) => Device::Cpu,
            Held::Device { codes, .. } => codes.device(),
        }
    }

    /// Whether both have the same bits, at the same kind of place.
    pub(crate) fn is_alike(&self, other: &Self) -> Result<bool> {
        Ok(self.size()? == other.size()?
            && match (&self.held, &other.held) {
                (Held::Here(one), Held::Here(other)) => one == other,
                (Held::Device { codes, scales, .. }, Held::Device { codes: c, scales: s, .. }) => {
                    codes.device() == c.device() && codes.f_equal(c)? && scales.f_equal(s)?
                }
                _ => false,
            })
    }

    /// Another handle on the same weight.
    pub(crate) fn share(&self) -> Self {
        Self { held: self.held.share(), ..*self }
    }
}

impl Packed4 {
    /// Scales of a row.
    fn blocks(&self) -> i64 {
        self.columns / NF4_BLOCK as i64
    }

    /// What the codes of some rows stand for, f32.
    fn widened(&self, codes: &Tensor, scales: &Tensor, pairs: &Tensor) -> Result<Tensor> {
        let codes = codes.f_reshape(-1)?.f_to_kind(Kind::Int)?;
        let values = pairs.f_index_select(0, &codes)?;
        let values = values.f_view([-1, self.blocks(), NF4_BLOCK as i64])?;
        Ok(values.f_mul(&scales.f_unsqueeze(-1)?)?)
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
        let wide = match &self.held {
            Held::Here(nf4) => {
                let mut out = vec![0.0; (count * self.columns) as usize];
                nf4.values((first * self.blocks()) as usize, &mut out);
                Tensor::f_from_slice(&out)?
            }
            Held::Device { codes, scales, pairs } => {
                let part = |of: &Tensor| of.f_narrow(0, first, count);
                self.widened(&part(codes)?, &part(scales)?, pairs)?
            }
        };
        Ok(wide.f_view([count, self.columns])?.f_to_kind(kind)?)
    }

    fn select(&self, rows: &Tensor, kind: Kind) -> Result<Tensor> {
        let wide = match &self.held {
            Held::Here(_) => {
                let rows = Vec::<i64>::try_from(rows.f_to_kind(Kind::Int64)?)?;
                let each = rows.into_iter().map(|row| self.rows(row, 1, kind));
                Tensor::f_cat(&each.collect::<Result<Vec<_>>>()?, 0)?
            }
            Held::Device { codes, scales, pairs } => {
                let part = |of: &Tensor| of.f_index_select(0, rows);
                self.widened(&part(codes)?, &part(scales)?, pairs)?
            }
        };
        Ok(wide.f_view([-1, self.columns])?.f_to_kind(kind)?)
    }
}

#[cfg(test)]
impl Packed4 {
    /// How many handles there are on a CPU's weight.
    pub(crate) fn handles(&self) -> usize {
        match &self.held {
            Held::Here(nf4) => std::sync::Arc::strong_count(nf4),
            Held::Device { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Checkpoint;

    use super::*;
    use crate::bridge::values;
    use crate::train::tests::golden_model;

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
        let picked = |of: &Packed4| {
            values(&of.select(&Tensor::from_slice(&[5_i64, 60, 5]), Kind::Float).unwrap()).unwrap()
        };
        assert_eq!(picked(&here), picked(&there));
        assert_eq!(
            picked(&here)[128..256],
            values(&here.rows(60, 1, Kind::Float).unwrap()).unwrap()
        );
        let apart = testkit::relative_deviation(
            &values(&here.rows(0, 64, Kind::Float).unwrap()).unwrap(),
            &view.to_f32().unwrap(),
        );
        assert!((0.01..0.16).contains(&apart), "{apart}");
    }
}
