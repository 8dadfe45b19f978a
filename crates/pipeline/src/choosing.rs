//! How layers are chosen: by one criterion, or by how several criteria's choices come out.

use std::fmt;
use std::str::FromStr;

use selection::Criterion;
use serde_with::{DeserializeFromStr, SerializeDisplay};

/// What decides which layers go.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub enum Choosing {
    /// One criterion.
    By(Criterion),
    /// Of the choices of several, the one that loses least right after the repair.
    Best(Vec<Criterion>),
    /// The choices of several, each fine-tuned for a few steps, side by side; the best goes on (method.md §4).
    Race(Vec<Criterion>),
    /// A race of those that have proven themselves, watched for collapse.
    Auto,
}

/// Whose choices are looked at where none are named: one takes what training hardly uses, the other what can be replaced.
const BEST: [&str; 2] = ["igia", "linear-fit"];
/// Whose choices run where a race names none.
const RACE: [&str; 4] = ["igia", "bi", "angular", "last"];
/// Whose choices run in `auto`.
const AUTO: [&str; 5] = ["igia", "greedy", "angular", "last", "igia-bi"];

impl Choosing {
    /// Whose choices are looked at.
    pub fn criteria(&self) -> Vec<Criterion> {
        let named = |names: &[&str]| names.iter().filter_map(|name| name.parse().ok()).collect();
        match self {
            Self::By(criterion) => vec![*criterion],
            Self::Best(criteria) if criteria.is_empty() => named(&BEST),
            Self::Race(criteria) if criteria.is_empty() => named(&RACE),
            Self::Best(criteria) | Self::Race(criteria) => criteria.clone(),
            Self::Auto => named(&AUTO),
        }
    }

    /// The criterion, if it is one.
    pub fn criterion(&self) -> Option<Criterion> {
        match self {
            Self::By(criterion) => Some(*criterion),
            Self::Best(_) | Self::Race(_) | Self::Auto => None,
        }
    }

    /// Whether choices are told apart by how models come out.
    pub fn compares(&self) -> bool {
        self.criterion().is_none()
    }

    /// Whether these are fine-tuned for that.
    pub fn races(&self) -> bool {
        matches!(self, Self::Race(_) | Self::Auto)
    }
}

impl fmt::Display for Choosing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(criterion) => criterion.fmt(f),
            Self::Auto => f.write_str("auto"),
            Self::Best(criteria) => named(f, "best", criteria),
            Self::Race(criteria) => named(f, "race", criteria),
        }
    }
}

fn named(f: &mut fmt::Formatter<'_>, kind: &str, criteria: &[Criterion]) -> fmt::Result {
    f.write_str(kind)?;
    for (at, criterion) in criteria.iter().enumerate() {
        // No comma, which stands between criteria where several are compared.
        write!(f, "{}{}", if at == 0 { ':' } else { '+' }, criterion.name())?;
    }
    Ok(())
}

impl FromStr for Choosing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "best" => return Ok(Self::Best(Vec::new())),
            "race" => return Ok(Self::Race(Vec::new())),
            _ => {}
        }
        let (names, kind): (_, fn(Vec<Criterion>) -> Self) = match text.split_once(':') {
            Some(("best", names)) => (names, Self::Best),
            Some(("race", names)) => (names, Self::Race),
            _ => {
                let criterion = text.parse::<Criterion>().map(Self::By);
                return criterion.map_err(|error| {
                    format!("{error}, best, best:igia+bi, race, race:igia+bi or auto")
                });
            }
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
            0 | 1 => Err(format!("`{text}` compares nothing: name two criteria or more")),
            _ => Ok(kind(criteria)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for text in ["igia", "auto", "best", "best:last+bi", "race", "race:igia+bi+greedy"] {
            assert_eq!(text.parse::<Choosing>().unwrap().to_string(), text);
        }
        assert_eq!("race:igia,bi".parse::<Choosing>(), "race:igia+bi".parse());
        for wrong in [
            "",
            "race:",
            "best:",
            "best:igia",
            "race:igia",
            "race:igia+igia",
            "race:igia+some",
            "some",
        ] {
            assert!(wrong.parse::<Choosing>().is_err(), "{wrong}");
        }
    }

    /// None is lost by a misspelt name.
    #[test]
    fn the_usual_candidates_exist() {
        let names = |choosing: Choosing| -> Vec<_> {
            choosing.criteria().into_iter().map(Criterion::name).collect()
        };
        assert_eq!(names(Choosing::Best(Vec::new())), BEST);
        assert_eq!(names(Choosing::Race(Vec::new())), RACE);
        assert_eq!(names(Choosing::Auto), AUTO);
    }
}
