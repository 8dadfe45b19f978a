//! Whether two models that answered the same questions differ.

/// `McNemar`'s exact test, two-sided: how likely a difference at least as large is between two that are equally often
/// right.
///
/// `one` and `other` say of each question whether it was answered rightly. Of the questions that only one side
/// answered rightly, each side has a half by chance: with `b` and `c` of them
///
/// ```text
/// p = min(1, 2 · Σ_{k ≤ min(b, c)} C(b + c, k) / 2^(b + c))
/// ```
///
/// # Panics
///
/// If the two differ in length.
///
/// # Examples
///
/// ```
/// use gradpruner_metrics::mcnemar;
///
/// // Five questions only the first answered rightly, none only the second: 2 / 2⁵.
/// assert_eq!(mcnemar(&[true; 6], &[false, false, false, false, false, true]), 0.0625);
/// ```
pub fn mcnemar(one: &[bool], other: &[bool]) -> f64 {
    assert_eq!(one.len(), other.len(), "the same questions on both sides");
    let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count();
    let (b, c) = (only(one, other), only(other, one));
    sign_test(b, c)
}

/// The exact sign test, two-sided: how likely so uneven a split as `b` to `c` is by chance.
pub fn sign_test(b: usize, c: usize) -> f64 {
    let (fewer, all) = (b.min(c), b + c);
    // C(n, k) / 2ⁿ in logarithms, since 2ⁿ overflows beyond a thousand questions.
    let mut log_term = -(all as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=fewer {
        sum += log_term.exp();
        log_term += ((all - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(b: usize, c: usize, both: usize, expected: f64) {
        let side = |first: bool, second: bool| {
            let part = |value, count| std::iter::repeat_n(value, count);
            part(first, b).chain(part(second, c)).chain(part(true, both)).collect::<Vec<_>>()
        };
        let found = mcnemar(&side(true, false), &side(false, true));
        assert!((found - expected).abs() < 1e-9 * expected.max(1e-3), "{b}, {c}: {found}");
    }

    /// As `scipy.stats.binomtest(min(b, c), b + c).pvalue`.
    #[test]
    fn known_values() {
        check(0, 0, 9, 1.0);
        check(10, 2, 5, 0.038_574_218_75);
        check(2, 10, 0, 0.038_574_218_75);
        check(6, 6, 100, 1.0);
        check(30, 15, 0, 0.035_697_803_555_194_696);
    }

    #[test]
    fn many_questions_do_not_overflow() {
        check(3000, 3000, 0, 1.0);
        let few = mcnemar(&[true; 5000], &[false; 5000]);
        assert!((0.0..1e-300).contains(&few));
    }
}
