//! Elements divided by a number (method.md §8, `scale`).

use rayon::prelude::*;

/// Elements a thread works on at a time.
const BLOCK: usize = 1 << 14;

/// Divides each element by a number, in f64, rounded to f32 once: `W'[n] = W[n] / α`.
///
/// # Examples
///
/// ```
/// let mut weight = [1.0, -3.0];
/// gradpruner_merge::divide(&mut weight, 2.0);
/// assert_eq!(weight, [0.5, -1.5]);
/// ```
pub fn divide(weight: &mut [f32], divisor: f64) {
    weight.par_chunks_mut(BLOCK).for_each(|weight| {
        for value in weight {
            *value = (f64::from(*value) / divisor) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    proptest! {
        #[test]
        fn agrees_with_reference_to_the_bit(
            weight in prop::collection::vec(-2.0_f32..2.0, 0..200), divisor in 0.01..100.0_f64,
        ) {
            let mut found = weight.clone();
            divide(&mut found, divisor);
            prop_assert_eq!(found, reference::divide(&weight, divisor));
            // Law: by a power of two and back changes nothing.
            let mut still = weight.clone();
            divide(&mut still, 8.0);
            divide(&mut still, 0.125);
            prop_assert_eq!(still, weight);
        }
    }
}
