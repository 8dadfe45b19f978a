//! How much may be lost.

use std::fmt;
use std::str::FromStr;

use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::Trial;

/// How much a pruned model may lose against the dense one, fine-tuned alike, on rows held out: such as `1%`, a point of
/// accuracy, or, of rows without choices, a hundredth more perplexity.
#[derive(Debug, Clone, Copy, PartialEq, SerializeDisplay, DeserializeFromStr)]
pub struct MaxDrop(f64);

impl MaxDrop {
    /// As a share.
    fn share(self) -> f64 {
        self.0 / 100.0
    }

    /// Whether so much may be lost. A share of rows is a rounded number, and exactly as much as may be lost may be.
    pub(crate) fn allows(self, lost: f64) -> bool {
        lost <= self.share() + 1e-9
    }

    /// What a pruned model has lost; `None` if it is not finite.
    pub(crate) fn lost(dense: &Trial, pruned: &Trial) -> Option<f64> {
        match dense.acc.zip(pruned.acc) {
            Some((dense, pruned)) => Some(dense - pruned),
            None => Some((pruned.loss? - dense.loss?).exp() - 1.0),
        }
    }
}

impl fmt::Display for MaxDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for MaxDrop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').and_then(|percent| percent.trim().parse().ok());
        match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
            Some(percent) => Ok(Self(percent)),
            None => Err(format!("`{text}` is not a share such as 1%")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(acc: Option<f64>, loss: Option<f64>) -> Trial {
        Trial { step: 9, loss, acc, acc_interval: None, majority: None }
    }

    #[test]
    fn points_of_accuracy_or_a_share_of_perplexity() {
        let drop: MaxDrop = "1.5%".parse().unwrap();
        assert_eq!((drop.to_string().as_str(), drop.share()), ("1.5%", 0.015));
        for wrong in ["", "1", "%", "-1%", "101%", "nan%"] {
            assert!(wrong.parse::<MaxDrop>().is_err(), "{wrong}");
        }
        let lost = MaxDrop::lost(&trial(Some(0.9), None), &trial(Some(0.875), Some(1.0))).unwrap();
        assert!((lost - 0.025).abs() < 1e-12);
        // 276 and 270 of 300 rows: 0.02 and a little more in floating point.
        let two: MaxDrop = "2%".parse().unwrap();
        assert!(two.allows(0.92 - 0.9) && !two.allows(0.0201) && two.allows(-0.5));
        let lost = MaxDrop::lost(&trial(None, Some(2.0)), &trial(None, Some(2.0 + 1.02_f64.ln())));
        assert!((lost.unwrap() - 0.02).abs() < 1e-12);
        assert_eq!(MaxDrop::lost(&trial(None, Some(2.0)), &trial(None, None)), None);
    }
}
