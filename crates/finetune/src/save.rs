//! What training leaves on disk: PEFT adapters and whole checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use checkpoint::{
    Adapter, AdapterConfig, AdapterPair, Checkpoint, CheckpointWriter, LayerTensor, Staging,
    TensorSpec, copy_companions, write_adapter,
};
use tch::Kind;

use crate::bridge::{bytes, matrix};
use crate::{FinetuneError, Model, Result};

/// The model's adapters as PEFT has them; `base` names the model they belong on.
///
/// # Errors
///
/// If the model has none.
pub fn trained_adapter(model: &Model, base: &str) -> Result<Adapter> {
    let (mut pairs, mut shape) = (BTreeMap::new(), None);
    for (number, layer) in model.layers.iter().enumerate() {
        for (&module, linear) in &layer.linears {
            if let Some(lora) = &linear.lora {
                let pair = AdapterPair { a: matrix(&lora.a.value)?, b: matrix(&lora.b.value)? };
                shape = Some((pair.a.nrows(), lora.scale * pair.a.nrows() as f64));
                pairs.insert((number, module), pair);
            }
        }
    }
    let Some(shape) = shape else {
        return Err(FinetuneError::Settings("the model has no adapters to save".into()));
    };
    let modules: BTreeSet<_> = pairs.keys().map(|&(_, module)| module).collect();
    let layers: BTreeSet<_> = pairs.keys().map(|&(layer, _)| layer).collect();
    let config = AdapterConfig::lora(base, shape, &modules, &layers, model.config().num_layers);
    Ok(Adapter { config, pairs })
}

/// Writes the model's adapters as a PEFT folder, with the tokenizer beside them.
///
/// # Errors
///
/// If the model has none, `target` exists, or the disk refuses.
pub fn save_adapter(model: &Model, base: &str, target: &Path) -> Result<()> {
    let adapter = trained_adapter(model, base)?;
    let staging = Staging::folder(target)?;
    write_adapter(staging.path(), &adapter)?;
    Ok(staging.commit()?)
}

/// Writes the model as a checkpoint like the one it was loaded from: trained weights in its stored
/// types, adapters merged into theirs and rounded once, all else byte for byte.
///
/// # Errors
///
/// If `target` exists or the disk refuses.
pub fn save_checkpoint(model: &Model, target: &Path, shard_bytes: u64) -> Result<()> {
    let source = Checkpoint::open(model.folder())?;
    let staging = Staging::folder(target)?;
    copy_companions(source.folder(), staging.path())?;
    let config = fs_err::read(source.folder().join("config.json"))
        .map_err(checkpoint::CheckpointError::from)?;
    fs_err::write(staging.path().join("config.json"), config)
        .map_err(checkpoint::CheckpointError::from)?;
    let trained: BTreeMap<String, _> =
        model.named_weights().into_iter().filter(|(_, weight)| weight.trains()).collect();
    let views: Vec<_> = source.weights().iter().collect();
    let specs = views.iter().map(|view| TensorSpec::like(view, view.name())).collect();
    let writer = CheckpointWriter::create(staging.path(), specs, shard_bytes)?;
    for view in &views {
        let name = view.name();
        let lora = LayerTensor::parse(name).and_then(|tensor| {
            model.layers.get(tensor.layer)?.linears.get(&tensor.module()?)?.lora.as_ref()
        });
        if let Some(lora) = lora {
            let wide = crate::bridge::load(view, model.device, Kind::Float)?;
            let merged = wide.tensor.f_add(&lora.delta()?)?;
            writer.write(name, &bytes(&merged, view.dtype()?)?)?;
        } else if let Some(weight) = trained.get(name) {
            writer.write(name, &bytes(&weight.value, view.dtype()?)?)?;
        } else {
            writer.copy(name, view)?;
        }
    }
    writer.finish()?;
    Ok(staging.commit()?)
}
