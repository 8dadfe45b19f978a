//! A weight, and the gradient it gathers while it trains.

use tch::{Device, Kind, Tensor};

use crate::Result;

/// One weight of a model or of an adapter.
#[derive(Debug)]
pub(crate) struct Parameter {
    /// In its stored or the compute type while frozen, f32 while it trains.
    pub(crate) value: Tensor,
    /// What backward passes have added up, f32, of the value's shape; `None` while frozen.
    pub(crate) gradient: Option<Tensor>,
}

impl Parameter {
    /// A weight that does not train.
    pub(crate) fn frozen(value: Tensor) -> Self {
        Self { value, gradient: None }
    }

    /// A weight that trains.
    pub(crate) fn trained(value: &Tensor) -> Result<Self> {
        let mut parameter = Self::frozen(value.shallow_clone());
        parameter.train()?;
        Ok(parameter)
    }

    /// Makes it train where it is.
    pub(crate) fn train(&mut self) -> Result<()> {
        self.train_on(self.value.device())
    }

    /// Makes it train on a device.
    pub(crate) fn train_on(&mut self, device: Device) -> Result<()> {
        // A copy: a mapped file must not be written to.
        self.value = self.value.f_to_device(device)?.f_to_kind(Kind::Float)?.f_detach_copy()?;
        self.gradient = Some(self.value.f_zeros_like()?);
        Ok(())
    }

    /// Another handle on the same value and gradient.
    pub(crate) fn share(&self) -> Self {
        let gradient = self.gradient.as_ref().map(Tensor::shallow_clone);
        Self { value: self.value.shallow_clone(), gradient }
    }

    /// Another handle on the same value, which does not train.
    pub(crate) fn untrained(&self) -> Self {
        Self::frozen(self.value.shallow_clone())
    }

    /// Whether it trains.
    pub(crate) fn trains(&self) -> bool {
        self.gradient.is_some()
    }

    /// The value in the type that products run in.
    pub(crate) fn as_kind(&self, kind: Kind) -> Result<Tensor> {
        Ok(self.value.f_to_kind(kind)?)
    }

    /// Adds to the gradient, which is computed only if the weight trains; in any type.
    pub(crate) fn gather(&self, gradient: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if let Some(sum) = &self.gradient {
            // The same memory under another handle: adding in place needs one that is mutable.
            let _ = sum.shallow_clone().f_add_(&gradient()?)?;
        }
        Ok(())
    }
}
