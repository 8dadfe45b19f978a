//! Tensors that a checkpoint holds and its model does not use: harmless ones, and those that say
//! that the checkpoint is not what its configuration says.

use std::collections::HashSet;

use crate::{CheckpointError, ModelConfig, Result, TensorView, Weights};

/// Endings of what quantisers store beside or in place of a weight: GPTQ and AWQ, bitsandbytes,
/// FP8 and compressed-tensors.
const QUANTISERS: [&str; 18] = [
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".nested_absmax",
    ".quant_map",
    ".nested_quant_map",
    ".SCB",
    ".weight_format",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".weight_zero_point",
    ".input_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
];

/// Refuses tensors that the model would ignore although they may change what it computes.
pub(crate) fn require_used(
    config: &ModelConfig,
    weights: &Weights,
    used: &[(String, Vec<usize>)],
) -> Result<()> {
    let used: HashSet<&str> = used.iter().map(|(name, _)| name.as_str()).collect();
    let unused: Vec<TensorView<'_>> = weights
        .iter()
        .filter(|view| !used.contains(view.name()) && !is_harmless(view, config, weights))
        .collect();
    // That a checkpoint is quantised says more than that a name is not known.
    if let Some(view) = unused.iter().find(|view| is_of_a_quantiser(view.name())) {
        return Err(quantised_error(view));
    }
    match unused.first() {
        None => Ok(()),
        Some(view) => Err(CheckpointError::UnusedTensor {
            path: view.path().to_owned(),
            name: view.name().to_owned(),
            family: config.family.name(),
        }),
    }
}

/// Refuses weights that a quantiser has left, of any model.
pub(crate) fn require_floats(weights: &Weights) -> Result<()> {
    let quantised = weights.iter().find(|view| is_of_a_quantiser(view.name()));
    quantised.map_or(Ok(()), |view| Err(quantised_error(&view)))
}

fn quantised_error(view: &TensorView<'_>) -> CheckpointError {
    CheckpointError::Quantised {
        path: view.path().to_owned(),
        name: view.name().to_owned(),
        found: format!("{:?}", view.stored_dtype()),
    }
}

/// Bytes of two matrices that are compared, at so many places.
const SAMPLE: (usize, usize) = (4096, 64);

/// Rotation frequencies, which old checkpoints store and everyone computes from `config.json`; and
/// a head that is the embedding.
fn is_harmless(view: &TensorView<'_>, config: &ModelConfig, weights: &Weights) -> bool {
    let is_embedding = || {
        weights.get("model.embed_tokens.weight").is_some_and(|embedding| are_one(view, &embedding))
    };
    view.name().ends_with("rotary_emb.inv_freq")
        || (config.tied_head && view.name() == "lm_head.weight" && is_embedding())
}

/// Whether two tensors are copies of each other, as far as samples tell: a head that was trained
/// differs from the embedding everywhere.
fn are_one(one: &TensorView<'_>, other: &TensorView<'_>) -> bool {
    let (size, places) = SAMPLE;
    let (x, y) = (one.bytes(), other.bytes());
    let step = (x.len() / places).max(1);
    let equal = |from: usize| {
        let until = (from + size).min(x.len());
        x[from..until] == y[from..until]
    };
    one.stored_dtype() == other.stored_dtype()
        && one.shape() == other.shape()
        && (0..x.len()).step_by(step).all(equal)
}

/// Whether a quantiser stores something under such a name.
pub(crate) fn is_of_a_quantiser(name: &str) -> bool {
    QUANTISERS.iter().any(|ending| name.ends_with(ending)) || name.contains(".quant_state.")
}

#[cfg(test)]
mod tests {
    use crate::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, Weights, narrow};

    /// Opens a golden model that holds one more tensor, of `values` as wide as the model.
    fn check(model: &str, name: &str, values: &[f32]) -> Option<String> {
        let folder = testkit::temporary_folder();
        let model = testkit::fixture(&format!("{model}/model"));
        let source = Weights::open(&model).unwrap();
        let columns = testkit::json(&model.join("config.json"))["hidden_size"].as_u64().unwrap();
        let shape = [values.len() / columns as usize, columns as usize];
        let mut specs: Vec<_> =
            source.iter().map(|view| TensorSpec::like(&view, view.name())).collect();
        specs.push(TensorSpec::new(name, Dtype::F32, &shape));
        let writer = CheckpointWriter::create(folder.path(), specs, u64::MAX).unwrap();
        for view in source.iter() {
            writer.copy(view.name(), &view).unwrap();
        }
        writer.write(name, &narrow(values, Dtype::F32)).unwrap();
        writer.finish().unwrap();
        fs_err::copy(model.join("config.json"), folder.path().join("config.json")).unwrap();
        let error = Checkpoint::open(folder.path()).err()?.to_string();
        Some(error.split_once(": ").unwrap().1.to_owned())
    }

    #[test]
    fn unused_tensors_are_harmless_or_refused() {
        let zeros = [0.0; 64];
        for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"] {
            assert_eq!(check("tiny_llama", name, &zeros), None);
        }
        for (name, reason) in [
            ("model.layers.6.mlp.up_proj.weight", "which a llama model with this config.json"),
            ("model.layers.0.self_attn.q_proj.bias", "which a llama model with this config.json"),
            ("score.weight", "which a llama model with this config.json does not use"),
            (
                "model.layers.0.mlp.up_proj.qweight",
                "quantised (`model.layers.0.mlp.up_proj.qweight`",
            ),
            ("model.layers.0.mlp.up_proj.weight_scale_inv", "the weights are quantised"),
        ] {
            let error = check("tiny_llama", name, &zeros).unwrap();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_tied_head_must_be_the_embedding() {
        let model = testkit::fixture("tiny_llama_tied/model");
        let mut embedding = Weights::open(&model)
            .unwrap()
            .get("model.embed_tokens.weight")
            .unwrap()
            .to_f32()
            .unwrap();
        assert_eq!(check("tiny_llama_tied", "lm_head.weight", &embedding), None);
        embedding[100] += 1.0;
        let error = check("tiny_llama_tied", "lm_head.weight", &embedding).unwrap();
        assert!(error.contains("`lm_head.weight`, which"), "{error}");
    }
}
