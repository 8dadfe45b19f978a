//! How much of each merged weight is merged.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The share of a weight's importance that `auto` keeps where nobody says how much.
const AUTO_SHARE: f64 = 0.8;

/// Which of a donor's elements are kept (method.md §5).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub enum Density {
    /// This share of each weight's elements, from 0 to 1: those of the largest importance.
    Share(f64),
    /// Of each weight the fewest elements that hold this share of its importance, from 0 to 1.
    Auto(f64),
}

impl Density {
    /// The fewest elements that hold 80 % of the importance.
    pub const AUTO: Self = Self::Auto(AUTO_SHARE);

    /// Whether every weight keeps as many elements as it takes.
    pub const fn is_auto(self) -> bool {
        matches!(self, Self::Auto(_))
    }

    pub(crate) fn reason_against(self) -> Option<String> {
        let (Self::Share(share) | Self::Auto(share)) = self;
        (!(0.0..=1.0).contains(&share))
            .then(|| format!("the density is {self}, which is no share between 0 and 1"))
    }
}

impl From<f64> for Density {
    fn from(share: f64) -> Self {
        Self::Share(share)
    }
}

impl fmt::Display for Density {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{share}"),
            &Self::AUTO => f.write_str("auto"),
            Self::Auto(share) => write!(f, "auto:{share}"),
        }
    }
}

impl FromStr for Density {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || {
            format!(
                "`{text}` is not a density; write a share from 0 to 1, auto, or auto with a share such as auto:0.8"
            )
        };
        let found = match text.strip_prefix("auto") {
            None => Self::Share(text.parse().map_err(|_| fail())?),
            Some("") => Self::AUTO,
            Some(share) => {
                let share = share.strip_prefix(':').and_then(|share| share.parse().ok());
                Self::Auto(share.ok_or_else(fail)?)
            }
        };
        match found.reason_against() {
            None => Ok(found),
            Some(_) => Err(fail()),
        }
    }
}

/// As it stands in files.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a share from 0 to 1, or auto, or auto with a share such as auto:0.8"
)]
enum Written {
    Number(f64),
    Text(String),
}

impl From<Density> for Written {
    fn from(density: Density) -> Self {
        match density {
            Density::Share(share) => Self::Number(share),
            auto @ Density::Auto(_) => Self::Text(auto.to_string()),
        }
    }
}

impl TryFrom<Written> for Density {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(share) => Ok(Self::Share(share)),
            Written::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, density) in [
            ("0.2", Density::Share(0.2)),
            ("1", Density::Share(1.0)),
            ("auto", Density::AUTO),
            ("auto:0.9", Density::Auto(0.9)),
        ] {
            assert_eq!(text.parse(), Ok(density));
            assert_eq!(density.to_string(), text);
        }
        assert_eq!("auto:0.8".parse::<Density>().unwrap().to_string(), "auto");
        for wrong in ["", "1.5", "-0.1", "nan", "auto:", "auto:2", "auto0.5", "autumn"] {
            let error = wrong.parse::<Density>().unwrap_err();
            assert!(error.contains("such as auto:0.8"), "{error}");
        }
    }

    #[test]
    fn in_files_a_number_or_a_text() {
        for (written, density) in [
            ("0.2", Density::Share(0.2)),
            ("\"auto\"", Density::AUTO),
            ("\"auto:0.5\"", Density::Auto(0.5)),
        ] {
            assert_eq!(serde_json::from_str::<Density>(written).unwrap(), density);
            assert_eq!(serde_json::to_string(&density).unwrap(), written);
        }
        assert_eq!(serde_json::from_str::<Density>("1").unwrap(), Density::Share(1.0));
        for wrong in ["null", "[0.2]", "\"some\""] {
            let error = serde_json::from_str::<Density>(wrong).unwrap_err().to_string();
            assert!(error.contains("auto:0.8"), "{error}");
        }
    }
}
