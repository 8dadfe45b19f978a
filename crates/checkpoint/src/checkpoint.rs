//! A folder in Hugging Face layout.

use std::path::{Path, PathBuf};

use crate::json::read_json;
use crate::unused::{require_floats, require_used};
use crate::{
    CheckpointError, LayerTensor, ModelConfig, ModuleName, Outline, Result, TensorView, Weights,
};

/// A folder in Hugging Face layout: its configuration and its mapped weights, checked against
/// each other.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    folder: PathBuf,
    outline: Outline,
    /// `None` for a model that the engine does not train.
    config: Option<ModelConfig>,
    weights: Weights,
}

/// A linear weight of a layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearView<'a> {
    /// The tensor.
    pub view: TensorView<'a>,
    /// `(out, in)`.
    pub shape: (usize, usize),
    /// Whether it is stored as `[in, out]`.
    pub is_transposed: bool,
}

impl Checkpoint {
    /// Opens a model folder.
    ///
    /// Of a family that the engine trains, every tensor that the configuration implies must be there, in its shape, as
    /// floats, and no other that would matter. Of any other decoder, as many numbered layers as the configuration counts.
    ///
    /// # Errors
    ///
    /// Whatever [`ModelConfig::read`], [`Outline::new`] and [`Weights::open`] refuse; a missing tensor; a shape or
    /// type that contradicts the configuration; a tensor that the model does not use; weights that
    /// are quantised.
    pub fn open(folder: &Path) -> Result<Self> {
        let folder = folder.to_owned();
        match ModelConfig::read(&folder) {
            Ok(config) => {
                let weights = Weights::open(&folder)?;
                require_tensors(&folder, &config, &weights)?;
                let outline = Outline::of(&config, &folder.join("config.json"));
                Ok(Self { folder, outline, config: Some(config), weights })
            }
            Err(CheckpointError::Untrained { .. }) => {
                let path = folder.join("config.json");
                let weights = Weights::open(&folder)?;
                require_floats(&weights)?;
                let names = weights.iter().map(|view| view.name());
                let outline = Outline::new(read_json(&path)?, &path, names)?;
                Ok(Self { folder, outline, config: None, weights })
            }
            Err(error) => Err(error),
        }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its layers are.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// How many layers it has.
    pub fn num_layers(&self) -> usize {
        self.outline.num_layers()
    }

    /// What it is made of.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Untrained`] if the engine does not train it, with the reason.
    pub fn config(&self) -> Result<&ModelConfig> {
        match &self.config {
            Some(config) => Ok(config),
            None => Err(match ModelConfig::read(&self.folder) {
                Err(reason) => reason,
                Ok(_) => CheckpointError::Changed { path: self.folder.join("config.json") },
            }),
        }
    }

    /// What it is made of, if the engine trains it.
    pub fn trained_config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Its tensors.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// A tensor that [`Checkpoint::open`] has found.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::MissingTensor`] for any other name.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.weights.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.folder.clone(),
            name: name.to_owned(),
        })
    }

    /// A linear weight of a layer.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::MissingTensor`] if the layer has no matrix of this name.
    pub fn linear(&self, layer: usize, module: &ModuleName) -> Result<LinearView<'_>> {
        let name = format!("{}.{layer}.{module}.weight", self.outline.container());
        let view = self.tensor(&name)?;
        self.linear_of(view).ok_or_else(|| {
            let path = self.folder.clone();
            CheckpointError::MissingTensor { path, name }
        })
    }

    /// The layer's linear weights, in the order of their names.
    pub fn linears(&self) -> impl Iterator<Item = (usize, ModuleName, LinearView<'_>)> {
        let mut found: Vec<_> = self
            .weights
            .iter()
            .filter_map(|view| {
                let LayerTensor { layer, rest } = self.outline.layer_tensor(view.name())?;
                let module = rest.strip_suffix(".weight")?.into();
                (layer < self.num_layers()).then_some((layer, module, self.linear_of(view)?))
            })
            .collect();
        found.sort_by(|(layer, module, _), (other, of, _)| (layer, module).cmp(&(other, of)));
        found.into_iter()
    }

    fn linear_of<'a>(&self, view: TensorView<'a>) -> Option<LinearView<'a>> {
        let &[rows, columns] = view.shape() else { return None };
        let is_transposed = self.outline.stores_transposed();
        let shape = if is_transposed { (columns, rows) } else { (rows, columns) };
        Some(LinearView { view, shape, is_transposed })
    }
}

/// Refuses weights that are not those of a configuration.
fn require_tensors(folder: &Path, config: &ModelConfig, weights: &Weights) -> Result<()> {
    let tensors = config.tensors();
    require_used(config, weights, &tensors)?;
    for (name, expected) in tensors {
        let Some(view) = weights.get(&name) else {
            return Err(CheckpointError::MissingTensor { path: folder.to_owned(), name });
        };
        view.dtype()?;
        if view.shape() != expected {
            let (path, found) = (view.path().to_owned(), view.shape().to_vec());
            return Err(CheckpointError::Shape { path, name, found, expected });
        }
    }
    Ok(())
}
