//! What single rows say of a figure: how sure it is, and how likely the difference of two is by chance.

use finetune::{GeneratedText, RowLoss};
use metrics::{Interval, bootstrap, drawn_sign_flip_test, rouge, sign_flip_test};
use pipeline::EvaluatedOn;

use super::figures::Figure;

/// What a row has a part in a figure by.
#[derive(Debug, Clone, Copy)]
struct RowValue {
    sum: f64,
    weight: f64,
}

/// The rows that a figure is made of; perplexity's are losses.
fn values(figure: Figure, on: &EvaluatedOn) -> Vec<RowValue> {
    let whole = |sum: f64| RowValue { sum, weight: 1.0 };
    match figure {
        Figure::Accuracy => {
            on.right.iter().map(|&right| whole(f64::from(u8::from(right)))).collect()
        }
        Figure::RougeL => {
            let likeness = |reply: &GeneratedText| rouge(&reply.text, &reply.reference).rouge_l;
            on.after.generated.iter().map(|reply| whole(likeness(reply))).collect()
        }
        Figure::Perplexity => {
            let of_row = |loss: &RowLoss| RowValue { sum: loss.nats, weight: loss.tokens as f64 };
            on.losses.iter().map(of_row).collect()
        }
    }
}

/// The sign-flip test (method.md §10) of one way against another, given what both came to by each seed: each row by how much
/// better it was answered over the seeds. Of accuracies it is exact, and of one seed `McNemar`'s. `None` where one of them has no
/// figures of rows, or others.
pub(super) fn test<'a>(
    figure: Figure,
    pairs: impl Iterator<Item = (&'a EvaluatedOn, &'a EvaluatedOn)>,
) -> Option<f64> {
    let mut leads: Vec<f64> = Vec::new();
    for (own, theirs) in pairs {
        let (own, theirs) = (values(figure, own), values(figure, theirs));
        let weights = |rows: &[RowValue]| rows.iter().map(|row| row.weight).collect::<Vec<_>>();
        if own.is_empty() || weights(&own) != weights(&theirs) {
            return None;
        }
        leads.resize(own.len(), 0.0);
        for (lead, (own, theirs)) in leads.iter_mut().zip(own.iter().zip(&theirs)) {
            *lead += figure.merit(own.sum) - figure.merit(theirs.sum);
        }
    }
    if leads.is_empty() || !leads.iter().all(|lead| lead.is_finite()) {
        return None;
    }
    Some(match figure {
        Figure::Accuracy => {
            sign_flip_test(&leads.iter().map(|&lead| lead as i64).collect::<Vec<_>>())
        }
        Figure::RougeL | Figure::Perplexity => drawn_sign_flip_test(&leads),
    })
}

/// The bootstrap's 95 % interval of a figure over seeds, each row drawn with all of them; `None` where a seed has no figures of
/// rows.
pub(super) fn interval(figure: Figure, seeds: &[&EvaluatedOn]) -> Option<Interval> {
    let mut rows: Vec<(f64, f64)> = Vec::new();
    for on in seeds {
        let of_seed = values(figure, on);
        if of_seed.is_empty() || (!rows.is_empty() && rows.len() != of_seed.len()) {
            return None;
        }
        rows.resize(of_seed.len(), (0.0, 0.0));
        for (row, found) in rows.iter_mut().zip(of_seed) {
            *row = (row.0 + found.sum, row.1 + found.weight);
        }
    }
    let Interval { low, high } = bootstrap(&rows)?;
    Some(match figure {
        Figure::Perplexity => Interval { low: low.exp(), high: high.exp() },
        Figure::Accuracy | Figure::RougeL => Interval { low, high },
    })
}
