//! How layers are chosen: by one criterion, or by a race of several criteria's choices.

use std::fmt;
use std::str::FromStr;

use selection::Criterion;
use serde_with::{DeserializeFromStr, SerializeDisplay};

/// What decides which layers go.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum Choosing {
    /// One criterion.
    By(Criterion),
    /// The choices of several, each fine-tuned for a few steps, side by side; the best goes on (method.md §4).
    Race(Vec<Criterion>),
    /// A race of those that have proven themselves, watched for collapse.
    Auto,
}

/// Whose choices run where a race names none.
const RACE: [&str; 4] = ["igia", "bi", "angular", "last"];
/// Whose choices run in `auto`.
const AUTO: [&str; 5] = ["igia", "greedy", "angular", "last", "igia-bi"];

impl Choosing {
    /// Whose choices are looked at; more than one make a race.
    pub fn criteria(&self) -> Vec<Criterion> {
        let named = |names: &[&str]| names.iter().filter_map(|name| name.parse().ok()).collect();
        match self {
            Self::By(criterion) => vec![*criterion],
            Self::Race(criteria) if criteria.is_empty() => named(&RACE),
            Self::Race(criteria) => criteria.clone(),
            Self::Auto => named(&AUTO),
        }
    }

    /// The criterion, if it is one.
    pub fn criterion(&self) -> Option<Criterion> {
        match self {
            Self::By(criterion) => Some(*criterion),
            Self::Race(_) | Self::Auto => None,
        }
    }

    /// Whether choices race.
    pub fn races(&self) -> bool {
        self.criterion().is_none()
    }
}

impl fmt::Display for Choosing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(criterion) => criterion.fmt(f),
            Self::Auto => f.write_str("auto"),
            Self::Race(criteria) if criteria.is_empty() => f.write_str("race"),
            Self::Race(criteria) => {
                let names: Vec<_> = criteria.iter().map(|criterion| criterion.name()).collect();
                // No comma, which stands between criteria where several are compared.
                write!(f, "race:{}", names.join("+"))
            }
        }
    }
}

impl FromStr for Choosing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "race" => return Ok(Self::Race(Vec::new())),
            _ => {}
        }
        let Some(names) = text.strip_prefix("race:") else {
            let criterion = text.parse::<Criterion>();
            return criterion
                .map(Self::By)
                .map_err(|error| format!("{error}, race, race:igia+bi or auto"));
        };
        let mut criteria: Vec<Criterion> = Vec::new();
        for name in names.split(['+', ',']) {
            let criterion = name.parse()?;
            if criteria.contains(&criterion) {
                return Err(format!("`{name}` stands twice in `{text}`"));
            }
            criteria.push(criterion);
        }
        match criteria.len() {
            0 | 1 => Err(format!("`{text}` is no race: it takes two criteria or more")),
            _ => Ok(Self::Race(criteria)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for text in ["igia", "auto", "race", "race:igia+bi+greedy"] {
            assert_eq!(text.parse::<Choosing>().unwrap().to_string(), text);
        }
        assert_eq!("race:igia,bi".parse::<Choosing>(), "race:igia+bi".parse());
        for wrong in ["", "race:", "race:igia", "race:igia+igia", "race:igia+some", "some"] {
            assert!(wrong.parse::<Choosing>().is_err(), "{wrong}");
        }
    }

    /// None is lost by a misspelt name.
    #[test]
    fn the_usual_candidates_exist() {
        let names = |choosing: Choosing| -> Vec<_> {
            choosing.criteria().into_iter().map(Criterion::name).collect()
        };
        assert_eq!(names(Choosing::Race(Vec::new())), RACE);
        assert_eq!(names(Choosing::Auto), AUTO);
    }
}
