//! Multiple choice: which reply a model finds most likely.

use std::cmp::Ordering;

/// How likely one reply is, given the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChoiceScore {
    /// The sum of its tokens' log-probabilities.
    pub log_likelihood: f64,
    /// Its length in UTF-8 bytes.
    pub size_bytes: usize,
}

/// The position of the likeliest choice (`acc`); of equal ones the first, as `argmax` has it.
///
/// # Examples
///
/// ```
/// use gradpruner_metrics::{ChoiceScore, pick, pick_by_bytes};
///
/// let choices = [
///     ChoiceScore { log_likelihood: -4.0, size_bytes: 2 },
///     ChoiceScore { log_likelihood: -6.0, size_bytes: 6 },
/// ];
/// assert_eq!((pick(&choices), pick_by_bytes(&choices)), (Some(0), Some(1)));
/// ```
pub fn pick(choices: &[ChoiceScore]) -> Option<usize> {
    first_largest(choices.iter().map(|choice| choice.log_likelihood))
}

/// The position of the choice that is likeliest per byte (`acc_norm`).
pub fn pick_by_bytes(choices: &[ChoiceScore]) -> Option<usize> {
    first_largest(
        choices.iter().map(|choice| choice.log_likelihood / choice.size_bytes.max(1) as f64),
    )
}

fn first_largest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let (position, _) = values.enumerate().reduce(|best, next| {
        if next.1.total_cmp(&best.1) == Ordering::Greater { next } else { best }
    })?;
    Some(position)
}
