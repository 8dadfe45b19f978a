//! Where and in what type a model computes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_with::{DeserializeFromStr, SerializeDisplay};
use tch::{Cuda, Device, Kind};

use crate::bridge::load_cuda;
use crate::{FinetuneError, Result, product_rates};

/// The device asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum DeviceChoice {
    /// A GPU if one can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU.
    Cuda(usize),
}

impl DeviceChoice {
    /// Whether this comes to the CPU here.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::NoCuda`] if a GPU is asked for and cannot be used.
    pub fn is_cpu(self) -> Result<bool> {
        Ok(self.resolve()? == Device::Cpu)
    }

    /// The device this comes to here.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::NoCuda`] if a GPU is asked for and cannot be used.
    pub(crate) fn resolve(self) -> Result<Device> {
        let wanted = match self {
            Self::Cpu => return Ok(Device::Cpu),
            // Of several processes on one machine each has a GPU of its own.
            Self::Auto => collective::local_rank(),
            Self::Cuda(number) => number,
        };
        match usable_gpus() {
            // A launcher may show each process its own alone.
            Ok(1) if self == Self::Auto => Ok(Device::Cuda(0)),
            Ok(count) if wanted < count => Ok(Device::Cuda(wanted)),
            found @ (Ok(0) | Err(_)) if self == Self::Auto => {
                tracing::info!(?found, "no GPU can be used; computing on the CPU");
                Ok(Device::Cpu)
            }
            Ok(count) => Err(FinetuneError::NoCuda(format!("there are {count} of them"))),
            Err(reason) => Err(FinetuneError::NoCuda(reason)),
        }
    }
}

/// How many GPUs libtorch can use; `Err` says why none, and what to do.
///
/// # Errors
///
/// If its CUDA part is not there, or sees no GPU.
pub fn usable_gpus() -> Result<usize, String> {
    load_cuda().clone()?;
    match usize::try_from(Cuda::device_count()) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("libtorch has its CUDA part but sees no GPU; does `nvidia-smi` answer?".into()),
    }
}

/// On how many threads libtorch computes on the CPU.
pub fn num_threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.parse::<usize>().is_ok() => {
                Ok(Self::Cuda(number.parse().unwrap_or(0)))
            }
            _ => Err(format!("`{text}` is none of auto, cpu, cuda and cuda:0")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// The type products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// Single precision.
    F32,
    /// bfloat16; norms, the loss and the trained weights stay in f32.
    BF16,
}

/// The type asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum ComputeChoice {
    /// What the device multiplies faster.
    Auto,
    /// This one.
    Fixed(ComputeType),
}

impl ComputeChoice {
    /// The type this comes to on a device; for `auto` its speed is measured, once a process.
    ///
    /// # Errors
    ///
    /// If the device cannot be used.
    pub fn resolve(self, device: DeviceChoice) -> Result<ComputeType> {
        match self {
            Self::Auto => Ok(product_rates(device)?.faster()),
            Self::Fixed(compute) => Ok(compute),
        }
    }
}

impl ComputeType {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::BF16 => Kind::BFloat16,
        }
    }
}

impl fmt::Display for ComputeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(compute) => compute.fmt(f),
        }
    }
}

impl FromStr for ComputeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::Fixed(ComputeType::F32)),
            "bf16" => Ok(Self::Fixed(ComputeType::BF16)),
            _ => Err(format!("`{text}` is not a type; choose auto, bf16 or f32")),
        }
    }
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
        })
    }
}
