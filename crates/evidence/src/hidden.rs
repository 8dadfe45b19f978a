//! `hidden.json` of a record: how alike the hidden states before and after each layer are.

use std::path::Path;

use checkpoint::{MOST_LAYERS, read_json};
use serde::{Deserialize, Serialize};

use crate::{EvidenceError, Result};

const FORMAT: &str = "gradpruner-hidden";
const VERSION: u64 = 1;

/// The file's name in a record.
pub const HIDDEN: &str = "hidden.json";

/// Means over hidden states `x_0 … x_L`: `x_l` is the input of layer `l`, `x_{l+1}` its output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hidden {
    format: String,
    version: u64,
    /// How many rows were seen.
    pub rows: usize,
    /// How many of their tokens.
    pub tokens: usize,
    /// `C[i][j] = mean cos(x_i, x_j)` over tokens, `[L + 1][L + 1]`.
    pub cosines: Vec<Vec<f64>>,
    /// The same over the last token of each row alone.
    pub last_cosines: Vec<Vec<f64>>,
    /// Linear CKA of `x_l` and `x_{l+1}` over the last tokens of rows, a number a layer.
    pub cka: Vec<f64>,
    /// `mean ‖x_{l+1} − x_l‖ / ‖x_l‖` over tokens, a number a layer.
    pub relative_step: Vec<f64>,
}

/// What [`Hidden::new`] takes: the file without its head.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "as in `Hidden`")]
pub struct HiddenMeans {
    pub rows: usize,
    pub tokens: usize,
    pub cosines: Vec<Vec<f64>>,
    pub last_cosines: Vec<Vec<f64>>,
    pub cka: Vec<f64>,
    pub relative_step: Vec<f64>,
}

impl Hidden {
    /// The file of these means.
    pub fn new(means: HiddenMeans) -> Self {
        let HiddenMeans { rows, tokens, cosines, last_cosines, cka, relative_step } = means;
        let (format, version) = (FORMAT.into(), VERSION);
        Self { format, version, rows, tokens, cosines, last_cosines, cka, relative_step }
    }

    /// How many layers the model has.
    pub fn num_layers(&self) -> usize {
        self.cka.len()
    }

    /// Reads the file of a record, if it has one.
    ///
    /// # Errors
    ///
    /// If it is no such file, its parts disagree on the number of layers, or a number is not finite.
    pub fn read(record: &Path) -> Result<Option<Self>> {
        let path = record.join(HIDDEN);
        if !path.exists() {
            return Ok(None);
        }
        let found: Self = read_json(&path)?;
        match found.reason_against() {
            Some(what) => Err(EvidenceError::File { path, what }),
            None => Ok(Some(found)),
        }
    }

    fn reason_against(&self) -> Option<String> {
        let Self { format, version, cosines, last_cosines, cka, relative_step, .. } = self;
        if format != FORMAT || *version != VERSION {
            return Some(format!("it says `{format}` version {version}, not `{FORMAT}` {VERSION}"));
        }
        let layers = cka.len();
        if !(1..=MOST_LAYERS).contains(&layers) {
            return Some(format!("it is of {layers} layers; 1 to {MOST_LAYERS} are supported"));
        }
        let is_square = |matrix: &[Vec<f64>]| {
            matrix.len() == layers + 1 && matrix.iter().all(|row| row.len() == layers + 1)
        };
        if !(is_square(cosines) && is_square(last_cosines) && relative_step.len() == layers) {
            return Some(format!("its parts are not all of {layers} layers"));
        }
        let matrices = cosines.iter().chain(last_cosines).flatten();
        let all = matrices.chain(cka).chain(relative_step);
        all.into_iter().find(|x| !x.is_finite()).map(|x| format!("it holds {x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_files_are_refused() {
        let folder = testkit::temporary_folder();
        assert_eq!(Hidden::read(folder.path()).unwrap(), None);
        let square = vec![vec![1.0; 3]; 3];
        let good = Hidden::new(HiddenMeans {
            rows: 2,
            tokens: 9,
            cosines: square.clone(),
            last_cosines: square,
            cka: vec![0.5; 2],
            relative_step: vec![0.1; 2],
        });
        let check = |hidden: &Hidden| {
            let text = serde_json::to_string(hidden).unwrap();
            fs_err::write(folder.path().join(HIDDEN), text).unwrap();
            Hidden::read(folder.path())
        };
        assert_eq!(check(&good).unwrap().unwrap(), good);
        let mut other = good.clone();
        other.cosines.pop();
        assert!(check(&other).unwrap_err().to_string().contains("not all of 2 layers"));
        let other = Hidden { version: 2, ..good };
        assert!(check(&other).unwrap_err().to_string().contains("version 2"));
    }
}
