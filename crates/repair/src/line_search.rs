//! How far a repair goes: the step with which least is lost.

use serde::{Deserialize, Serialize};

/// The steps that are tried, ascending; 0 refuses the repair.
pub const STEPS: [f64; 4] = [0.0, 0.25, 0.5, 1.0];

/// A step, and what is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedStep {
    /// How much of the repair is done, from 0 to 1.
    pub step: f64,
    /// `D` on held-out rows (method.md §3); `None` if it is not finite.
    pub loss: Option<f64>,
}

/// What is lost with every step, and the best of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LineSearch {
    /// The best; 0 if the repair is refused.
    pub step: f64,
    /// All, in the order of [`STEPS`].
    pub tried: Vec<TriedStep>,
}

/// Tries [`STEPS`] and takes the one with which least is lost; of equal ones the smaller. A step whose loss is not finite,
/// which is `None`, is never taken, unless all are so: then it is 0.
///
/// # Errors
///
/// What `loss` fails with.
pub fn line_search<E>(
    loss: &mut dyn FnMut(f64) -> Result<Option<f64>, E>,
) -> Result<LineSearch, E> {
    let tried = STEPS
        .into_iter()
        .map(|step| Ok(TriedStep { step, loss: loss(step)?.filter(|loss| loss.is_finite()) }))
        .collect::<Result<Vec<_>, E>>()?;
    let lost = |tried: &TriedStep| tried.loss.unwrap_or(f64::INFINITY);
    let least = tried.iter().min_by(|x, y| lost(x).total_cmp(&lost(y)));
    let step = least.map_or(0.0, |tried| tried.step);
    Ok(LineSearch { step, tried })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(loss: impl Fn(f64) -> f64) -> f64 {
        let found: Result<_, ()> = line_search(&mut |step| Ok(Some(loss(step))));
        let found = found.unwrap();
        assert!(found.tried.iter().map(|tried| tried.step).eq(STEPS));
        let finite = |step| Some(loss(step)).filter(|loss| loss.is_finite());
        assert!(found.tried.iter().all(|tried| tried.loss == finite(tried.step)));
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
        for nan in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(check(|step| if step > 0.3 { nan } else { -step }), 0.25);
            assert_eq!(check(|_| nan), 0.0);
        }
        let some = line_search(&mut |step| Ok::<_, ()>((step < 0.3).then_some(-step))).unwrap();
        assert_eq!(some.step, 0.25);
        // Written and read, what is not finite stays so.
        let text = serde_json::to_string(&some).unwrap();
        assert!(text.contains(r#"{"step":0.5,"loss":null}"#), "{text}");
        assert_eq!(serde_json::from_str::<LineSearch>(&text).unwrap(), some);
        assert_eq!(line_search(&mut |_| Err::<Option<f64>, _>("no")), Err("no"));
    }
}
