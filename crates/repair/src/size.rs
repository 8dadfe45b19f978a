//! How large a model is.

use checkpoint::{ModelConfig, Weights};
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

impl Size {
    /// Context length at which FLOPs per token are counted.
    pub const CONTEXT: usize = 1024;

    /// The size of a model of this configuration whose weights are these.
    pub fn of(config: &ModelConfig, weights: &Weights) -> Self {
        Self {
            num_layers: config.num_layers,
            parameters: config.parameters(),
            flops_per_token: config.flops_per_token(Self::CONTEXT),
            size_bytes: weights.size_bytes(),
        }
    }
}
