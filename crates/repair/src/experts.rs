//! Mixtures-of-Experts: how many experts a layer has, and how many a token goes through.

use checkpoint::{Outline, TensorView};

/// Keys that count all experts of a layer, and those that a token goes through.
const EXPERTS: [&str; 4] =
    ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];
const CHOSEN: [&str; 3] = ["num_experts_per_tok", "moe_k", "num_experts_per_token"];

/// The experts of each layer that has any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Experts {
    all: u64,
    chosen: u64,
}

impl Experts {
    /// `None` where `config.json` counts none.
    pub(crate) fn of(outline: &Outline) -> Option<Self> {
        let number = |keys: &[&str]| keys.iter().find_map(|key| outline.number(key));
        let all = number(&EXPERTS).filter(|&all| all > 0)?;
        Some(Self { all, chosen: number(&CHOSEN).unwrap_or(all) })
    }

    /// The share of them that a token goes through.
    pub(crate) fn used(self) -> f64 {
        self.chosen as f64 / self.all as f64
    }

    /// Whether a tensor holds the matrices of all of them.
    pub(crate) fn are_stacked_in(self, view: &TensorView<'_>) -> bool {
        view.shape().len() >= 3 && view.shape()[0] as u64 == self.all
    }
}
