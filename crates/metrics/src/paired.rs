//! Whether two models that answered the same questions differ.

use std::collections::BTreeMap;

/// The exact sign-flip test, two-sided: how likely leads of these sizes come to so large a sum, either way, if each is as likely
/// to be the other's:
///
/// ```text
/// p = P(|Σ_i ±l_i| ≥ |Σ_i l_i|),   each sign with probability ½
/// ```
///
/// `leads` says of each question by how often one side answered it rightly more than the other. Where that is once at most, it
/// is `McNemar`'s exact test.
///
/// # Examples
///
/// ```
/// use gradpruner_metrics::sign_flip_test;
///
/// // Five questions only the first answered rightly, none only the second: 2 / 2⁵.
/// assert!((sign_flip_test(&[1, 1, 1, 1, 1, 0]) - 0.0625).abs() < 1e-12);
/// ```
pub fn sign_flip_test(leads: &[i64]) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for lead in leads.iter().filter(|&&lead| lead != 0) {
        *counts.entry(lead.unsigned_abs()).or_default() += 1;
    }
    // Of sums by their distance from the smallest, two for each that a sign turns over.
    let mut sums = vec![1.0];
    for (&size, &count) in &counts {
        let (size, all) = (size as usize, std::mem::take(&mut sums));
        sums = vec![0.0; all.len() + size * count];
        for (turned, share) in halves(count).into_iter().enumerate() {
            for (sum, more) in sums[size * turned..].iter_mut().zip(&all) {
                *sum += share * more;
            }
        }
    }
    let most = sums.len() as i64 - 1;
    let found = leads.iter().sum::<i64>().abs();
    let outside = |at: &usize| (2 * *at as i64 - most).abs() >= found;
    (0..sums.len()).filter(outside).map(|at| sums[at]).sum::<f64>().min(1.0)
}

/// How likely each number of heads is among so many coins: `C(n, k) / 2ⁿ`.
fn halves(count: usize) -> Vec<f64> {
    // In logarithms, since 2ⁿ overflows beyond a thousand.
    let mut log_share = -(count as f64) * std::f64::consts::LN_2;
    (0..=count)
        .map(|k| {
            let share = log_share.exp();
            log_share += ((count - k) as f64 / (k + 1) as f64).ln();
            share
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(b: usize, c: usize, both: usize, expected: f64) {
        let part = |lead, count| std::iter::repeat_n(lead, count);
        let leads: Vec<i64> = part(1, b).chain(part(-1, c)).chain(part(0, both)).collect();
        let found = sign_flip_test(&leads);
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
        assert!((0.0..1e-300).contains(&sign_flip_test(&vec![1; 5000])));
    }

    /// Against trying all signs.
    #[test]
    fn leads_of_several_sizes() {
        for leads in
            [vec![3, -1, 2, 2, 0, -3, 1], vec![3, 3, -1, -1, -1, -1, -1], vec![-2; 9], vec![5]]
        {
            let found = leads.iter().sum::<i64>().abs();
            let of = |signs: u32| -> i64 {
                let signed =
                    |(at, lead): (usize, &i64)| if signs >> at & 1 == 0 { *lead } else { -lead };
                leads.iter().enumerate().map(signed).sum()
            };
            let all = 1_u32 << leads.len();
            let outside = (0..all).filter(|&signs| of(signs).abs() >= found).count();
            let expected = outside as f64 / f64::from(all);
            assert!((sign_flip_test(&leads) - expected).abs() < 1e-12, "{leads:?}");
        }
    }
}
