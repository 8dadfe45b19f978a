//! How sure a mean is, and the difference of two, by drawing: what has no formula.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::Interval;

/// Draws of a bootstrap.
const RESAMPLES: usize = 2000;
/// Draws of a sign-flip test.
const FLIPS: usize = 10_000;

/// The 95 % interval of `Σ x / Σ w` over rows, by the bootstrap (Efron, 1979): the 2.5 and 97.5 percentiles of it over 2,000
/// draws of as many rows, with replacement. `None` of fewer than two rows, or where one of the draws is not finite. The same rows
/// give the same interval.
///
/// # Examples
///
/// ```
/// use gradpruner_metrics::bootstrap;
///
/// let replies = [(0.2, 1.0), (0.4, 1.0), (0.9, 1.0), (0.5, 1.0)];
/// let interval = bootstrap(&replies).unwrap();
/// assert!(0.2 < interval.low && interval.low < 0.5 && 0.5 < interval.high && interval.high < 0.9);
/// ```
pub fn bootstrap(rows: &[(f64, f64)]) -> Option<Interval> {
    if rows.len() < 2 {
        return None;
    }
    let mut draw = ChaCha8Rng::seed_from_u64(0);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (mut sum, mut weight) = (0.0, 0.0);
            for _ in 0..rows.len() {
                // Of 32 bits, so that the first rows are drawn oftener by 10⁻⁴ at most, in a set of 400,000.
                let at = (u64::from(draw.next_u32()) * rows.len() as u64) >> 32;
                let (x, w) = rows[at as usize];
                sum += x;
                weight += w;
            }
            sum / weight
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[(share * (RESAMPLES - 1) as f64).round() as usize];
    let (low, high) = (at(0.025), at(0.975));
    ratios.iter().all(|ratio| ratio.is_finite()).then_some(Interval { low, high })
}

/// As [`sign_flip_test`](crate::sign_flip_test) for leads of any size, by 10,000 draws of signs:
///
/// ```text
/// p = (1 + #{draws: |Σ_i ±l_i| ≥ |Σ_i l_i|}) / (1 + 10,000)
/// ```
///
/// The same leads give the same `p`.
pub fn drawn_sign_flip_test(leads: &[f64]) -> f64 {
    let found = leads.iter().sum::<f64>().abs();
    // A sum in another order is the same sum.
    let least = found - 1e-9 * leads.iter().map(|lead| lead.abs()).sum::<f64>();
    let mut draw = ChaCha8Rng::seed_from_u64(0);
    let is_outside = |_: &usize| {
        let mut sum = 0.0;
        for part in leads.chunks(64) {
            let signs = draw.next_u64();
            for (at, lead) in part.iter().enumerate() {
                sum += if signs >> at & 1 == 0 { *lead } else { -lead };
            }
        }
        sum.abs() >= least
    };
    let outside = (0..FLIPS).filter(is_outside).count();
    (1 + outside) as f64 / (1 + FLIPS) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign_flip_test;

    /// Of a mean of many rows, the interval is the normal one: 1.96 standard errors to either side.
    #[test]
    fn of_many_rows_it_is_the_normal_interval() {
        let rows: Vec<(f64, f64)> = (0..1000).map(|row| (f64::from(row % 10), 1.0)).collect();
        let interval = bootstrap(&rows).unwrap();
        let error = 8.25_f64.sqrt() / 1000_f64.sqrt();
        for (found, expected) in
            [(interval.low, 4.5 - 1.96 * error), (interval.high, 4.5 + 1.96 * error)]
        {
            assert!((found - expected).abs() < 0.15 * error, "{interval:?}");
        }
    }

    /// Rows count by their weights, and rows that are all alike leave no doubt.
    #[test]
    fn weights_count() {
        let interval = bootstrap(&[(4.0, 2.0), (2.0, 1.0), (10.0, 5.0)]).unwrap();
        assert_eq!((interval.low, interval.high), (2.0, 2.0));
        // A row of weight 1,000 and ratio 3 among light ones of ratio 1.
        let rows: Vec<_> =
            (0..50).map(|row| if row % 2 == 0 { (3e3, 1e3) } else { (1.0, 1.0) }).collect();
        let interval = bootstrap(&rows).unwrap();
        assert!(2.9 < interval.low && interval.high < 3.0, "{interval:?}");
        assert_eq!(bootstrap(&[(1.0, 1.0)]), None);
        assert_eq!(bootstrap(&[(f64::INFINITY, 1.0), (1.0, 1.0)]), None);
        assert_eq!(bootstrap(&[(1.0, 0.0), (1.0, 0.0)]), None);
    }

    /// Whole leads, of which the exact test is known.
    #[test]
    fn drawn_signs_come_near_the_exact_test() {
        for whole in [vec![1_i64; 5], vec![3, -1, 2, 2, 0, -3, 1, 4, 4, 2], vec![1, -1, 2, -2, 1]] {
            let leads: Vec<f64> = whole.iter().map(|&lead| 0.1 * lead as f64).collect();
            let (found, exact) = (drawn_sign_flip_test(&leads), sign_flip_test(&whole));
            assert!((found - exact).abs() < 0.015, "{whole:?}: {found} {exact}");
        }
        assert_eq!(drawn_sign_flip_test(&[]), 1.0);
        assert!(drawn_sign_flip_test(&[0.3; 40]) < 2e-4);
    }
}
