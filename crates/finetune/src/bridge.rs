//! The one place where raw pointers pass between tensors and the rest: mapped weights in, values
//! out, and the CUDA half of libtorch loaded when it is there.

use std::error::Error;
use std::sync::{Arc, OnceLock};

use checkpoint::{Dtype, MappedFile, TensorView};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// libtorch's type for a stored one.
pub(crate) fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
    }
}

/// A weight as a tensor, and the mapping it must not outlive.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) tensor: Tensor,
    /// Some while the tensor's memory is the mapped file itself.
    pub(crate) file: Option<Arc<MappedFile>>,
}

/// A stored weight on `device`, on a GPU as `wanted`.
///
/// On the CPU it stays in its stored type and, where it is aligned, is not copied: the tensor reads
/// the mapped file.
pub(crate) fn load(view: &TensorView<'_>, device: Device, wanted: Kind) -> Result<Loaded> {
    let dtype = view.dtype()?;
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    let bytes = view.bytes();
    if !(bytes.as_ptr() as usize).is_multiple_of(dtype.size()) {
        let mut tensor = Tensor::f_from_slice(&view.to_f32()?)?.f_view(shape.as_slice())?;
        let wanted = if device == Device::Cpu { kind(dtype) } else { wanted };
        tensor = tensor.f_to_device(device)?.f_to_kind(wanted)?;
        return Ok(Loaded { tensor, file: None });
    }
    let strides: Vec<i64> =
        (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    // SAFETY: the bytes are aligned (checked above), as many as the shape needs (safetensors has
    // checked it), and stay mapped while `file` lives, which whoever takes the tensor keeps beside
    // it. Nothing writes to the tensor: frozen weights are only read, and trained ones are copied
    // first (`parameter.rs`).
    let mapped =
        unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &strides, kind(dtype), Device::Cpu)? };
    if device == Device::Cpu {
        return Ok(Loaded { tensor: mapped, file: Some(Arc::clone(view.file())) });
    }
    Ok(Loaded { tensor: mapped.f_to_device(device)?.f_to_kind(wanted)?, file: None })
}

/// A tensor's values as f32, row-major.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
    let flat = tensor.f_contiguous()?.f_view(-1)?;
    let mut out = vec![0.0; flat.numel()];
    flat.f_copy_data(&mut out, flat.numel())?;
    Ok(out)
}

/// A two-dimensional tensor's values as f32.
pub(crate) fn matrix(tensor: &Tensor) -> Result<Array2<f32>> {
    let (rows, columns) = tensor.size2()?;
    let shape = (rows as usize, columns as usize);
    Array2::from_shape_vec(shape, values(tensor)?)
        .map_err(|error| crate::FinetuneError::Settings(error.to_string()))
}

/// A tensor's bytes in a stored type, little-endian, rounded once.
pub(crate) fn bytes(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let tensor = tensor.f_detach()?.f_to_kind(kind(dtype))?.f_to_device(Device::Cpu)?;
    let flat = tensor.f_contiguous()?.f_view(-1)?;
    let mut out = vec![0; flat.numel() * dtype.size()];
    flat.f_copy_data_u8(&mut out, flat.numel())?;
    Ok(out)
}

/// Whether every value is finite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    if tensor.numel() == 0 {
        return Ok(true);
    }
    // A NaN anywhere is both; nothing is copied.
    let (least, most) = tensor.f_reshape(-1)?.f_aminmax(0, false)?;
    Ok(number(&least)?.is_finite() && number(&most)?.is_finite())
}

/// A single number.
pub(crate) fn number(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_double_value(&[])?)
}

/// Loads the CUDA half of libtorch, once; `Err` says why it is not there.
///
/// The program is linked against the CPU half alone, so that one binary serves both.
pub(crate) fn load_cuda() -> &'static Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(|| {
        // SAFETY: this runs libtorch's own initialisers, as linking against it would; the library
        // is never unloaded, so nothing it registers can dangle.
        match unsafe { libloading::Library::new("libtorch_cuda.so") } {
            Ok(library) => {
                std::mem::forget(library);
                Ok(())
            }
            Err(error) => Err(format!(
                "libtorch's CUDA part could not be loaded ({}); build against one that has it: \
                 PyTorch 2.11.0 with CUDA installed, then `cargo xtask setup`",
                error.source().map_or_else(|| error.to_string(), ToString::to_string)
            )),
        }
    })
}
