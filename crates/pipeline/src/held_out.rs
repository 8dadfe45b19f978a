//! Rows that layers are chosen by and that are never trained on.

use std::fmt;
use std::str::FromStr;

use dataset::{Row, Sampler};
use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::{PipelineError, Result};

/// How many of the training rows are held out: a number, or a share such as `10%`.
#[derive(Debug, Clone, Copy, PartialEq, SerializeDisplay, DeserializeFromStr)]
pub enum HeldOut {
    /// So many rows.
    Rows(usize),
    /// So many percent of the rows, rounded to nearest, but one at least and no more than [`HeldOut::MOST`].
    Percent(f64),
}

impl HeldOut {
    /// Rows that a share comes to at most: more say hardly more, and each is lost to training.
    pub const MOST: usize = 128;

    /// How many of so many rows it is.
    pub fn of(self, all: usize) -> usize {
        match self {
            Self::Rows(count) => count,
            Self::Percent(percent) => {
                let least = usize::from(percent > 0.0 && all > 1);
                let count = ((all as f64 * percent / 100.0).round() as usize).max(least);
                if count < all { count.min(Self::MOST) } else { count }
            }
        }
    }

    /// How many rows they are, to within rounding, where so many are left to train on.
    pub(crate) fn beside(self, left: usize) -> usize {
        match self {
            Self::Rows(count) => count,
            Self::Percent(percent) => {
                let count = left as f64 * percent / (100.0 - percent).max(f64::MIN_POSITIVE);
                (count.round() as usize).min(Self::MOST)
            }
        }
    }

    /// Splits rows into those to train on and those held out, each in their order. Which ones go is the seed's
    /// choice.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Settings`] if no row is held out, or none is left to train on.
    pub fn split(self, rows: Vec<Row>, seed: u64) -> Result<(Vec<Row>, Vec<Row>)> {
        let all = rows.len();
        let count = self.of(all);
        if count == 0 || count >= all {
            return Err(PipelineError::Settings(format!(
                "--choose {self} holds out {count} of {all} training rows; at least one must be held out and one left \
                 to train on"
            )));
        }
        // An epoch that no training reaches: its order has nothing to do with theirs.
        let mut goes = vec![false; all];
        for &row in &Sampler::new(all, all, seed).epoch(usize::MAX)[..count] {
            goes[row] = true;
        }
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (row, goes) in rows.into_iter().zip(goes) {
            if goes { held_out.push(row) } else { train.push(row) }
        }
        Ok((train, held_out))
    }
}

impl fmt::Display for HeldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for HeldOut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is neither a number of rows nor a share such as 10%");
        match text.strip_suffix('%').map(|percent| percent.trim().parse::<f64>()) {
            Some(Ok(percent)) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
            Some(_) => Err(fail()),
            None => text.parse().map(Self::Rows).map_err(|_| fail()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> Vec<Row> {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("rows.jsonl");
        let line =
            |number: usize| format!("{{\"prompt\": \"p{number}\", \"completion\": \"c\"}}\n");
        fs_err::write(&path, (0..count).map(line).collect::<String>()).unwrap();
        dataset::read_rows(&path, &[]).unwrap()
    }

    #[test]
    fn every_row_is_in_one_part() {
        let number = |row: &Row| row.place.number;
        let split = |seed| {
            let (train, held_out) =
                "20%".parse::<HeldOut>().unwrap().split(rows(20), seed).unwrap();
            let numbers = |rows: &[Row]| rows.iter().map(number).collect::<Vec<_>>();
            (numbers(&train), numbers(&held_out))
        };
        let (train, held_out) = split(3);
        assert_eq!((train.len(), held_out.len()), (16, 4));
        let (_, most) = HeldOut::Percent(50.0).split(rows(400), 3).unwrap();
        assert_eq!(most.len(), HeldOut::MOST);
        let mut all = [train, held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=20).collect::<Vec<_>>());
        assert_eq!(split(3).1, held_out);
        assert_ne!(split(4).1, held_out);
    }

    #[test]
    fn parts_that_leave_nothing_are_refused() {
        for text in ["0%", "100%", "0", "20", "400"] {
            let error = text.parse::<HeldOut>().unwrap().split(rows(20), 0).unwrap_err();
            assert!(error.to_string().contains(&format!("--choose {text} holds out")), "{error}");
        }
        assert_eq!(HeldOut::Percent(1.0).split(rows(20), 0).unwrap().1.len(), 1);
        assert!("many".parse::<HeldOut>().is_err() && "-3%".parse::<HeldOut>().is_err());
    }
}
