//! How a decoder is built: the parts in which families differ.

/// What differs from family to family in a layer and around the layers. The default is Llama's.
#[derive(Debug, Clone, PartialEq)]
pub struct Design {
    /// Where a layer has norms.
    pub norms: Norms,
    /// Norms of queries and keys, if there are any.
    pub qk_norm: Option<QkNorm>,
    /// What is added to a norm's stored weight: 1 in Gemma.
    pub norm_offset: f64,
    /// Whether queries, keys and values are one weight, and gate and up another.
    pub is_fused: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has one.
    pub o_bias: bool,
    /// Whether gate, up and down have some.
    pub mlp_bias: bool,
    /// What the gate goes through.
    pub activation: Activation,
    /// What scores are multiplied by; `None` for `1 / √head_dim`.
    pub attention_scale: Option<f64>,
    /// `c`, where scores `s` are softened to `c · tanh(s / c)`.
    pub attention_cap: Option<f64>,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What attention and the MLP add to the stream is multiplied by this.
    pub residual_scale: f64,
    /// What logits are multiplied by.
    pub logit_scale: f64,
    /// `c`, where logits `z` are softened to `c · tanh(z / c)`.
    pub logit_cap: Option<f64>,
}

impl Default for Design {
    fn default() -> Self {
        Self {
            norms: Norms::Before,
            qk_norm: None,
            norm_offset: 0.0,
            is_fused: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            activation: Activation::Silu,
            attention_scale: None,
            attention_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
        }
    }
}

/// Where a layer has norms: of what goes into attention and the MLP, or of what they give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Of what goes in (Llama).
    Before,
    /// Of what they give, before it is added (OLMo 2).
    After,
    /// Of both (Gemma).
    Around,
}

/// The names of a layer's norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NormNames {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

impl Norms {
    /// The names in the checkpoint: `post_attention_layernorm` is one after attention, but for Llama's families, in
    /// which it is the one before the MLP.
    pub fn names(self) -> NormNames {
        let (input, attention) = (Some("input_layernorm"), Some("post_attention_layernorm"));
        let (before, after) =
            (Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm"));
        match self {
            Self::Before => NormNames {
                before_attention: input,
                after_attention: None,
                before_mlp: attention,
                after_mlp: None,
            },
            Self::After => NormNames {
                before_attention: None,
                after_attention: attention,
                before_mlp: None,
                after_mlp: after,
            },
            Self::Around => NormNames {
                before_attention: input,
                after_attention: attention,
                before_mlp: before,
                after_mlp: after,
            },
        }
    }
}

impl NormNames {
    /// Those that there are, in the order a layer uses them.
    pub fn all(&self) -> impl Iterator<Item = &'static str> + use<> {
        let Self { before_attention, after_attention, before_mlp, after_mlp } = *self;
        [before_attention, after_attention, before_mlp, after_mlp].into_iter().flatten()
    }
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself (Qwen3, Gemma 3).
    ByHead,
    /// All heads together (OLMo 2).
    Whole,
}

/// What the MLP's gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU by the tangent's approximation.
    GeluTanh,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerKind {
    /// Its sliding window in tokens; `None` attends to all before it.
    pub window: Option<usize>,
    /// Which of the model's rotations turns its queries and keys; `None` if none does.
    pub rope: Option<usize>,
}
