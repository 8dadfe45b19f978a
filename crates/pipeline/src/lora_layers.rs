//! The layers that get adapters: named, or left to scores.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The layers that get adapters, where not all do; written as their numbers, or `auto`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub enum LoraLayers {
    /// These, counted from 0 in the model that is trained.
    These(Vec<usize>),
    /// The half with the highest scores (docs/method.md §9), which a run knows once its layers are chosen.
    Auto,
}

/// How files hold them.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "they must be layers' numbers, or \"auto\"")]
enum Written {
    These(Vec<usize>),
    Word(String),
}

impl From<LoraLayers> for Written {
    fn from(layers: LoraLayers) -> Self {
        match layers {
            LoraLayers::These(layers) => Self::These(layers),
            LoraLayers::Auto => Self::Word(layers.to_string()),
        }
    }
}

impl TryFrom<Written> for LoraLayers {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::These(layers) => Ok(Self::These(layers)),
            Written::Word(word) => word.parse(),
        }
    }
}

impl fmt::Display for LoraLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::These(layers) => {
                let numbers: Vec<_> = layers.iter().map(usize::to_string).collect();
                f.write_str(&numbers.join(","))
            }
        }
    }
}

impl FromStr for LoraLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let numbers: Result<_, _> = text.split(',').map(str::parse).collect();
        numbers
            .map(Self::These)
            .map_err(|_| format!("`{text}` is neither layers such as 0,1,5 nor auto"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert_eq!("auto".parse(), Ok(LoraLayers::Auto));
        assert_eq!("0,5,1".parse(), Ok(LoraLayers::These(vec![0, 5, 1])));
        for text in ["auto", "7", "0,5,1"] {
            assert_eq!(text.parse::<LoraLayers>().unwrap().to_string(), text);
        }
        for wrong in ["", "1,", "-1", "some", "auto,1"] {
            assert!(wrong.parse::<LoraLayers>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn files() {
        for (layers, text) in
            [(LoraLayers::Auto, "\"auto\""), (LoraLayers::These(vec![2, 0]), "[2,0]")]
        {
            assert_eq!(serde_json::to_string(&layers).unwrap(), text);
            assert_eq!(serde_json::from_str::<LoraLayers>(text).unwrap(), layers);
        }
        let refused =
            |text: &str| serde_json::from_str::<LoraLayers>(text).unwrap_err().to_string();
        assert!(refused("\"some\"").contains("`some` is neither layers"));
        assert!(refused("1.5").contains("layers' numbers, or \"auto\""));
    }
}
