//! What bitsandbytes stores of a weight in four bits, and the values that it stands for.
//!
//! `X.weight` holds two elements a byte, the first in its high half. `X.weight.quant_map` has the 16 values, `X.weight.absmax` a
//! scale for each block of elements, and `X.weight.quant_state.bitsandbytes__nf4` JSON with the sizes. With double
//! quantisation a scale is a byte: `nested_quant_map[byte] · nested_absmax[its block] + nested_offset`.

use serde::Deserialize;

use crate::nf4::{Pairs, pairs, widen_block};
use crate::{CheckpointError, Dtype, Result, TensorView, Weights, narrow, widen};

/// What stands between a weight's name and its type in the name of its settings.
pub(super) const STATE: &str = ".quant_state.bitsandbytes__";

/// What stands beside a weight, but for its settings.
pub(super) const PARTS: [&str; 4] = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];

/// Elements that are widened at a time: whole blocks.
const RUN: usize = 1 << 20;

/// The sizes of blocks that bitsandbytes has.
const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

#[derive(Deserialize)]
struct Settings {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// A weight in four bits, with its scales.
pub(super) struct FourBits<'a> {
    /// The type it had before.
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    elements: usize,
    codes: &'a [u8],
    pairs: Pairs,
    scales: Vec<f32>,
    block: usize,
}

impl<'a> FourBits<'a> {
    /// Finds the parts of the weight `name`, which the tensor `state` describes, and checks that they fit each other.
    ///
    /// # Errors
    ///
    /// One that names the file and the weight.
    pub(super) fn open(weights: &'a Weights, name: &str, state: &TensorView<'_>) -> Result<Self> {
        let parts = Parts { weights, name, state };
        let settings = parts.settings()?;
        let Some(dtype) = Dtype::from_torch_name(&settings.dtype) else {
            return parts.fail(format!("it was in `{}`; a float type is expected", settings.dtype));
        };
        let block = parts.block(settings.blocksize)?;
        let Some(codes) = weights.get(name).map(|view| view.bytes()) else {
            return parts.fail("only what belongs to it is there");
        };
        let shape = &settings.shape;
        let elements = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
        let Some(elements) = elements.filter(|count| count.div_ceil(2) == codes.len()) else {
            return parts.fail(format!("its {} bytes do not make {shape:?}", codes.len()));
        };
        let map = parts.floats("quant_map", 16)?;
        let scales = parts.scales(elements.div_ceil(block), &settings)?;
        let largest = widen(&narrow(&[most(&map) * most(&scales)], dtype), dtype);
        if largest.iter().any(|value| !value.is_finite()) {
            return parts.fail(format!("its scales are too large for {dtype:?}"));
        }
        let Some(&map) = map.as_array() else { return parts.fail("`quant_map` has not 16 values") };
        let (shape, pairs) = (settings.shape, pairs(map));
        Ok(Self { dtype, shape, elements, codes, pairs, scales, block })
    }

    /// Calls `observe` with the values in order, some at a time, and the number of the first of them.
    ///
    /// # Errors
    ///
    /// Whatever `observe` refuses.
    pub(super) fn for_each_run(
        &self,
        observe: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut values = vec![0.0; RUN.min(2 * self.codes.len())];
        for (run, codes) in self.codes.chunks(RUN / 2).enumerate() {
            let first = run * RUN;
            let scales = self.scales.iter().skip(first / self.block);
            let blocks = codes.chunks(self.block / 2).zip(scales);
            for (out, (codes, &scale)) in values.chunks_mut(self.block).zip(blocks) {
                widen_block(&self.pairs, codes, scale, out);
            }
            // Of the last byte, the second half may be nothing.
            let count = (2 * codes.len()).min(self.elements - first);
            observe(first, &values[..count])?;
        }
        Ok(())
    }
}

/// What stands beside a weight.
struct Parts<'a> {
    weights: &'a Weights,
    name: &'a str,
    state: &'a TensorView<'a>,
}

impl Parts<'_> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(error(self.state, self.name, what))
    }

    fn settings(&self) -> Result<Settings> {
        let settings: Settings = serde_json::from_slice(self.state.bytes()).map_err(|source| {
            let (path, name) = (self.state.path().to_owned(), self.state.name().to_owned());
            CheckpointError::QuantState { path, name, source }
        })?;
        match settings.quant_type.as_str() {
            "nf4" | "fp4" => Ok(settings),
            other => self.fail(format!("it is in `{other}`; nf4 and fp4 are understood")),
        }
    }

    fn block(&self, size: usize) -> Result<usize> {
        match BLOCKS.contains(&size) {
            true => Ok(size),
            false => self.fail(format!("its blocks are of {size}; bitsandbytes has {BLOCKS:?}")),
        }
    }

    fn view(&self, part: &str) -> Option<TensorView<'_>> {
        self.weights.get(&format!("{}.{part}", self.name))
    }

    /// A part's bytes, if it is `count` elements of `dtype`.
    fn bytes(&self, part: &str, dtype: safetensors::Dtype, count: usize) -> Result<&[u8]> {
        let Some(view) = self.view(part) else {
            return self.fail(format!("`{part}` is missing"));
        };
        let (found, shape) = (view.stored_dtype(), view.shape());
        if found != dtype || shape.iter().product::<usize>() != count {
            return self.fail(format!(
                "`{part}` is {found:?} {shape:?}; {count} of {dtype:?} are expected"
            ));
        }
        Ok(view.bytes())
    }

    fn floats(&self, part: &str, count: usize) -> Result<Vec<f32>> {
        let values = widen(self.bytes(part, safetensors::Dtype::F32, count)?, Dtype::F32);
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values),
            Some(bad) => self.fail(format!("`{part}` holds {bad}")),
        }
    }

    /// The scale of each block, as bitsandbytes computes it.
    fn scales(&self, count: usize, settings: &Settings) -> Result<Vec<f32>> {
        let is_byte = |view: TensorView<'_>| view.stored_dtype() == safetensors::Dtype::U8;
        if self.view("nested_absmax").is_none() && !self.view("absmax").is_some_and(is_byte) {
            return self.floats("absmax", count);
        }
        let (Some(block), Some(offset)) = (settings.nested_blocksize, settings.nested_offset)
        else {
            return self.fail("its quant state lacks `nested_blocksize` or `nested_offset`");
        };
        if let Some(other) = settings.nested_dtype.as_deref().filter(|&name| name != "float32") {
            return self.fail(format!("its scales are of `{other}`; float32 is understood"));
        }
        let (block, offset) = (self.block(block)?, offset as f32);
        let bytes = self.bytes("absmax", safetensors::Dtype::U8, count)?;
        let map = self.floats("nested_quant_map", 256)?;
        let outer = self.floats("nested_absmax", count.div_ceil(block))?;
        let blocks = bytes.chunks(block).zip(outer);
        let scales: Vec<f32> = blocks
            .flat_map(|(bytes, outer)| bytes.iter().map(move |&byte| (byte, outer)))
            .map(|(byte, outer)| map[usize::from(byte)] * outer + offset)
            .collect();
        match scales.iter().find(|scale| !scale.is_finite()) {
            None => Ok(scales),
            Some(bad) => self.fail(format!("its scales make {bad}")),
        }
    }
}

fn most(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// Why a weight cannot be widened; `view` is in the file that says so.
pub(super) fn error(view: &TensorView<'_>, name: &str, what: impl Into<String>) -> CheckpointError {
    let (path, name) = (view.path().to_owned(), name.to_owned());
    CheckpointError::FourBits { path, name, what: what.into() }
}
