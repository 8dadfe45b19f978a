//! ROUGE-1, ROUGE-2 and ROUGE-L as Python's `rouge_score` computes them, with its stemmer.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::stem;

/// F-measures between 0 and 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RougeScores {
    /// Overlap of words.
    pub rouge1: f64,
    /// Overlap of pairs of words.
    pub rouge2: f64,
    /// Longest common subsequence of words.
    #[serde(rename = "rougeL")]
    pub rouge_l: f64,
}

/// The three F-measures of a generated text against its reference.
///
/// # Examples
///
/// ```
/// let scores = gradpruner_metrics::rouge("The cat sat", "the cats sat down");
/// assert!((scores.rouge1 - 6.0 / 7.0).abs() < 1e-12);
/// ```
pub fn rouge(generated: &str, reference: &str) -> RougeScores {
    let (found, expected) = (words(generated), words(reference));
    RougeScores {
        rouge1: overlap(&found, &expected, 1),
        rouge2: overlap(&found, &expected, 2),
        rouge_l: f_measure(longest_common(&found, &expected), found.len(), expected.len()),
    }
}

/// Lower case, runs of ASCII letters and digits; words of more than three letters are stemmed.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(|word| if word.len() > 3 { stem(word) } else { word.to_owned() })
        .collect()
}

fn overlap(found: &[String], expected: &[String], length: usize) -> f64 {
    let count = |words: &[String]| {
        let mut counts: HashMap<Vec<String>, usize> = HashMap::new();
        for gram in words.windows(length) {
            *counts.entry(gram.to_vec()).or_default() += 1;
        }
        counts
    };
    let (found, expected) = (count(found), count(expected));
    let common = expected
        .iter()
        .map(|(gram, &count)| count.min(found.get(gram).copied().unwrap_or(0)))
        .sum();
    f_measure(common, found.values().sum(), expected.values().sum())
}

fn f_measure(common: usize, found: usize, expected: usize) -> f64 {
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / found as f64, common as f64 / expected as f64);
    2.0 * precision * recall / (precision + recall)
}

fn longest_common(one: &[String], other: &[String]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for word in one {
        let mut diagonal = 0;
        for (j, against) in other.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == against { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[other.len()]
}

#[cfg(test)]
#[expect(clippy::unreadable_literal, reason = "printed by another program")]
mod tests {
    use super::*;

    /// Printed by `rouge_score` 0.1.2 with `use_stemmer=True`.
    #[test]
    fn agrees_with_rouge_score() {
        for (generated, reference, expected) in REFERENCE {
            let RougeScores { rouge1, rouge2, rouge_l } = rouge(generated, reference);
            for (found, expected) in [rouge1, rouge2, rouge_l].into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9, "{generated}: {found} is not {expected}");
            }
        }
    }

    include!("../fixtures/rouge.rs");
}
