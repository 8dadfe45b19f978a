//! How sure a share of so many rows is.

use serde::{Deserialize, Serialize};

/// An interval of shares between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The 95 % Wilson score interval of `hits` in `total` independent trials.
///
/// ```text
/// ( p + z²/2n ± z·√( p(1−p)/n + z²/4n² ) ) / ( 1 + z²/n ),   z = 1.96
/// ```
///
/// # Examples
///
/// ```
/// let interval = gradpruner_metrics::wilson(50, 100);
/// assert!((interval.low - 0.4038).abs() < 1e-4 && (interval.high - 0.5962).abs() < 1e-4);
/// ```
pub fn wilson(hits: usize, total: usize) -> Interval {
    if total == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p, z) = (total as f64, hits as f64 / total as f64, 1.959_963_984_540_054_f64);
    let z2n = z * z / n;
    let middle = p + z2n / 2.0;
    let half = z * (p * (1.0 - p) / n + z2n / (4.0 * n)).sqrt();
    let bound = |value: f64| (value / (1.0 + z2n)).clamp(0.0, 1.0);
    Interval { low: bound(middle - half), high: bound(middle + half) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_stay_shares() {
        assert!(wilson(0, 10).low.abs() < 1e-12);
        assert!((wilson(10, 10).high - 1.0).abs() < 1e-12);
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }
}
