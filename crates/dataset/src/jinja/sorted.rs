//! A stable sort whose comparison may fail.

use super::fault::Fault;

/// Sorts by what comes before what; of equals the first stays first.
///
/// Templates decide what is compared, so there may be no order in it: some pairs cannot be compared,
/// or the comparisons contradict one another. The standard library's sort may panic at that.
pub(super) fn sorted<T>(
    mut items: Vec<T>,
    comes_before: &mut impl FnMut(&T, &T) -> Result<bool, Fault>,
) -> Result<Vec<T>, Fault> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = items.split_off(items.len() / 2);
    let mut left = sorted(items, comes_before)?.into_iter().peekable();
    let mut right = sorted(right, comes_before)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len() + right.len());
    while let (Some(first), Some(second)) = (left.peek(), right.peek()) {
        let side = if comes_before(second, first)? { &mut right } else { &mut left };
        merged.extend(side.next());
    }
    merged.extend(left.chain(right));
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fault::fail;
    use super::*;

    proptest! {
        // Few distinct keys, so that most have equals, which their positions tell apart.
        #[test]
        fn agrees_with_the_standard_library(keys in prop::collection::vec(0..8_u8, 0..100)) {
            let items: Vec<(u8, usize)> = keys.into_iter().zip(0..).collect();
            let mut expected = items.clone();
            expected.sort_by_key(|(key, _)| *key);
            prop_assert_eq!(sorted(items, &mut |a, b| Ok(a.0 < b.0)), Ok(expected));
        }

        #[test]
        fn ends_without_an_order(answers in prop::collection::vec(any::<bool>(), 2000)) {
            let mut answers = answers.into_iter().cycle();
            let found = sorted((0..100).collect(), &mut |_, _| Ok(answers.next() == Some(true)));
            let mut found = found.unwrap();
            found.sort_unstable();
            prop_assert_eq!(found, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_failure_is_handed_on() {
        let found = sorted(vec![1, 2, 3], &mut |_, _| fail("no order"));
        assert_eq!(found, Err(Fault::new("no order")));
    }
}
