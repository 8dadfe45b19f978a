//! What training leaves on disk: PEFT adapters and whole checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use checkpoint::{
    Adapter, AdapterConfig, AdapterPair, Checkpoint, CheckpointWriter, Dtype, LayerTensor, Staging,
    TensorSpec, copy_companions, write_adapter,
};
use tch::{Kind, Tensor};

use crate::bridge::{bytes, is_finite, kind, matrix, values};
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
                let magnitude = match &lora.magnitude {
                    Some(magnitude) => Some(values(&magnitude.value.value)?.into()),
                    None => None,
                };
                let (a, b) = (matrix(&lora.a.value)?, matrix(&lora.b.value)?);
                let pair = AdapterPair { a, b, magnitude };
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
    let mut config = AdapterConfig::lora(base, shape, &modules, &layers, model.config().num_layers);
    config.use_dora = pairs.values().any(|pair| pair.magnitude.is_some());
    Ok(Adapter { config, pairs })
}

/// Writes the model's adapters as a PEFT folder, with the tokenizer beside them.
///
/// # Errors
///
/// If the model has none, `target` exists, or the disk refuses.
pub fn save_adapter(model: &Model, base: &str, target: &Path) -> Result<()> {
    require_finite(model)?;
    let adapter = trained_adapter(model, base)?;
    let staging = Staging::folder(target)?;
    write_adapter(staging.path(), &adapter)?;
    Ok(staging.commit()?)
}

/// A trained weight's bytes; rounding to a narrow type may overflow.
fn finite_bytes(name: &str, weight: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let rounded = weight.f_to_kind(kind(dtype))?;
    match is_finite(&rounded)? {
        true => bytes(&rounded, dtype),
        false => Err(FinetuneError::NotFiniteWeight { name: name.to_owned() }),
    }
}

/// What trained must be finite before anything is written.
fn require_finite(model: &Model) -> Result<()> {
    for (name, parameter) in model.trained() {
        if !is_finite(&parameter.value)? {
            return Err(FinetuneError::NotFiniteWeight { name });
        }
    }
    Ok(())
}

/// Writes the model as a checkpoint like the one it was loaded from: trained weights in its stored
/// types, adapters merged into theirs and rounded once, all else byte for byte.
///
/// # Errors
///
/// If `target` exists or the disk refuses.
pub fn save_checkpoint(model: &Model, target: &Path, shard_bytes: u64) -> Result<()> {
    require_finite(model)?;
    let source = Checkpoint::open(model.folder())?;
    let staging = Staging::folder(target)?;
    copy_companions(source.folder(), staging.path())?;
    let config = fs_err::read(source.folder().join("config.json"))
        .map_err(checkpoint::CheckpointError::from)?;
    fs_err::write(staging.path().join("config.json"), config)
        .map_err(checkpoint::CheckpointError::from)?;
    let trained: BTreeMap<String, _> =
        model.named_weights().into_iter().filter(|(_, weight)| weight.trains()).collect();
    let tied = model.config().tied_head;
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
            let wide = wide.tensor.f_to_kind(Kind::Float)?;
            let merged = lora.merged(&wide)?;
            writer.write(name, &finite_bytes(name, &merged, view.dtype()?)?)?;
        } else if let Some(weight) = trained.get(embedded(name, tied)) {
            writer.write(name, &finite_bytes(name, &weight.value, view.dtype()?)?)?;
        } else {
            writer.copy(name, view)?;
        }
    }
    writer.finish()?;
    Ok(staging.commit()?)
}

