//! How the seven linear weights of a decoder layer are named, here and by PEFT.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MOST_LAYERS;

/// A linear weight of a decoder layer, as Llama, Mistral and Qwen have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the variants are the checkpoint's own names")]
pub enum Module {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Module {
    /// All seven, in the order a layer uses them.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The name as the checkpoint spells it: `self_attn.q_proj`, `mlp.down_proj`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OProj => "self_attn.o_proj",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }

    /// The name as PEFT's `target_modules` spells it: `q_proj`, `down_proj`, …
    pub fn short_name(self) -> &'static str {
        let (_, short) = self.name().split_once('.').unwrap_or_default();
        short
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Module {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|module| module.name() == text || module.short_name() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::short_name).join(", ");
                format!("`{text}` is no linear weight of a decoder layer; there are {known}")
            })
    }
}

impl Serialize for Module {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Module {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A checkpoint tensor that belongs to a decoder layer: `model.layers.{layer}.{rest}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTensor<'a> {
    /// The layer, counted from 0.
    pub layer: usize,
    /// What follows the layer's number, such as `mlp.down_proj.weight`.
    pub rest: &'a str,
}

impl<'a> LayerTensor<'a> {
    /// Takes a tensor's name apart; `None` for what stands outside the layers.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (text, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer: usize = text.parse().ok()?;
        // `01` is no layer: with another name it would be a second tensor of that name.
        (layer.to_string() == text).then_some(Self { layer, rest })
    }

    /// The linear weight this is, if it is one.
    pub fn module(&self) -> Option<Module> {
        let module = self.rest.strip_suffix(".weight")?;
        Module::ALL.into_iter().find(|known| known.name() == module)
    }
}

/// The checkpoint's name of a linear weight: `model.layers.{layer}.{module}.weight`.
pub fn tensor_name(layer: usize, module: Module) -> String {
    format!("model.layers.{layer}.{module}.weight")
}

/// What may stand before a parameter's own name: PEFT's wrappers, and those of training loops.
const WRAPPERS: [&str; 5] = ["base_model", "model", "module", "_orig_mod", "_fsdp_wrapped_module"];

/// Takes the name of a LoRA matrix apart, in a record's spelling or in PEFT's:
/// `layers.0.self_attn.q_proj.lora_A` or
/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight`.
pub(crate) fn parse_lora_name(name: &str) -> Option<(usize, Module, char)> {
    let from = name.find("layers.")?;
    let (head, rest) = name.split_at(from);
    // Another part's layers, such as an image encoder's, are not the decoder's.
    if !head.split_terminator('.').all(|part| WRAPPERS.contains(&part)) {
        return None;
    }
    let (number, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    let (module, side) = rest.split_once(".lora_")?;
    let (side, tail) = side.split_at_checked(1)?;
    // PEFT puts the adapter's name in between: `.default.weight`.
    let known_tail = tail.is_empty() || (tail.starts_with('.') && tail.ends_with(".weight"));
    if !known_tail || layer >= MOST_LAYERS || layer.to_string() != number {
        return None;
    }
    let module = Module::ALL.into_iter().find(|known| known.name() == module)?;
    Some((layer, module, side.chars().next()?)).filter(|(.., side)| "AB".contains(*side))
}

/// The stored name of each matrix by layer and weight, A and B of a pair together.
pub(crate) type PairNames = BTreeMap<(usize, Module), (String, String)>;

/// The names of the two matrices of each weight, in a file of LoRA matrices and nothing else.
///
/// # Errors
///
/// What is wrong with the first name that is none of a LoRA matrix, names a matrix that another has
/// named, or has no other side.
pub(crate) fn pair_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<PairNames, String> {
    let mut sides: BTreeMap<(usize, Module), [Option<&str>; 2]> = BTreeMap::new();
    for name in names {
        let Some((layer, module, side)) = parse_lora_name(name) else {
            return Err(format!("`{name}` is no LoRA matrix of a decoder layer"));
        };
        let place = &mut sides.entry((layer, module)).or_default()[usize::from(side == 'B')];
        if let Some(other) = place.replace(name) {
            return Err(format!("`{other}` and `{name}` are two spellings of one matrix"));
        }
    }
    let pair = |((layer, module), sides): ((usize, Module), [Option<&str>; 2])| match sides {
        [Some(a), Some(b)] => Ok(((layer, module), (a.to_owned(), b.to_owned()))),
        _ => Err(format!("layer {layer} {module} has only one of lora_A and lora_B")),
    };
    sides.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lora_names_of_records_and_of_peft() {
        let expected = Some((3, Module::QProj, 'A'));
        assert_eq!(parse_lora_name("layers.3.self_attn.q_proj.lora_A"), expected);
        for suffix in ["lora_A.weight", "lora_A.default.weight"] {
            let name = format!("base_model.model.model.layers.3.self_attn.q_proj.{suffix}");
            assert_eq!(parse_lora_name(&name), expected, "{name}");
        }
        for name in [
            "layers.x.self_attn.q_proj.lora_A",
            "layers.03.self_attn.q_proj.lora_A",
            "layers.18446744073709551615.self_attn.q_proj.lora_A",
            "vision.layers.3.self_attn.q_proj.lora_A",
            "layers.3.self_attn.q_proj.lora_C",
            "layers.3.self_attn.q_proj.lora_B.bias",
            "lm_head",
        ] {
            assert_eq!(parse_lora_name(name), None, "{name}");
        }
    }

    #[test]
    fn pairs_are_complete_and_each_matrix_comes_once() {
        let check = |names: &[&str]| pair_names(names.iter().copied()).map(|pairs| pairs.len());
        let (a, b) = ("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_proj.lora_B");
        assert_eq!(check(&[a, b]), Ok(1));
        let peft = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        for (names, reason) in [
            (&[a, peft, b][..], "are two spellings of one matrix"),
            (&[a], "has only one of lora_A and lora_B"),
            (&[a, b, "lm_head.weight"], "`lm_head.weight` is no LoRA matrix"),
        ] {
            let error = check(names).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn layer_tensors() {
        let parsed = LayerTensor::parse("model.layers.12.mlp.up_proj.weight").unwrap();
        assert_eq!((parsed.layer, parsed.module()), (12, Some(Module::UpProj)));
        assert_eq!(LayerTensor::parse("model.norm.weight"), None);
        assert_eq!(LayerTensor::parse("model.layers.01.mlp.up_proj.weight"), None);
    }
}
