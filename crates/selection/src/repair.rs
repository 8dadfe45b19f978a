//! What may be done to the retained layers before they are fine-tuned, by name.
//!
//! The list of repairs; each is a file of the crate `repair`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is done to the retained layers before they are fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Repair {
    /// Nothing.
    #[default]
    Drop,
    /// The best elements of some pruned layers are added to the layer before them (method.md §5, §6).
    SameSign,
    /// A linear map stands in for each run of pruned layers, folded into the layer before it.
    LinearMap,
    /// Later layers' outputs are divided by how much larger the stream would be after each run of pruned layers.
    Scale,
    /// As [`Repair::SameSign`], each element by its importance's share, all by a step that is searched for.
    Weighted,
    /// The layer before each run of pruned layers is trained to give what the run gave.
    Reconstruct,
    /// What pruned layers differ by from the layer before them is added to it.
    Laco,
}

/// What a repair needs besides the model and the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairNeed {
    /// A gradient record.
    Record,
    /// Something fitted on rows, in a folder of its own.
    Fit,
    /// What is lost on rows, by which its step is chosen.
    Losses,
}

/// What is known of a repair before it is carried out.
struct Facts {
    name: &'static str,
    about: &'static str,
    merges: Merges,
    needs: &'static [RepairNeed],
}

/// Which pruned layers go into retained ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Merges {
    None,
    /// As many as are asked for.
    Asked,
    /// All, unless fewer are asked for.
    All,
}

impl Repair {
    /// All of them, the default first.
    pub const ALL: [Self; 7] = [
        Self::LinearMap,
        Self::Scale,
        Self::Reconstruct,
        Self::SameSign,
        Self::Weighted,
        Self::Laco,
        Self::Drop,
    ];

    const fn facts(self) -> Facts {
        match self {
            Self::LinearMap => Facts {
                name: "linear-map",
                about: "replace each run of pruned layers with a linear map, folded into the layer before it",
                merges: Merges::None,
                needs: &[RepairNeed::Fit],
            },
            Self::Scale => Facts {
                name: "scale",
                about: "scale down the outputs of later layers by as much as the pruned layers would have scaled the stream up",
                merges: Merges::None,
                needs: &[RepairNeed::Fit],
            },
            Self::Reconstruct => Facts {
                name: "reconstruct",
                about: "train the layer before each run of pruned layers to reproduce the run's output",
                merges: Merges::None,
                needs: &[RepairNeed::Fit],
            },
            Self::SameSign => Facts {
                name: "same-sign",
                about: "add the best elements of pruned layers to the layer before them, where signs agree",
                merges: Merges::Asked,
                needs: &[RepairNeed::Record],
            },
            Self::Weighted => Facts {
                name: "weighted",
                about: "as same-sign, weighted by the elements' shares of importance, with the step that loses least",
                merges: Merges::Asked,
                needs: &[RepairNeed::Record, RepairNeed::Losses],
            },
            Self::Laco => Facts {
                name: "laco",
                about: "add the differences between the pruned layers and the layer before them to that layer",
                merges: Merges::All,
                needs: &[],
            },
            Self::Drop => {
                Facts { name: "drop", about: "no repair", merges: Merges::None, needs: &[] }
            }
        }
    }

    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// What it does, in a line.
    pub const fn about(self) -> &'static str {
        self.facts().about
    }

    /// Whether it merges pruned layers into retained ones.
    pub const fn merges(self) -> bool {
        !matches!(self.facts().merges, Merges::None)
    }

    /// Whether it merges all of them where nobody says how many.
    pub const fn merges_all(self) -> bool {
        matches!(self.facts().merges, Merges::All)
    }

    /// Whether it needs this.
    pub fn needs(self, need: RepairNeed) -> bool {
        self.facts().needs.contains(&need)
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Repair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|repair| repair.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is not a repair; use one of {known}")
        })
    }
}

impl From<Repair> for String {
    fn from(repair: Repair) -> Self {
        repair.name().to_owned()
    }
}

impl TryFrom<String> for Repair {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_told_apart_and_found() {
        let names: BTreeSet<_> = Repair::ALL.iter().map(|repair| repair.name()).collect();
        assert_eq!(names.len(), Repair::ALL.len());
        for repair in Repair::ALL {
            assert_eq!(repair.name().parse(), Ok(repair));
            assert_eq!(serde_json::to_string(&repair).unwrap(), format!("\"{repair}\""));
            assert!(!repair.about().is_empty());
        }
        assert!("glue".parse::<Repair>().unwrap_err().contains("linear-map"));
        let known = include_str!("../../../docs/method.md");
        for repair in Repair::ALL {
            assert!(
                known.contains(&format!("\n- `{repair}`")),
                "{repair} is not in docs/method.md"
            );
        }
    }
}
