//! How far two rankings of the same things agree.

/// Kendall's rank correlation τ-b: 1 for the same order, −1 for the reverse, 0 for neither.
///
/// `None` if there are fewer than two values, or all on one side are equal. Time `O(n²)`.
///
/// # Panics
///
/// If the two differ in length.
///
/// # Examples
///
/// ```
/// use gradpruner_metrics::kendall_tau;
///
/// assert_eq!(kendall_tau(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), Some(1.0));
/// ```
pub fn kendall_tau(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "as many values on both sides");
    let (mut agreement, mut untied_x, mut untied_y) = (0, 0, 0);
    for later in 1..x.len() {
        for earlier in 0..later {
            let of_x = sign(x[later] - x[earlier]);
            let of_y = sign(y[later] - y[earlier]);
            agreement += of_x * of_y;
            untied_x += of_x * of_x;
            untied_y += of_y * of_y;
        }
    }
    let most = (f64::from(untied_x) * f64::from(untied_y)).sqrt();
    (most > 0.0).then(|| f64::from(agreement) / most)
}

fn sign(difference: f64) -> i32 {
    i32::from(difference > 0.0) - i32::from(difference < 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let order = [1.0, 2.0, 3.0, 4.0, 5.0];
        let reverse: Vec<f64> = order.iter().rev().copied().collect();
        assert_eq!(kendall_tau(&order, &reverse), Some(-1.0));
        // One pair of ten is swapped.
        assert_eq!(kendall_tau(&order, &[2.0, 1.0, 3.0, 4.0, 5.0]), Some(0.8));
        // A tie on one side: (5 − 0) / √(6 · 5), as scipy.stats.kendalltau has it.
        let tied = kendall_tau(&order[..4], &[1.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 5.0 / 30.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(kendall_tau(&order, &[7.0; 5]), None);
        assert_eq!(kendall_tau(&[1.0], &[1.0]), None);
    }
}
