//! How the linear weights of a decoder layer are named, here and by PEFT.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::MOST_LAYERS;
use crate::outline::{is_of_another_part, layer_and_rest, numbered};

/// A linear weight of a decoder layer, in the families that the engine trains.
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
    QkvProj,
    GateUpProj,
}

impl Module {
    /// All that some family has.
    pub const ALL: [Self; 9] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
        Self::QkvProj,
        Self::GateUpProj,
    ];
    /// Those of a layer with queries, keys and values fused into one, and gate and up into another, in the order it uses
    /// them.
    pub const FUSED: [Self; 4] = [Self::QkvProj, Self::OProj, Self::GateUpProj, Self::DownProj];
    /// Those of a layer with each by itself, in the order it uses them.
    pub const SPLIT: [Self; 7] = {
        let [q, k, v, o, gate, up, down, ..] = Self::ALL;
        [q, k, v, o, gate, up, down]
    };

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
            Self::QkvProj => "self_attn.qkv_proj",
            Self::GateUpProj => "mlp.gate_up_proj",
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

/// The name of a linear weight within its layer, in any family: what the checkpoint's name has between the layer's number
/// and `.weight`, such as `self_attn.q_proj`, `attn.c_attn` or `mlp.experts.3.w1`.
///
/// Those that [`Module`] knows come first, in its order; the others by their text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleName {
    /// Where [`Module`] has it, or behind all of these.
    place: usize,
    text: Arc<str>,
}

impl ModuleName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The weight of the families that the engine trains, if it is one of these.
    pub fn known(&self) -> Option<Module> {
        Module::ALL.get(self.place).copied()
    }
}

impl From<&str> for ModuleName {
    fn from(text: &str) -> Self {
        let place = Module::ALL.iter().position(|known| known.name() == text);
        Self { place: place.unwrap_or(Module::ALL.len()), text: text.into() }
    }
}

impl From<Module> for ModuleName {
    fn from(module: Module) -> Self {
        module.name().into()
    }
}

impl PartialEq<Module> for ModuleName {
    fn eq(&self, other: &Module) -> bool {
        self.known() == Some(*other)
    }
}

impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for ModuleName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ModuleName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.as_str().into())
    }
}

/// A checkpoint tensor that belongs to a decoder layer: `model.layers.{layer}.{rest}`, or as another family has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTensor<'a> {
    /// The layer, counted from 0.
    pub layer: usize,
    /// What follows the layer's number, such as `mlp.down_proj.weight`.
    pub rest: &'a str,
}

