//! How far a repair goes: the step with which least is lost.

use serde::{Deserialize, Serialize};

/// The steps that are tried, ascending; 0 refuses the repair.
pub const STEPS: [f64; 4] = [0.0, 0.25, 0.5, 1.0];

/// A step, and what is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedStep {
    /// How much of the repair is done, from 0 to 1.
    pub step: f64,
    /// `D` on held-out rows (method.md §3).
    pub loss: f64,
}

/// What is lost with every step, and the best of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LineSearch {
    /// The best; 0 if the repair is refused.
    pub step: f64,
    /// All, in the order of [`STEPS`].
    pub tried: Vec<TriedStep>,
}

/// Tries [`STEPS`] and takes the one with which least is lost; of equal ones the smaller.
///
/// # Errors
///
/// What `loss` fails with.
pub fn line_search<E>(loss: &mut dyn FnMut(f64) -> Result<f64, E>) -> Result<LineSearch, E> {
    let tried = STEPS
        .into_iter()
        .map(|step| Ok(TriedStep { step, loss: loss(step)? }))
        .collect::<Result<Vec<_>, E>>()?;
    // What is not a number is of no step that could be taken, whatever its sign.
    let lost = |tried: &TriedStep| if tried.loss.is_nan() { f64::INFINITY } else { tried.loss };
    let least = tried.iter().min_by(|x, y| lost(x).total_cmp(&lost(y)));
    let step = least.map_or(0.0, |tried| tried.step);
    Ok(LineSearch { step, tried })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(loss: impl Fn(f64) -> f64) -> f64 {
        let found: Result<_, ()> = line_search(&mut |step| Ok(loss(step)));
        let found = found.unwrap();
        assert!(found.tried.iter().map(|tried| tried.step).eq(STEPS));
        assert!(found.tried.iter().all(|tried| tried.loss.total_cmp(&loss(tried.step)).is_eq()));
        found.step
    }

    #[test]
    fn least_is_lost_with_the_step() {
        assert_eq!(check(|step| (step - 0.4_f64).powi(2)), 0.5);
        assert_eq!(check(|step| (step - 0.3_f64).powi(2)), 0.25);
        assert_eq!(check(|step| -step), 1.0);
        assert_eq!(check(|step| step), 0.0);
        // Of equal ones the smaller: a repair that helps nothing is refused.
        assert_eq!(check(|_| 1.0), 0.0);
        // What overflows is never taken.
        for nan in [f64::NAN, -f64::NAN] {
            assert_eq!(check(|step| if step > 0.3 { nan } else { -step }), 0.25);
        }
        assert_eq!(line_search(&mut |_| Err::<f64, _>("no")), Err("no"));
    }
}
