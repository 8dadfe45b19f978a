//! The families that the engine trains, a file each.

mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use super::design::{Design, LayerKind};
use super::keys::Keys;
use super::rope::Rope;
use crate::Result;

/// A family of decoders that are built alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the families' names")]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    Olmo2,
    SmolLm3,
    Granite,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Olmo2,
        Self::SmolLm3,
        Self::Granite,
    ];

    /// Its name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::Olmo2 => "olmo2",
            Self::SmolLm3 => "smollm3",
            Self::Granite => "granite",
        }
    }

    /// How its models are built.
    pub(super) fn describe(self, given: &Given<'_>) -> Result<Described> {
        match self {
            Self::Llama => llama::describe(given),
            Self::Mistral => mistral::describe(given),
            Self::Qwen2 => qwen2::describe(given),
            Self::Qwen3 => qwen3::describe(given),
            Self::Gemma2 => gemma2::describe(given),
            Self::Gemma3 => gemma3::describe(given),
            Self::Phi3 => phi3::describe(given),
            Self::Olmo2 => olmo2::describe(given),
            Self::SmolLm3 => smollm3::describe(given),
            Self::Granite => granite::describe(given),
        }
    }
}

/// What a family is described from.
pub(super) struct Given<'a> {
    pub(super) keys: Keys<'a>,
    pub(super) num_layers: usize,
    pub(super) head_dim: usize,
}

/// What a family says of a model.
pub(super) struct Described {
    pub(super) design: Design,
    pub(super) layers: Vec<LayerKind>,
    pub(super) ropes: Vec<Rope>,
    /// What `tie_word_embeddings` is where it is not given.
    pub(super) tied: bool,
    /// What `rms_norm_eps` is where it is not given.
    pub(super) epsilon: f64,
}

impl Given<'_> {
    /// A model whose layers have these windows, all turned by one rotation whose base is `theta` where none is given.
    fn described(
        &self,
        design: Design,
        windows: Vec<Option<usize>>,
        theta: f64,
    ) -> Result<Described> {
        let kind = |window| LayerKind { window, rope: Some(0) };
        if let Some(share) = self.rotated_share()?.filter(|&share| share != 1.0) {
            let what = format!("`partial_rotary_factor` is {share}; only 1 is supported");
            return self.keys.untrained(what);
        }
        Ok(Described {
            design,
            layers: windows.into_iter().map(kind).collect(),
            ropes: vec![self.keys.rope(self.head_dim, theta)?],
            tied: false,
            epsilon: 1e-6,
        })
    }

    /// How much of a head is rotated, if that is said.
    fn rotated_share(&self) -> Result<Option<f64>> {
        let key = "partial_rotary_factor";
        let inner = self.keys.either("rope_parameters", "rope_scaling");
        let inner = inner.and_then(|map| map.get(key)?.as_f64());
        Ok(self.keys.positive(key)?.or(inner))
    }

    /// No windows.
    fn without_windows(&self) -> Vec<Option<usize>> {
        vec![None; self.num_layers]
    }

    /// Llama's activation, under its usual key.
    fn require_silu(&self) -> Result<()> {
        self.keys.require_activation("hidden_act", &["silu", "swish"])
    }

    /// Biases as Llama's keys say.
    fn with_biases(&self, design: Design) -> Result<Design> {
        let attention = self.keys.flag("attention_bias", false)?;
        let mlp_bias = self.keys.flag("mlp_bias", false)?;
        Ok(Design { qkv_bias: attention, o_bias: attention, mlp_bias, ..design })
    }
}