impl<'a> LayerTensor<'a> {
    /// Takes the name of a tensor apart that is spelt as Llama spells it; `None` for what stands outside the layers.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (layer, rest) = layer_and_rest(name.strip_prefix("model.layers.")?)?;
        Some(Self { layer, rest })
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

/// Takes the name of a LoRA matrix apart, in a record's spelling or in PEFT's:
/// `layers.0.self_attn.q_proj.lora_A` or
/// `base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight`.
pub(crate) fn parse_lora_name(name: &str) -> Option<(usize, ModuleName, char)> {
    let (path, side) = name.rsplit_once(".lora_")?;
    let (layer, module) = adapted_weight(path)?;
    let (side, tail) = side.split_at_checked(1)?;
    let side = side.chars().next().filter(|side| is_known_tail(tail) && "AB".contains(*side))?;
    Some((layer, module, side))
}

/// Takes the name of DoRA's magnitudes apart as PEFT spells it:
/// `base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector`.
pub(crate) fn parse_magnitude_name(name: &str) -> Option<(usize, ModuleName)> {
    let (path, tail) = name.rsplit_once(".lora_magnitude_vector")?;
    is_known_tail(tail).then(|| adapted_weight(path)).flatten()
}

/// The decoder's weight that an adapter's tensor belongs to, from what is before the tensor's own part of the name.
fn adapted_weight(path: &str) -> Option<(usize, ModuleName)> {
    let (container, layer, module) = numbered(path)?;
    // Another part's layers, such as an image encoder's, are not the decoder's.
    let is_decoder = !is_of_another_part(container) && layer < MOST_LAYERS;
    is_decoder.then(|| (layer, module.into()))
}

/// PEFT puts the adapter's name in between: `.default.weight`.
fn is_known_tail(tail: &str) -> bool {
    tail.is_empty() || (tail.starts_with('.') && tail.ends_with(".weight"))
}

/// The stored name of each matrix by layer and weight, A and B of a pair together.
pub(crate) type PairNames = BTreeMap<(usize, ModuleName), (String, String)>;

/// The names of the two matrices of each weight, in a file of LoRA matrices and nothing else.
///
/// # Errors
///
/// What is wrong with the first name that is none of a LoRA matrix, names a matrix that another has
/// named, or has no other side.
pub(crate) fn pair_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<PairNames, String> {
    let mut sides: BTreeMap<(usize, ModuleName), [Option<&str>; 2]> = BTreeMap::new();
    for name in names {
        let Some((layer, module, side)) = parse_lora_name(name) else {
            return Err(format!("`{name}` is no LoRA matrix of a decoder layer"));
        };
        let place = &mut sides.entry((layer, module)).or_default()[usize::from(side == 'B')];
        if let Some(other) = place.replace(name) {
            return Err(format!("`{other}` and `{name}` are two spellings of one matrix"));
        }
    }
    let pair = |((layer, module), sides): ((usize, ModuleName), [Option<&str>; 2])| match sides {
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
        let expected = Some((3, Module::QProj.into(), 'A'));
        assert_eq!(parse_lora_name("layers.3.self_attn.q_proj.lora_A"), expected);
        for suffix in ["lora_A.weight", "lora_A.default.weight"] {
            let name = format!("base_model.model.model.layers.3.self_attn.q_proj.{suffix}");
            assert_eq!(parse_lora_name(&name), expected, "{name}");
        }
        let other = "base_model.model.transformer.h.7.attn.c_attn.lora_B.default.weight";
        assert_eq!(parse_lora_name(other), Some((7, "attn.c_attn".into(), 'B')));
        let vector = "base_model.model.model.layers.3.mlp.up_proj.lora_magnitude_vector";
        for tail in ["", ".default.weight"] {
            let expected = Some((3, Module::UpProj.into()));
            assert_eq!(parse_magnitude_name(&format!("{vector}{tail}")), expected);
        }
        for name in [vector, "layers.3.self_attn.q_proj.lora_magnitude_vectors"] {
            assert_eq!(parse_lora_name(name), None, "{name}");
        }
        assert_eq!(parse_magnitude_name(&format!("{vector}s")), None);
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
    fn names_of_weights_are_in_the_order_of_their_use() {
        let mut names: Vec<ModuleName> =
            ["mlp.a", "attn.b", "mlp.up_proj", "self_attn.v_proj"].map(Into::into).into();
        names.sort();
        assert_eq!(
            names.iter().map(ModuleName::as_str).collect::<Vec<_>>(),
            ["self_attn.v_proj", "mlp.up_proj", "attn.b", "mlp.a"]
        );
        assert!(names[0] == Module::VProj && names[2].known().is_none());
        let text = serde_json::to_string(&names).unwrap();
        assert_eq!(serde_json::from_str::<Vec<ModuleName>>(&text).unwrap(), names);
    }

    #[test]
    fn layer_tensors() {
        let parsed = LayerTensor::parse("model.layers.12.mlp.up_proj.weight").unwrap();
        assert_eq!((parsed.layer, parsed.module()), (12, Some(Module::UpProj)));
        assert_eq!(LayerTensor::parse("model.norm.weight"), None);
        assert_eq!(LayerTensor::parse("model.layers.01.mlp.up_proj.weight"), None);
    }
}
