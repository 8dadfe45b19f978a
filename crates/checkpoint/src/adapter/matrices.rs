//! `adapter_model.safetensors`: the matrices of each weight, and DoRA's magnitudes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use ndarray::{Array1, Array2, ArrayViewD};

use super::{AdapterConfig, AdapterPair};
use crate::names::{ModuleName, pair_names, parse_magnitude_name};
use crate::writer::start;
use crate::{CheckpointError, Dtype, Module, Result, TensorSpec, Weights, narrow};

type Pairs = BTreeMap<(usize, Module), AdapterPair>;

/// The matrices in a file, which must be those that the configuration names.
pub(super) fn read(path: &Path, config: &AdapterConfig) -> Result<Pairs> {
    let fail = |what: String| CheckpointError::adapter(path, what);
    let weights = Weights::open_file(path)?;
    let mut magnitudes: BTreeMap<(usize, ModuleName), &str> = BTreeMap::new();
    let mut matrices = Vec::new();
    for name in weights.iter().map(|view| view.name()) {
        match parse_magnitude_name(name).filter(|_| config.use_dora) {
            None => matrices.push(name),
            Some(place) => {
                if let Some(other) = magnitudes.insert(place, name) {
                    let what = format!("`{other}` and `{name}` are two spellings of one vector");
                    return Err(fail(what));
                }
            }
        }
    }
    let names = pair_names(matrices.into_iter()).map_err(fail)?;
    if let Some(((layer, name), _)) =
        magnitudes.iter().find(|(place, _)| !names.contains_key(place))
    {
        return Err(fail(format!("layer {layer} {name} has a lora_magnitude_vector alone")));
    }
    let of_shape = |name: &str, dimensions: usize| {
        weights.get(name).filter(|view| view.shape().len() == dimensions)
    };
    let matrix = |name: &str| -> Result<Array2<f32>> {
        let view = of_shape(name, 2);
        let Some((view, &[rows, columns])) = view.map(|view| (view, view.shape())) else {
            return Err(fail(format!("`{name}` is not a matrix")));
        };
        Array2::from_shape_vec((rows, columns), view.to_f32()?)
            .map_err(|_| fail(format!("`{name}` has another size than its shape")))
    };
    let vector = |name: &str, length: usize| -> Result<Array1<f32>> {
        match of_shape(name, 1).filter(|view| view.shape() == [length]) {
            Some(view) => Ok(view.to_f32()?.into()),
            None => Err(fail(format!("`{name}` is not a vector of {length}"))),
        }
    };
    let mut pairs = BTreeMap::new();
    for (place, (a, b)) in &names {
        let (layer, name) = place;
        let module = name.known().ok_or_else(|| {
            fail(format!(
                "layer {layer} {name} is no linear weight of the families that are trained"
            ))
        })?;
        config.require_named(*layer, module).map_err(fail)?;
        let (a, b, rank) = (matrix(a)?, matrix(b)?, config.rank(*layer, module));
        if (a.nrows(), b.ncols()) != (rank, rank) {
            return Err(fail(format!("layer {layer} {module} is not of rank {rank}")));
        }
        let magnitude = match magnitudes.get(place) {
            Some(name) => Some(vector(name, b.nrows())?),
            None if config.use_dora => {
                return Err(fail(format!("layer {layer} {module} has no lora_magnitude_vector")));
            }
            None => None,
        };
        pairs.insert((*layer, module), AdapterPair { a, b, magnitude });
    }
    Ok(pairs)
}

/// Writes the file, in F32.
pub(super) fn write(path: &Path, pairs: &Pairs) -> Result<()> {
    let mut tensors: Vec<(String, ArrayViewD<'_, f32>)> = Vec::new();
    for ((layer, module), AdapterPair { a, b, magnitude }) in pairs {
        let name = |part: &str| format!("base_model.model.model.layers.{layer}.{module}.{part}");
        tensors.push((name("lora_A.weight"), a.view().into_dyn()));
        tensors.push((name("lora_B.weight"), b.view().into_dyn()));
        if let Some(vector) = magnitude {
            tensors.push((name("lora_magnitude_vector"), vector.view().into_dyn()));
        }
    }
    let specs: Vec<_> =
        tensors.iter().map(|(name, of)| TensorSpec::new(name, Dtype::F32, of.shape())).collect();
    let mut out = start(path, &specs)?;
    for (_, tensor) in &tensors {
        let values: Vec<f32> = tensor.iter().copied().collect();
        out.write_all(&narrow(&values, Dtype::F32))?;
    }
    out.flush()?;
    Ok(())
}
