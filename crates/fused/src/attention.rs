//! Causal attention within each of some spans that lie end to end, and its gradient.

use tch::{Device, Kind, Tensor};

use crate::ffi::{self, Shape};
use crate::{FusedError, Result};

/// Which of libtorch's kernels attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// `FlashAttention` 2 (Dao, arXiv 2307.08691): numbers of two bytes, on GPUs of compute capability 8.0 or more, heads of up to 192.
    Flash,
    /// Memory-efficient attention, CUTLASS's: f32 and f16, on GPUs of compute capability 8.0 or more bf16, too.
    Efficient,
}

impl Kernel {
    /// The kernel for heads of this width on a GPU, by what libtorch itself would take; `None` if neither can.
    ///
    /// # Errors
    ///
    /// If libtorch refuses.
    pub fn of(head_dim: i64, kind: Kind, device: Device) -> Result<Option<Self>> {
        // Both need widths divisible by 8; only libtorch's own wrapper pads.
        if !device.is_cuda() || head_dim % 8 != 0 {
            return Ok(None);
        }
        let heads = Tensor::f_zeros([1, 1, 8, head_dim], (kind, device))?;
        let no_mask: Option<&Tensor> = None;
        let (none, scale) = (0.0, None::<f64>);
        let choice = Tensor::f_internal_fused_sdp_choice(
            &heads, &heads, &heads, no_mask, none, true, scale, false,
        )?;
        Ok(match choice {
            // Some GPUs lack the gradient of wider heads.
            FLASH | CUDNN if kind != Kind::Float && head_dim <= 192 => Some(Self::Flash),
            FLASH | CUDNN | EFFICIENT => Some(Self::Efficient),
            _ => None,
        })
    }

    /// Whether it computes these spans correctly, gradients included. Those of memory-efficient attention with a window that a
    /// span outgrows are wrong unless each of its keys has a query.
    pub fn attends(self, spans: &[Span], window: Option<usize>) -> bool {
        let window = window.unwrap_or(usize::MAX);
        self == Self::Flash
            || spans.iter().all(Span::is_row)
            || spans.iter().all(|span| span.keys <= window)
    }
}

/// As in `ATen`'s `SDPBackend`.
const FLASH: i64 = 1;
const EFFICIENT: i64 = 2;
const CUDNN: i64 = 3;

/// Queries side by side, and the keys that they see: the last query stands at the last key, the one before it at the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// How many queries it has, at most as many as keys.
    pub queries: usize,
    /// How many keys.
    pub keys: usize,
}

impl Span {
    /// A row that attends to itself.
    pub fn row(length: usize) -> Self {
        Self { queries: length, keys: length }
    }

    fn is_row(&self) -> bool {
        self.queries == self.keys
    }
}

/// How spans end to end attend: each query to the keys of its span before the one that it stands at, and to that one.
#[derive(Debug)]
pub struct PackedAttention {
    kernel: Kernel,
    /// Where each span's queries begin and the last one's end, `[spans + 1]`, i32; the same of keys.
    queries: Tensor,
    keys: Tensor,
    /// The most of a span.
    most_queries: i64,
    most_keys: i64,
    /// All spans together: the kernels do not look whether tensors have as many.
    num_queries: i64,
    num_keys: i64,
    scale: f64,
    window: Option<i64>,
    /// `ATen`'s `CustomMaskType`.
    mask: i64,
}

/// An output of attention, and what its gradient wants.
#[derive(Debug)]
pub struct Attended {
    /// `[n, heads, head_dim]`.
    pub output: Tensor,
    /// The logarithms of what probabilities are divided by, and the state of a random generator that nobody asked for.
    rest: [Tensor; 3],
}

