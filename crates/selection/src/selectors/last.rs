//! `last`: the last layers, a control.

use evidence::{Evidence, Need};

use crate::{Request, Result, Scores, Selection, Selector};

/// The last layer but one, and those before it (Lu et al., arXiv 2411.15558).
pub(crate) struct Last;

impl Selector for Last {
    fn name(&self) -> &'static str {
        "last"
    }

    fn about(&self) -> &'static str {
        "the second-to-last layer and those before it, a control"
    }

    fn needs(&self) -> &'static [Need] {
        &[]
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, _: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let last = request.num_layers.saturating_sub(1);
        let order = (0..last).rev().chain([last]);
        Ok(Selection { removed: request.first_of(order), scores: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keep, Share};

    #[test]
    fn the_last_but_one_backwards() {
        let choose = |count, keep| {
            let request = Request::new(6, Share::Layers(count), keep, 0).unwrap();
            Last.select(&mut Evidence::default(), &request).unwrap().removed
        };
        assert_eq!(choose(3, Keep::Guard), [4, 3, 2]);
        assert_eq!(choose(5, Keep::NONE), [4, 3, 2, 1, 0]);
        assert_eq!(choose(2, Keep::Ends { first: 0, last: 3 }), [2, 1]);
    }
}
