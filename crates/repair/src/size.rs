//! How large a model is.

use checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Size {
    pub num_layers: usize,
    pub parameters: u64,
    pub flops_per_token: u64,
    pub size_bytes: u64,
}

/// Keys that count all experts of a layer, and those that a token goes through.
const EXPERTS: [&str; 4] =
    ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];
const CHOSEN: [&str; 3] = ["num_experts_per_tok", "moe_k", "num_experts_per_token"];

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
    let number = |keys: &[&str]| keys.iter().find_map(|key| outline.number(key));
    let used = match (number(&CHOSEN), number(&EXPERTS)) {
        (Some(chosen), Some(all)) if all > 0 => chosen as f64 / all as f64,
        _ => 1.0,
    };
    let mut sum = 0.0;
    for view in model.weights().iter() {
        let Some(tensor) = outline.layer_tensor(view.name()) else { continue };
        let is_matrix = view.shape().len() >= 2 && view.dtype().is_ok();
        if is_matrix && tensor.layer < model.num_layers() {
            let share = if tensor.rest.contains(".experts.") { used } else { 1.0 };
            sum += 2.0 * share * view.shape().iter().product::<usize>() as f64;
        }
    }
    // The head is the embedding, or as large.
    let head = outline.number("vocab_size").zip(outline.number("hidden_size"));
    let head = head.map_or(0.0, |(tokens, hidden)| 2.0 * tokens as f64 * hidden as f64);
    (sum + head).round() as u64
}
