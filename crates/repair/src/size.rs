//! How large a model is.

use checkpoint::{Checkpoint, TensorView};
use serde::{Deserialize, Serialize};

use crate::experts::Experts;

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Size {
    pub num_layers: usize,
    pub parameters: u64,
    pub flops_per_token: u64,
    pub size_bytes: u64,
}

impl Size {
    /// Context length at which FLOPs per token are counted.
    pub const CONTEXT: usize = 1024;

    /// The size of a model. Of a family that the engine does not train, parameters are the elements of its tensors, and
    /// FLOPs two for each element of a layer's matrices, of experts as many as a token goes through, and of the head;
    /// attention's own are left out.
    pub fn of(model: &Checkpoint) -> Self {
        let (parameters, flops_per_token) = match model.trained_config() {
            Some(config) => (config.parameters(), config.flops_per_token(Self::CONTEXT)),
            None => (elements(model), flops(model)),
        };
        let size_bytes = model.weights().size_bytes();
        Self { num_layers: model.num_layers(), parameters, flops_per_token, size_bytes }
    }
}

fn elements(model: &Checkpoint) -> u64 {
    let floats = model.weights().iter().filter(|view| view.dtype().is_ok());
    floats.map(|view| view.shape().iter().product::<usize>() as u64).sum()
}

fn flops(model: &Checkpoint) -> u64 {
    let outline = model.outline();
    let experts = Experts::of(outline);
    // Of several experts, a token goes through some.
    let share = |rest: &str, view: &TensorView<'_>| match experts {
        Some(experts) if rest.contains(".experts.") || experts.are_stacked_in(view) => {
            experts.used()
        }
        _ => 1.0,
    };
    let mut sum = 0.0;
    for view in model.weights().iter() {
        let Some(tensor) = outline.layer_tensor(view.name()) else { continue };
        let is_bias = tensor.rest.ends_with("bias"); // Of all experts, or a mask: no matrix.
        let is_matrix = !is_bias && view.shape().len() >= 2 && view.dtype().is_ok();
        if is_matrix && tensor.layer < model.num_layers() {
            sum += 2.0 * share(tensor.rest, &view) * view.shape().iter().product::<usize>() as f64;
        }
    }
    // The head is the embedding, or as large.
    let head = outline.number("vocab_size").zip(outline.number("hidden_size"));
    let head = head.map_or(0.0, |(tokens, hidden)| 2.0 * tokens as f64 * hidden as f64);
    (sum + head).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of four experts, in one tensor or in four, a token goes through two.
    #[test]
    fn of_experts_those_count_that_a_token_goes_through() {
        for (family, experts) in
            [("gpt_oss", ".experts."), ("granitemoe", "put_linear"), ("mixtral", ".experts.")]
        {
            let folder = testkit::temporary_folder();
            testkit::made_up_decoder(family, folder.path());
            let model = Checkpoint::open(folder.path()).unwrap();
            let layers = model.outline();
            let mut expected = 0;
            let is_matrix =
                |view: &TensorView<'_>| view.shape().len() >= 2 && !view.name().ends_with("bias");
            for view in model.weights().iter().filter(is_matrix) {
                if layers.layer_tensor(view.name()).is_some() {
                    let size = view.shape().iter().product::<usize>() as u64;
                    expected += if view.name().contains(experts) { size } else { 2 * size };
                }
            }
            let number = |key: &str| model.outline().number(key).unwrap();
            expected += 2 * number("vocab_size") * number("hidden_size");
            assert_eq!(Size::of(&model).flops_per_token, expected, "{family}");
        }
    }
}
