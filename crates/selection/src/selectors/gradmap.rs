//! `gradmap`: one layer after another, by the gradients of what layers give.

use evidence::{Evidence, Need};

use crate::{Request, Result, Scores, Selection, Selector};

/// Again and again the layer whose output the loss answers to least (`GradMAP`, arXiv 2602.14649), on rows held out of
/// training:
///
/// ```text
/// S ← S ∪ { argmin_l mean ‖∂L/∂x_{l+1}‖ }
/// ```
///
/// with the gradients of the model without `S`, taken again each time: one pass forth and back a layer that goes. Of
/// equal ones the later goes.
pub(crate) struct GradMap;

impl Selector for GradMap {
    fn name(&self) -> &'static str {
        "gradmap"
    }

    fn about(&self) -> &'static str {
        "repeatedly, the layer whose output has the smallest gradient on held-out rows"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Loss]
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn passes(&self, count: usize) -> f64 {
        // Forth, and forth again on the way back, each time.
        4.0 * count as f64
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        let probe = seen.losses(self.name())?;
        let mut removed: Vec<usize> = Vec::new();
        while removed.len() < request.count {
            let mut without = removed.clone();
            without.sort_unstable();
            let norms = probe.state_gradients(&without)?;
            let left = request.ordered(norms.keys().copied());
            let lowest =
                left.into_iter().min_by(|x, y| norms[x].total_cmp(&norms[y]).then(y.cmp(x)));
            let Some(lowest) = lowest else { break };
            removed.push(lowest);
        }
        Ok(Selection { removed, scores: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::tests::Formula;
    use crate::{Keep, Share};

    /// Layers whose loss makes the one before them matter: those that are low at first do not all go.
    #[test]
    fn gradients_are_taken_again_after_each_removal() {
        let losses = |set: &[usize]| {
            let own: usize =
                set.iter().map(|layer| [9, 1, 2, 4, 5, 9].get(*layer).unwrap_or(&99)).sum();
            let beside = set.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            (own + 10 * beside) as f64
        };
        let mut probe = Formula::new(losses);
        let mut seen = Evidence { num_layers: 6, losses: Some(&mut probe), ..Evidence::default() };
        let request = Request::new(6, Share::Layers(3), Keep::NONE, 0).unwrap();
        // 1 costs least; then 2 would cost 12, so 3 goes at 4; then 2 would cost 22, 4 15, and 0 19.
        assert_eq!(GradMap.select(&mut seen, &request).unwrap().removed, [1, 3, 5]);
        assert_eq!(probe.asked, [vec![], vec![1], vec![1, 3]]);
    }

    #[test]
    fn of_equal_layers_the_later_goes() {
        let mut probe = Formula::new(|set| set.len() as f64);
        let mut seen = Evidence { num_layers: 6, losses: Some(&mut probe), ..Evidence::default() };
        let request = Request::new(6, Share::Layers(3), Keep::Guard, 0).unwrap();
        assert_eq!(GradMap.select(&mut seen, &request).unwrap().removed, [4, 3, 2]);
    }
}
