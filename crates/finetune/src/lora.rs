//! LoRA adapters (Hu et al., arXiv 2106.09685): `W x + (alpha / r) · B A x`, and DoRA's.

use std::collections::BTreeSet;

use checkpoint::Module;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::magnitude::Magnitude;
use crate::parameter::Parameter;
use crate::weight::Weight;

/// Which weights get adapters, and of what size.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// The inner dimension `r`.
    pub rank: usize,
    /// Scales the adapter's output, by `alpha / rank`.
    pub alpha: f64,
    /// The linear weights of a layer that get one.
    pub targets: BTreeSet<Module>,
    /// The layers that get them; `None` for all.
    pub layers: Option<BTreeSet<usize>>,
    /// Whether the norms of the adapted weights' rows train by themselves (DoRA; Liu et al., arXiv 2402.09353).
    pub dora: bool,
}

/// What a fresh adapter is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FreshLora {
    /// The weight's rows.
    pub(crate) out: usize,
    /// The weight's columns.
    pub(crate) columns: usize,
    /// The inner dimension `r`.
    pub(crate) rank: usize,
    /// Scales its output, by `alpha / rank`.
    pub(crate) alpha: f64,
    /// Decides its values, together with the weight's place.
    pub(crate) seed: u64,
    /// The weight's layer.
    pub(crate) layer: usize,
    /// Which of the layer's weights it is.
    pub(crate) module: Module,
}

/// One adapter; its matrices are f32 and train.
#[derive(Debug)]
pub(crate) struct Lora {
    /// `[r, in]`.
    pub(crate) a: Parameter,
    /// `[out, r]`.
    pub(crate) b: Parameter,
    /// `alpha / r`.
    pub(crate) scale: f64,
    /// DoRA's norms, if it is one.
    pub(crate) magnitude: Option<Magnitude>,
}

/// Where in the random numbers a weight's adapter has its own: a stream of its own for each.
fn stream_of(layer: usize, module: Module) -> u64 {
    let (split, number) = (Module::SPLIT.len(), module as usize);
    match number.checked_sub(split) {
        None => (layer * split + number) as u64,
        Some(fused) => (1 << 32) + (layer * (Module::ALL.len() - split) + fused) as u64,
    }
}

impl Lora {
    /// A fresh adapter: `A` uniform in `±1/√in` (Kaiming with `a = √5`, PEFT's choice), `B` zero.
    ///
    /// The values depend on the seed and the weight's place alone, not on the device.
    pub(crate) fn new(fresh: FreshLora, device: Device) -> Result<Self> {
        let FreshLora { out, columns, rank, alpha, seed, layer, module } = fresh;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream_of(layer, module));
        let bound = 1.0 / (columns as f32).sqrt();
        let values: Vec<f32> = (0..rank * columns)
            .map(|_| {
                let unit = (random.next_u32() >> 8) as f32 / (1 << 24) as f32; // In [0, 1).
                bound * (2.0 * unit - 1.0)
            })
            .collect();
        let a = Tensor::f_from_slice(&values)?.f_view([rank as i64, columns as i64])?;
        let b = Tensor::f_zeros([out as i64, rank as i64], (Kind::Float, Device::Cpu))?;
        Self::from_tensors(&a, &b, alpha / rank as f64, device)
    }

    /// An adapter of given matrices.
    pub(crate) fn from_tensors(a: &Tensor, b: &Tensor, scale: f64, device: Device) -> Result<Self> {
        let trained = |x: &Tensor| Parameter::trained(&x.f_to_device(device)?);
        Ok(Self { a: trained(a)?, b: trained(b)?, scale, magnitude: None })
    }

    /// Makes it DoRA, on its weight and with given norms, or with those that leave the adapted weight as it is.
    pub(crate) fn with_magnitude(
        mut self,
        weight: &Weight,
        value: Option<&Tensor>,
    ) -> Result<Self> {
        self.magnitude = Some(Magnitude::new(weight, &self, value)?);
        Ok(self)
    }

    /// Another handle on the same matrices.
    pub(crate) fn share(&self) -> Self {
        let magnitude = self.magnitude.as_ref().map(Magnitude::share);
        Self { a: self.a.share(), b: self.b.share(), scale: self.scale, magnitude }
    }

    /// Another handle on the same matrices, which do not train.
    pub(crate) fn untrained(&self) -> Self {
        let magnitude = self.magnitude.as_ref().map(Magnitude::untrained);
        Self { a: self.a.untrained(), b: self.b.untrained(), scale: self.scale, magnitude }
    }

    /// The inner dimension `r`.
    pub(crate) fn rank(&self) -> i64 {
        self.a.value.size().first().copied().unwrap_or(0)
    }

    /// The weight `[out, in]`, f32, with the adapter merged into it.
    pub(crate) fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        let delta = self.b.value.f_matmul(&self.a.value)?.f_mul_scalar(self.scale)?.f_detach()?;
        let adapted = weight.f_add(&delta)?;
        self.magnitude.as_ref().map_or(Ok(adapted.shallow_clone()), |of| of.apply(&adapted))
    }
}
