//! What libtorch has for GPUs and tch leaves out: attention of rows packed end to end ([`PackedAttention`]), the gradient of
//! RMS norm ([`rms_norm_backward`]), and memory that a GPU reads by itself ([`pin_memory`]).
//!
//! All of it but [`rms_norm`] is in libtorch's CUDA part alone, which the program has to load; without it, or on a CPU, it fails
//! with an error.

mod attention;
mod ffi;
mod norm;

use tch::Tensor;

pub use attention::{Attended, Kernel, PackedAttention, Span};
pub use norm::{rms_norm, rms_norm_backward};

/// A copy of a tensor in the computer's memory, which a GPU reads while the program goes on.
///
/// # Errors
///
/// If memory is short, or there is no GPU.
pub fn pin_memory(x: &Tensor) -> Result<Tensor> {
    ffi::pin_memory(x)
}

/// What every function here returns.
pub type Result<T, E = FusedError> = std::result::Result<T, E>;

/// Why a kernel did not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum FusedError {
    #[error("a kernel of the GPU: {0}")]
    Refused(String),
    #[error("the spans of attention do not fit: {0}")]
    Spans(String),
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// On a CPU there is no kernel, and whoever asks one anyway is told so.
    #[test]
    fn without_a_gpu_there_is_an_error() {
        let device = Device::Cpu;
        assert_eq!(Kernel::of(64, Kind::Float, device).unwrap(), None);
        let spans = [2, 3].map(Span::row);
        let heads = Tensor::ones([5, 2, 8], (Kind::Float, device));
        for kernel in [Kernel::Flash, Kernel::Efficient] {
            let attention = PackedAttention::new(kernel, &spans, 0.5, None, device).unwrap();
            let error = attention.forward(&heads, &heads, &heads).unwrap_err().to_string();
            assert!(error.starts_with("a kernel of the GPU: Could not run 'aten::_"), "{error}");
        }
        let [x, weight] =
            [[5, 8].as_slice(), &[8]].map(|size| Tensor::ones(size, (Kind::Float, device)));
        let (_, scale) = rms_norm(&x, &weight, 1e-5).unwrap();
        let error = rms_norm_backward(&x, &x, &scale, &weight).unwrap_err();
        assert!(matches!(error, FusedError::Refused(_)), "{error}");
        assert!(pin_memory(&x).is_err());
    }
}