impl PackedAttention {
    /// For these spans, on a GPU. Products of queries and keys are multiplied by `scale`; with a window, a query sees
    /// the last so many of its keys.
    ///
    /// # Errors
    ///
    /// [`FusedError::Spans`] if a span has more queries than keys, or there are too many; if libtorch refuses, a lack of memory
    /// included.
    pub fn new(
        kernel: Kernel,
        spans: &[Span],
        scale: f64,
        window: Option<usize>,
        device: Device,
    ) -> Result<Self> {
        if let Some(span) = spans.iter().find(|span| span.queries > span.keys) {
            return Err(FusedError::Spans(format!("{span:?} has more queries than keys")));
        }
        let starts = |of: fn(&Span) -> usize| -> Result<(Tensor, i64, i64)> {
            let (mut starts, mut end) = (vec![0_i32], 0_usize);
            for span in spans {
                end = end.saturating_add(of(span));
                let as_stored = i32::try_from(end);
                starts.push(as_stored.map_err(|_| FusedError::Spans(format!("{end} tokens")))?);
            }
            let most = spans.iter().map(of).max().unwrap_or(0) as i64;
            Ok((Tensor::f_from_slice(&starts)?.f_to_device(device)?, most, end as i64))
        };
        let (queries, most_queries, num_queries) = starts(|span| span.queries)?;
        let (keys, most_keys, num_keys) = starts(|span| span.keys)?;
        // A window that no span outgrows is none.
        let window = window.map(|window| window as i64).filter(|&window| window < most_keys);
        let mask = if spans.iter().all(Span::is_row) { FROM_TOP_LEFT } else { FROM_BOTTOM_RIGHT };
        Ok(Self {
            kernel,
            queries,
            keys,
            most_queries,
            most_keys,
            num_queries,
            num_keys,
            scale,
            window,
            mask,
        })
    }

    /// Attends: queries `[n, heads, head_dim]`, keys and values `[m, kv_heads, head_dim]`, each key-value head serving
    /// `heads / kv_heads` query heads.
    ///
    /// # Errors
    ///
    /// [`FusedError::Spans`] if tensors have other numbers of queries or keys than the spans; if the kernel refuses: another type
    /// or device.
    pub fn forward(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Attended> {
        self.require([queries, keys, values])?;
        let heads = [queries, keys, values];
        let ([output, first, second, third], batched) = match self.kernel {
            Kernel::Flash => (ffi::flash(heads, &self.shape())?, false),
            Kernel::Efficient => {
                let heads = Self::wide(heads)?;
                (ffi::efficient(heads.each_ref(), &self.shape())?, true)
            }
        };
        let output = if batched { output.f_squeeze_dim(0)? } else { output };
        Ok(Attended { output, rest: [first, second, third] })
    }

    /// The gradients of queries, keys and values from that of the output, `[n, heads, head_dim]`.
    ///
    /// # Errors
    ///
    /// As [`PackedAttention::forward`].
    pub fn backward(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        attended: &Attended,
        gradient: &Tensor,
    ) -> Result<[Tensor; 3]> {
        self.require([queries, keys, values])?;
        self.require([gradient, keys, values])?;
        let Attended { output, rest: [sums, seed, offset] } = attended;
        let (of_queries, of_keys) = (&self.queries, &self.keys);
        let (most_queries, most_keys) = (self.most_queries, self.most_keys);
        if self.kernel == Kernel::Flash {
            let (left, right) = match self.window {
                Some(window) => (window - 1, 0),
                None => (-1, -1),
            };
            let (queries, keys, values) = Tensor::f_internal_flash_attention_backward(
                gradient,
                queries,
                keys,
                values,
                output,
                sums,
                of_queries,
                of_keys,
                most_queries,
                most_keys,
                0.0,
                true,
                seed,
                offset,
                self.scale,
                left,
                right,
            )?;
            return Ok([queries, keys, values]);
        }
        let (_, kv_heads, _) = keys.size3()?;
        let [queries, keys, values] = Self::wide([queries, keys, values])?;
        let (queries, keys, values, _) = Tensor::f_internal_efficient_attention_backward(
            &gradient.f_unsqueeze(0)?,
            &queries,
            &keys,
            &values,
            None::<&Tensor>,
            &output.f_unsqueeze(0)?,
            Some(of_queries),
            Some(of_keys),
            most_queries,
            most_keys,
            sums,
            0.0,
            seed,
            offset,
            self.mask,
            false,
            self.scale,
            None::<i64>,
            self.window,
            false,
        )?;
        let narrow = |x: Tensor| -> Result<Tensor> {
            let x = x.f_squeeze_dim(0)?;
            let (tokens, heads, width) = x.size3()?;
            if heads == kv_heads {
                return Ok(x);
            }
            let shared = x.f_view([tokens, kv_heads, heads / kv_heads, width])?;
            Ok(shared.f_sum_dim_intlist(2_i64, false, x.f_kind()?)?)
        };
        Ok([queries.f_squeeze_dim(0)?, narrow(keys)?, narrow(values)?])
    }

    /// Refuses tensors of which the kernels would read what is not there.
    fn require(&self, tensors: [&Tensor; 3]) -> Result<()> {
        let wanted = [self.num_queries, self.num_keys, self.num_keys];
        for (tensor, wanted) in tensors.into_iter().zip(wanted) {
            let (found, ..) = tensor.size3()?;
            if found != wanted {
                return Err(FusedError::Spans(format!(
                    "of {wanted} tokens, and {found} are given"
                )));
            }
        }
        Ok(())
    }

    fn shape(&self) -> Shape<'_> {
        let &Self { ref queries, ref keys, most_queries, most_keys, scale, window, mask, .. } =
            self;
        Shape { queries, keys, most_queries, most_keys, scale, window, mask }
    }