/// The weight of which a stored tensor is one: some checkpoints store a head that is the embedding beside it.
fn embedded(name: &str, tied: bool) -> &str {
    if tied && name == "lm_head.weight" { "model.embed_tokens.weight" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tests::{golden_model, lora};
    use crate::{Method, decoder::Trainable};

    /// Layers trained in full and adapters merged into the others: the checkpoint computes what the model did.
    #[test]
    fn layers_in_full_and_adapters_are_one_checkpoint() {
        let settings = crate::train::tests::settings(crate::train::tests::lora_and_layers());
        let data = crate::train::tests::rows("tiny_llama");
        let mut trainer = crate::Trainer::new(golden_model("tiny_llama"), settings, data).unwrap();
        trainer.run(None, None, &mut |_| {}).unwrap();
        let (folder, tuned) = (testkit::temporary_folder(), trainer.into_model());
        let target = folder.path().join("tuned");
        save_checkpoint(&tuned, &target, 1 << 30).unwrap();
        let device = crate::DeviceChoice::Cpu;
        let written = Model::load(&target, device, crate::ComputeType::F32).unwrap();
        let logits = |model: &Model| model.all_logits(&[&[1, 5, 9, 3]]).unwrap();
        let (found, expected) = (logits(&written), logits(&tuned));
        let moved = testkit::relative_deviation(&logits(&golden_model("tiny_llama")), &expected);
        let apart = testkit::relative_deviation(&found, &expected);
        // Merged into a stored type once: far less than training moved them.
        assert!(apart < 1e-5 && moved > 1e-3, "{apart}, {moved}");
    }

    /// A head that is the embedding, and is stored beside it, is written as that was trained.
    #[test]
    fn a_stored_copy_of_the_embedding_trains_with_it() {
        let folder = testkit::temporary_folder();
        let at = |name: &str| folder.path().join(name);
        let source = Checkpoint::open(&testkit::fixture("tiny_llama_tied/model")).unwrap();
        let views: Vec<_> = source.weights().iter().collect();
        let embedding = source.tensor("model.embed_tokens.weight").unwrap();
        let mut specs: Vec<_> =
            views.iter().map(|view| TensorSpec::like(view, view.name())).collect();
        specs.push(TensorSpec::like(&embedding, "lm_head.weight"));
        fs_err::create_dir(at("stored")).unwrap();
        let writer = CheckpointWriter::create(&at("stored"), specs, u64::MAX).unwrap();
        for view in &views {
            writer.copy(view.name(), view).unwrap();
        }
        writer.copy("lm_head.weight", &embedding).unwrap();
        writer.finish().unwrap();
        copy_companions(source.folder(), &at("stored")).unwrap();
        fs_err::copy(source.folder().join("config.json"), at("stored/config.json")).unwrap();
        let load = |folder: &Path| {
            Model::load(folder, crate::DeviceChoice::Cpu, crate::ComputeType::F32).unwrap()
        };
        let settings = crate::train::tests::settings(Method::Full);
        let data = crate::train::tests::rows("tiny_llama_tied");
        let mut trainer = crate::Trainer::new(load(&at("stored")), settings, data).unwrap();
        trainer.run(None, None, &mut |_| {}).unwrap();
        let tuned = trainer.into_model();
        save_checkpoint(&tuned, &at("tuned"), 1 << 30).unwrap();
        let logits = |model: &Model| model.all_logits(&[&[1, 5, 9, 3]]).unwrap();
        assert!(logits(&load(&at("tuned"))) == logits(&tuned));
        let [head, embedding] = ["lm_head.weight", "model.embed_tokens.weight"]
            .map(|name| testkit::tensor_bytes(&at("tuned/model.safetensors"), name));
        assert!(head == embedding);
    }

    #[test]
    fn what_is_not_finite_is_not_written() {
        let folder = testkit::temporary_folder();
        let target = folder.path().join("out");
        let refused = |model: &Model, adapter: bool| {
            let _guard = tch::no_grad_guard();
            let (name, parameter) = model.trained().pop().unwrap();
            let _ = parameter.value.shallow_clone().get(0).fill_(f64::NAN);
            let found = match adapter {
                true => save_adapter(model, "base", &target),
                false => save_checkpoint(model, &target, 1 << 30),
            };
            assert!(
                matches!(&found, Err(FinetuneError::NotFiniteWeight { name: of }) if *of == name),
                "{found:?}"
            );
            assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
        };
        let mut model = golden_model("tiny_llama");
        let Method::Lora(settings) = lora() else { panic!("it is LoRA") };
        model.add_lora(&settings, 3).unwrap();
        refused(&model, true);
        refused(&model, false);
        let mut model = golden_model("tiny_llama");
        model.make_trainable(Trainable::All).unwrap();
        refused(&model, false);
    }
}
