//! `angular`: the run of layers that turns its input least.

use evidence::{Evidence, Need};

use crate::{Request, Result, Scores, Selection, SelectionError, Selector};

/// The run of `n` consecutive layers with the smallest angle between its input and its output, at the last tokens of
/// rows (Gromov et al., arXiv 2403.17887):
///
/// ```text
/// d(l) = arccos(mean cos(x_l, x_{l+n})) / π
/// ```
///
/// Of equal runs the later goes.
pub(crate) struct Angular;

impl Selector for Angular {
    fn name(&self) -> &'static str {
        "angular"
    }

    fn about(&self) -> &'static str {
        "the run of layers with the smallest angle between its input and its output"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Hidden]
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let cosines = &seen.hidden(self.name())?.last_cosines;
        let angle = |first: usize| cosines[first][first + request.count].clamp(-1.0, 1.0).acos();
        let may_go = |first: &usize| {
            (*first..first + request.count).all(|layer| request.candidates.contains(&layer))
        };
        let first = (0..=request.num_layers - request.count)
            .filter(may_go)
            .min_by(|&x, &y| angle(x).total_cmp(&angle(y)).then(y.cmp(&x)));
        let Some(first) = first else {
            return Err(SelectionError::Keep(format!(
                "leaves no {} layers in a row, which `angular` wants; prune fewer, or keep fewer",
                request.count
            )));
        };
        Ok(Selection { removed: (first..first + request.count).rev().collect(), scores: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::hidden;
    use crate::{Keep, Share};

    #[test]
    fn the_run_that_turns_least() {
        let mut hidden = hidden(6);
        let mut check = |at: [(usize, usize); 2], keep, expected: &[usize]| {
            hidden.last_cosines = vec![vec![0.1; 7]; 7];
            for (value, (i, j)) in [0.9, 0.5].into_iter().zip(at) {
                hidden.last_cosines[i][j] = value;
            }
            let mut seen = Evidence { hidden: Some(hidden.clone()), ..Evidence::default() };
            let request = Request::new(6, Share::Layers(2), keep, 0).unwrap();
            assert_eq!(Angular.select(&mut seen, &request).unwrap().removed, expected);
        };
        check([(3, 5), (1, 3)], Keep::Guard, &[4, 3]);
        check([(0, 2), (1, 3)], Keep::Guard, &[2, 1]);
        check([(0, 2), (1, 3)], Keep::NONE, &[1, 0]);
        // All alike: the last that may go.
        check([(1, 6), (0, 6)], Keep::NONE, &[5, 4]);
    }
}