    /// As many heads of keys and values as of queries, `[1, …, heads, head_dim]` each.
    fn wide([queries, keys, values]: [&Tensor; 3]) -> Result<[Tensor; 3]> {
        let (_, heads, width) = queries.size3()?;
        let (tokens, kv_heads, _) = keys.size3()?;
        let wide = |x: &Tensor| -> Result<Tensor> {
            if heads == kv_heads {
                return Ok(x.f_unsqueeze(0)?);
            }
            let times = [tokens, kv_heads, heads / kv_heads, width];
            let repeated = x.f_unsqueeze(2)?.f_expand(times, false)?;
            Ok(repeated.f_reshape([1, tokens, heads, width])?)
        };
        Ok([queries.f_unsqueeze(0)?, wide(keys)?, wide(values)?])
    }
}

/// As in `ATen`'s `CustomMaskType`: at which corner of queries and keys the diagonal begins.
const FROM_TOP_LEFT: i64 = 1;
const FROM_BOTTOM_RIGHT: i64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_tensors_fit() {
        let new =
            |spans: &[Span]| PackedAttention::new(Kernel::Flash, spans, 1.0, None, Device::Cpu);
        let refused = |error: FusedError| matches!(error, FusedError::Spans(_));
        assert!(new(&[Span { queries: 3, keys: 2 }]).is_err_and(refused));
        assert!(new(&[Span::row(1 << 30), Span::row(1 << 30)]).is_err_and(refused));
        let heads = |tokens: i64| Tensor::zeros([tokens, 2, 8], (Kind::Float, Device::Cpu));
        let attention = new(&[Span::row(2), Span { queries: 1, keys: 4 }]).unwrap();
        for (queries, keys) in [(4, 6), (3, 5), (3, 7)] {
            let (queries, keys) = (heads(queries), heads(keys));
            assert!(attention.forward(&queries, &keys, &keys).is_err_and(refused));
        }
        assert!(!refused(attention.forward(&heads(3), &heads(6), &heads(6)).unwrap_err()));
    }

    #[test]
    fn windows_are_left_to_who_has_their_gradients() {
        let rows = [Span::row(3), Span::row(9)];
        let branches = [Span::row(3), Span { queries: 1, keys: 9 }];
        let attends = |kernel: Kernel| {
            let cases = [(&rows, Some(4)), (&branches, None), (&branches, Some(9))];
            assert!(cases.into_iter().all(|(spans, window)| kernel.attends(spans, window)));
            kernel.attends(&branches, Some(8))
        };
        assert_eq!([Kernel::Flash, Kernel::Efficient].map(attends), [true, false]);
    }
}
