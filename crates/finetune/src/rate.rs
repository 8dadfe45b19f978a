//! How fast this machine multiplies matrices, and in what type it does so faster.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::bridge::number;
use crate::product::{add_product, linear};
use crate::{ComputeType, DeviceChoice, Result};

/// Tokens of a measured product. The first ones say whether the others are worth their time; one
/// alone would take another way through libtorch.
const TOKENS: [i64; 4] = [4, 16, 64, 512];
/// After a product that takes half as long, and far longer than the one before, none larger is run: its rate stands.
const LONGEST: Duration = Duration::from_millis(300);
/// How often one size is measured at least, unless that takes too long.
const FEWEST: usize = 5;
/// How long one size is measured.
const MEASURED: Duration = Duration::from_millis(60);
/// The weight by which the type is chosen, `[out, in]`: of a model of some hundred million parameters.
const WEIGHT: WeightSize = WeightSize { out: 1536, inner: 1024 };

/// Floating-point operations a second in either type.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProductRates {
    /// With products in bfloat16.
    pub bf16: f64,
    /// With products in single precision.
    pub f32: f64,
}

impl ProductRates {
    /// In one of them.
    pub fn of(self, compute: ComputeType) -> f64 {
        match compute {
            ComputeType::BF16 => self.bf16,
            ComputeType::F32 => self.f32,
        }
    }

    /// The faster type.
    pub fn faster(self) -> ComputeType {
        if self.bf16 > self.f32 { ComputeType::BF16 } else { ComputeType::F32 }
    }
}

/// The size of a weight, `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightSize {
    /// Numbers that it gives.
    pub out: usize,
    /// Numbers that it takes.
    pub inner: usize,
}

/// The rates by which the type of products is chosen, measured at the first call: about a second.
///
/// # Errors
///
/// If the device cannot be used.
pub fn product_rates(device: DeviceChoice) -> Result<ProductRates> {
    static FOUND: OnceLock<(Device, ProductRates)> = OnceLock::new();
    let place = device.resolve()?;
    if let Some((of, rates)) = FOUND.get()
        && *of == place
    {
        return Ok(*rates);
    }
    let rate = |compute| product_rate(WEIGHT, device, compute);
    let rates = ProductRates { bf16: rate(ComputeType::BF16)?, f32: rate(ComputeType::F32)? };
    let _ = FOUND.set((place, rates)); // Another thread's figures are as good.
    Ok(rates)
}

/// Floating-point operations a second that products reach here with a bfloat16 weight of the size
/// `[out, in]`, forward (`x Wᵀ`) and backward (`g W`).
///
/// Takes some tenths of a second where four tokens' products do.
///
/// # Errors
///
/// If the device cannot be used.
pub fn product_rate(weight: WeightSize, device: DeviceChoice, compute: ComputeType) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    let (kind, device) = (compute.kind(), device.resolve()?);
    let stored = if device == Device::Cpu { Kind::BFloat16 } else { kind };
    let (out, inner) = (weight.out as i64, weight.inner as i64);
    let weight = Tensor::f_ones([out, inner], (stored, device))?;
    let (mut rate, mut before) = (0.0_f64, f64::INFINITY);
    for tokens in TOKENS {
        let x = Tensor::f_ones([tokens, inner], (kind, device))?;
        let g = Tensor::f_ones([tokens, out], (kind, device))?;
        let operations = 4.0 * (tokens * inner * out) as f64;
        let product = || -> Result<f64> {
            let started = Instant::now();
            let y = linear(&x, &weight, None)?;
            let back = add_product(None, &g, &weight)?;
            // A GPU computes on until a number is asked for.
            number(&y.f_narrow(0, 0, 1)?.f_mean(Kind::Float)?)?;
            number(&back.f_narrow(0, 0, 1)?.f_mean(Kind::Float)?)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let mut best = product()?; // libtorch compiles it.
        let (started, mut tries) = (Instant::now(), 0);
        // One alone may have waited for another program's turn.
        while (started.elapsed() < MEASURED || tries < FEWEST) && started.elapsed() < LONGEST {
            best = best.min(product()?);
            tries += 1;
        }
        rate = rate.max(operations / best);
        // Beside another program a product takes long however small it is: only one that grows says what the next takes.
        if best > LONGEST.as_secs_f64() / 2.0 && best > 2.0 * before {
            break;
        }
        before = best;
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_type_is_the_one_with_the_higher_rate() {
        let rates = ProductRates { bf16: 2.0, f32: 3.0 };
        assert_eq!((rates.faster(), rates.of(ComputeType::BF16)), (ComputeType::F32, 2.0));
        let rates = ProductRates { bf16: 4.0, f32: 3.0 };
        assert_eq!(rates.faster(), ComputeType::BF16);
    }

    #[test]
    fn rates_are_remembered() {
        let found = product_rates(DeviceChoice::Cpu).unwrap();
        assert!(found.bf16 > 0.0 && found.f32 > 0.0);
        assert_eq!(product_rates(DeviceChoice::Cpu).unwrap(), found);
    }
}
