//! A frozen weight in eight bits.

use checkpoint::TensorView;
use tch::{Device, Kind, Tensor};

use super::{each_part, shape};
use crate::product::Factor;
use crate::{FinetuneError, Result};

/// Codes on either side of zero.
const MOST: f64 = 127.0;

/// A frozen weight in whole numbers of eight bits, each row with a scale `s`, the largest of its magnitudes:
///
/// ```text
/// w ≈ s / 127 · c,   c = round(127 · w / s)
/// ```
#[derive(Debug)]
pub(crate) struct Packed8 {
    /// `[out, in]`, whole numbers of eight bits.
    codes: Tensor,
    /// `s / 127`, `[out, 1]`, f32.
    scales: Tensor,
}

impl Packed8 {
    /// A stored weight `[out, in]`, rounded to the nearest.
    pub(crate) fn of(view: &TensorView<'_>, device: Device) -> Result<Self> {
        let [rows, columns] = shape(view)?.map(|size| size as i64);
        let codes = Tensor::f_empty([rows, columns], (Kind::Int8, device))?;
        let scales = Tensor::f_empty([rows, 1], (Kind::Float, device))?;
        let mut first = 0;
        each_part(view, |_, part| {
            let part = Tensor::f_from_slice(part)?.f_view([-1, columns])?;
            let scale = part.f_abs()?.f_amax([1_i64].as_slice(), true)?.f_div_scalar(MOST)?;
            if !crate::bridge::is_finite(&scale)? {
                return Err(FinetuneError::NotFiniteWeight { name: view.name().to_owned() });
            }
            // A row of zeros has codes of zero.
            let divisor = scale.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
            let rounded = part.f_div(&divisor)?.f_round()?.f_clamp(-MOST, MOST)?;
            let count = rounded.size2()?.0;
            codes.f_narrow(0, first, count)?.f_copy_(&rounded)?;
            scales.f_narrow(0, first, count)?.f_copy_(&scale)?;
            first += count;
            Ok(())
        })?;
        Ok(Self { codes, scales })
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        self.codes.device()
    }

    /// Whether both have the same bits, at the same place.
    pub(crate) fn is_alike(&self, other: &Self) -> Result<bool> {
        Ok(self.device() == other.device()
            && self.size()? == other.size()?
            && self.codes.f_equal(&other.codes)?
            && self.scales.f_equal(&other.scales)?)
    }

    /// Another handle on the same weight.
    pub(crate) fn share(&self) -> Self {
        Self { codes: self.codes.shallow_clone(), scales: self.scales.shallow_clone() }
    }
}

/// What codes stand for.
fn widened(codes: &Tensor, scales: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(codes.f_to_kind(Kind::Float)?.f_mul_(scales)?.f_to_kind(kind)?)
}

impl Factor for Packed8 {
    fn size(&self) -> Result<(i64, i64)> {
        Ok(self.codes.size2()?)
    }

    fn whole(&self, _: Kind) -> Result<Option<&Tensor>> {
        Ok(None)
    }

    fn rows(&self, first: i64, count: i64, kind: Kind) -> Result<Tensor> {
        widened(
            &self.codes.f_narrow(0, first, count)?,
            &self.scales.f_narrow(0, first, count)?,
            kind,
        )
    }

    fn select(&self, rows: &Tensor, kind: Kind) -> Result<Tensor> {
        widened(&self.codes.f_index_select(0, rows)?, &self.scales.f_index_select(0, rows)?, kind)
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Checkpoint;

    use super::*;
    use crate::bridge::values;

    /// Every element is within half a step of what is stored; rows are picked as they lie.
    #[test]
    fn elements_are_the_nearest() {
        let checkpoint = Checkpoint::open(&testkit::fixture("tiny_llama/model")).unwrap();
        let view = checkpoint.tensor("model.embed_tokens.weight").unwrap();
        let stored = view.to_f32().unwrap();
        let columns = view.shape()[1];
        let packed = Packed8::of(&view, Device::Cpu).unwrap();
        let (rows, _) = packed.size().unwrap();
        let found = values(&packed.rows(0, rows, Kind::Float).unwrap()).unwrap();
        for (found, stored) in found.chunks(columns).zip(stored.chunks(columns)) {
            let most = stored.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (found, stored) in found.iter().zip(stored) {
                assert!((found - stored).abs() <= most / 254.0 * 1.0001, "{found} {stored} {most}");
            }
        }
        let picked = packed.select(&Tensor::from_slice(&[7_i64, 2, 7]), Kind::Float).unwrap();
        let expected: Vec<f32> =
            [7, 2, 7].iter().flat_map(|row| &found[row * columns..][..columns]).copied().collect();
        assert_eq!(values(&picked).unwrap(), expected);
    }
}
