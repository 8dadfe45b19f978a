//! A comparison under way: how far it is, and what is best so far.

use pipeline::CellDone;

use super::cell_text;
use super::figures::Figure;
use crate::units::time_text;

/// What is best so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    best: Vec<Best>,
}

/// The best cell of a ratio, on the first set.
#[derive(Debug)]
struct Best {
    ratio: String,
    name: String,
    figure: Figure,
    value: f64,
}

impl Progress {
    /// A line on how far it is with this cell done, and on the best so far of its ratio.
    pub(crate) fn line(&mut self, cell: &CellDone) -> String {
        let CellDone { result, done, total, seconds_left } = cell;
        let mut text = format!("{done} of {total} cells done");
        if let Some(left) = seconds_left.filter(|_| done < total) {
            text.push_str(&format!(", about {} left", time_text(left)));
        }
        let Some(way) = &result.cell.way else { return text };
        let ratio = way.prune.to_string();
        let found = result.evaluations.first().and_then(Figure::judging);
        let place = self.best.iter().position(|best| best.ratio == ratio);
        if let Some((figure, value)) = found {
            let name = cell_text(&result.cell);
            let new = Best { ratio, name, figure, value };
            match place.map(|place| &mut self.best[place]) {
                None => self.best.push(new),
                Some(best) if figure.merit(value) > figure.merit(best.value) => *best = new,
                Some(_) => {}
            }
        }
        let ratio = way.prune.to_string();
        if let Some(Best { name, figure, value, .. }) =
            self.best.iter().find(|best| best.ratio == ratio)
        {
            text.push_str(&format!("; best so far {name} ({})", figure.named_text(*value)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cell, comparison};
    use super::*;

    #[test]
    fn the_best_is_that_of_the_ratio() {
        let mut worse = cell(Some(("33%", "bi")), 0, 20);
        worse["evaluations"][0]["after"]["acc"] = serde_json::json!(0.25);
        let cells = [
            cell(None, 0, 36),
            cell(Some(("33%", "igia")), 0, 30),
            worse,
            cell(Some(("50%", "igia")), 0, 10),
            cell(Some(("33%", "last")), 0, 34),
        ];
        let mut progress = Progress::default();
        let mut done = 0;
        let lines: Vec<String> = comparison(&cells)
            .cells
            .into_iter()
            .map(|result| {
                done += 1;
                let seconds_left = (done > 1).then_some(300.0);
                progress.line(&CellDone { result, done, total: 5, seconds_left })
            })
            .collect();
        assert_eq!(
            lines,
            [
                "1 of 5 cells done",
                "2 of 5 cells done, about 5 min left; best so far 33% by igia, drop, lora, seed 0 (accuracy 75.0 %)",
                "3 of 5 cells done, about 5 min left; best so far 33% by igia, drop, lora, seed 0 (accuracy 75.0 %)",
                "4 of 5 cells done, about 5 min left; best so far 50% by igia, drop, lora, seed 0 (accuracy 25.0 %)",
                "5 of 5 cells done; best so far 33% by last, drop, lora, seed 0 (accuracy 85.0 %)",
            ]
        );
    }

    /// Without choices less perplexity is better.
    #[test]
    fn less_perplexity_is_better() {
        let of = |name: &str, perplexity: f64| {
            let mut cell = cell(Some(("33%", name)), 0, 0);
            cell["evaluations"][0]["after"]["acc"] = serde_json::Value::Null;
            cell["evaluations"][0]["after"]["perplexity"] = perplexity.into();
            cell
        };
        let mut progress = Progress::default();
        let mut last = String::new();
        for result in comparison(&[of("igia", 3.0), of("bi", 2.5), of("last", 4.0)]).cells {
            last = progress.line(&CellDone { result, done: 1, total: 1, seconds_left: None });
        }
        assert!(last.ends_with("33% by bi, drop, lora, seed 0 (perplexity 2.500)"), "{last}");
    }
}
