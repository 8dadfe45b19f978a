//! How many layers to prune.

use std::fmt;
use std::str::FromStr;

use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::{Result, SelectionError};

/// How many layers to prune: a number, or a share of all.
#[derive(Debug, Clone, Copy, PartialEq, SerializeDisplay, DeserializeFromStr)]
pub enum Share {
    /// So many layers.
    Layers(usize),
    /// So many percent of the layers, rounded to nearest.
    Percent(f64),
}

impl Share {
    /// How many of `num_layers` are pruned: at least one, and at least one stays.
    ///
    /// # Errors
    ///
    /// [`SelectionError::Share`] if it rounds to no layer or to all.
    pub fn layers_of(self, num_layers: usize) -> Result<usize> {
        let count = self.of(num_layers);
        let least = (50.0 / num_layers as f64).ceil();
        match count {
            0 => Err(SelectionError::Share(format!(
                "{self} of {num_layers} layers rounds to none; prune at least 1 layer, or {least}%"
            ))),
            _ if count >= num_layers => Err(SelectionError::Share(format!(
                "{self} is {count} of {num_layers} layers, and at least one must stay"
            ))),
            _ => Ok(count),
        }
    }

    fn of(self, num_layers: usize) -> usize {
        match self {
            Self::Layers(count) => count,
            Self::Percent(percent) => (num_layers as f64 * percent / 100.0).round() as usize,
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is neither a number of layers nor a share such as 40%");
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim().parse() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
                _ => Err(fail()),
            },
            None => text.parse().map(Self::Layers).map_err(|_| fail()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layers(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_no_layer_says_the_least() {
        let of = |text: &str, layers| text.parse::<Share>().unwrap().layers_of(layers);
        for layers in 2..200_usize {
            let least = (50.0 / layers as f64).ceil();
            assert!(of(&format!("{least}%"), layers).is_ok(), "{layers}");
            let below = of(&format!("{}%", 49.0 / layers as f64), layers).unwrap_err().to_string();
            assert!(below.contains(&format!("prune at least 1 layer, or {least}%")), "{below}");
        }
    }

    #[test]
    fn shares_round_to_nearest() {
        let of = |text: &str, layers| text.parse::<Share>().unwrap().of(layers);
        assert_eq!((of("40%", 32), of("33%", 30), of("13", 32)), (13, 10, 13));
        assert!("x%".parse::<Share>().is_err() && "120%".parse::<Share>().is_err());
    }
}
