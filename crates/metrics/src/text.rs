//! Figures of generated text and of losses.

/// Whether a generated reply is the reference, white space at the ends aside.
pub fn exact_match(generated: &str, reference: &str) -> bool {
    generated.trim() == reference.trim()
}

/// `exp` of the mean negative log-likelihood a token.
///
/// # Examples
///
/// ```
/// assert!((gradpruner_metrics::perplexity(2.0 * 2.0_f64.ln(), 2) - 2.0).abs() < 1e-12);
/// ```
pub fn perplexity(negative_log_likelihood: f64, tokens: usize) -> f64 {
    (negative_log_likelihood / tokens as f64).exp()
}
