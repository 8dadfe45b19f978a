//! Learning rates over a run, as transformers' schedules give them.

use std::fmt;
use std::str::FromStr;

use serde_with::{DeserializeFromStr, SerializeDisplay};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum Decay {
    /// It does not.
    Constant,
    /// In a straight line to zero.
    Linear,
    /// Along half a cosine to zero.
    Cosine,
}

impl Decay {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Decay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Constant, Self::Linear, Self::Cosine]
            .into_iter()
            .find(|decay| decay.name() == text)
            .ok_or_else(|| format!("`{text}` is none of constant, linear and cosine"))
    }
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The share of all steps over which the rate rises from zero.
    pub warmup: f64,
    /// What follows.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of a step counted from 0, of `total`.
    ///
    /// The first step of a warm-up has the rate 0, as in transformers.
    pub fn rate(&self, step: usize, total: usize) -> f64 {
        let warmup = (self.warmup * total as f64).ceil() as usize;
        if step < warmup {
            return self.peak * step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => (1.0 - progress).max(0.0),
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_and_falls() {
        let linear = Schedule { peak: 1.0, warmup: 0.1, decay: Decay::Linear };
        let rates: Vec<f64> = [0, 5, 10, 55, 100].map(|step| linear.rate(step, 100)).into();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.5, 0.0]);
        let cosine = Schedule { decay: Decay::Cosine, ..linear };
        assert!((cosine.rate(55, 100) - 0.5).abs() < 1e-12);
        let constant = Schedule { decay: Decay::Constant, warmup: 0.0, ..linear };
        assert!((constant.rate(99, 100) - 1.0).abs() < 1e-12);
    }
}
