//! Python's `%` on texts.

use super::budget::{Budget, Builder};
use super::fault::{Fault, fail};
use super::value::{ListKind, Value};

/// What stands between `%` and the letter.
#[derive(Debug, Default)]
struct Layout {
    left: bool,
    zero: bool,
    plus: bool,
    blank: bool,
    width: usize,
    precision: Option<usize>,
}

/// `format % values`.
pub(super) fn percent(format: &str, values: &Value, budget: &mut Budget) -> Result<Value, Fault> {
    let list = match values {
        Value::List(list) if list.kind == ListKind::Tuple => list.items.clone(),
        other => vec![other.clone()],
    };
    let mut values_left = list.into_iter();
    let mut out = Builder::new(budget);
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push(before)?;
        rest = after;
        if let Some(after) = rest.strip_prefix('%') {
            out.push("%")?;
            rest = after;
            continue;
        }
        let mut key = None;
        if let Some(after) = rest.strip_prefix('(') {
            let Some((name, after)) = after.split_once(')') else {
                return fail("a `%(` has no `)`");
            };
            (key, rest) = (Some(name), after);
        }
        let layout = layout(&mut rest, &mut values_left)?;
        let value = match (key, values) {
            (Some(name), Value::Dict(dict)) => dict.named(name, out.budget)?.cloned(),
            (Some(_), _) => return fail("`%(` needs a dict"),
            (None, _) => values_left.next(),
        };
        let Some(value) = value else { return fail("`%` has too few values") };
        let Some(letter) = rest.chars().next() else { return fail("a `%` stands at the end") };
        rest = &rest[letter.len_utf8()..];
        one(letter, &layout, &value, &mut out)?;
    }
    out.push(rest)?;
    if values_left.next().is_some() && !matches!(values, Value::Dict(_)) {
        return fail("`%` has too many values");
    }
    Ok(Value::Text(out.finish()))
}

fn layout(rest: &mut &str, values: &mut impl Iterator<Item = Value>) -> Result<Layout, Fault> {
    let mut found = Layout::default();
    loop {
        match rest.chars().next() {
            Some('-') => found.left = true,
            Some('0') => found.zero = true,
            Some('+') => found.plus = true,
            Some(' ') => found.blank = true,
            Some('#') => {}
            _ => break,
        }
        *rest = &rest[1..];
    }
    let mut number = |rest: &mut &str| -> Result<i64, Fault> {
        if let Some(after) = rest.strip_prefix('*') {
            *rest = after;
            return match values.next().and_then(|value| value.as_int()) {
                Some(number) => Ok(number),
                None => fail("`*` in a format needs an integer"),
            };
        }
        let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, after) = rest.split_at(length);
        *rest = after;
        match digits.parse() {
            Ok(number) => Ok(number),
            Err(_) if digits.is_empty() => Ok(0),
            Err(_) => fail("a width in a format is out of range"),
        }
    };
    let width = number(rest)?;
    found.left |= width < 0;
    found.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    if let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        found.precision = Some(usize::try_from(number(rest)?).unwrap_or(0));
    }
    Ok(found)
}

fn one(letter: char, layout: &Layout, value: &Value, out: &mut Builder<'_>) -> Result<(), Fault> {
    let whole = || match (value.as_int(), value) {
        (Some(number), _) => Ok(number),
        (None, Value::Float(number)) => Ok(*number as i64),
        _ => fail(format!("`%{letter}` needs a number and gets {}", value.kind())),
    };
    let text = match letter {
        's' => value.printed(out.budget)?.to_string(),
        'r' | 'a' => {
            let mut inner = Builder::new(out.budget);
            value.represent(&mut inner)?;
            inner.finish().to_string()
        }
        'c' => match value {
            Value::Text(text) => text.to_string(),
            _ => match u32::try_from(whole()?).ok().and_then(char::from_u32) {
                Some(c) => c.to_string(),
                None => return fail("`%c` needs a character"),
            },
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => digits(letter, whole()?, layout, out.budget)?,
        'f' | 'F' => {
            let Some(number) = value.as_float() else {
                return fail(format!("`%{letter}` needs a number and gets {}", value.kind()));
            };
            let precision = layout.precision.unwrap_or(6);
            if precision > 100 {
                return fail("a precision in a format is more than 100");
            }
            format!("{number:.precision$}")
        }
        _ => return fail(format!("`%{letter}` is not supported")),
    };
    let numeric = !matches!(letter, 's' | 'r' | 'a' | 'c');
    let cut = if numeric { None } else { layout.precision };
    let text: String = match cut {
        Some(most) => text.chars().take(most).collect(),
        None => text,
    };
    pad(&text, numeric, layout, out)
}

/// An integer with as many digits at least as the precision says; the sign is not one.
fn digits(
    letter: char,
    number: i64,
    layout: &Layout,
    budget: &mut Budget,
) -> Result<String, Fault> {
    let size = number.unsigned_abs();
    let digits = match letter {
        'x' => format!("{size:x}"),
        'X' => format!("{size:X}"),
        'o' => format!("{size:o}"),
        _ => size.to_string(),
    };
    let missing = layout.precision.unwrap_or(0).saturating_sub(digits.len());
    budget.make(missing)?;
    let sign = if number < 0 { "-" } else { "" };
    Ok(format!("{sign}{}{digits}", "0".repeat(missing)))
}

fn pad(text: &str, numeric: bool, layout: &Layout, out: &mut Builder<'_>) -> Result<(), Fault> {
    let (sign, digits) = match (numeric, text.strip_prefix('-')) {
        (true, Some(digits)) => ("-", digits),
        (true, None) if layout.plus => ("+", text),
        (true, None) if layout.blank => (" ", text),
        _ => ("", text),
    };
    let length = sign.len() + digits.chars().count();
    let missing = layout.width.saturating_sub(length);
    let zero = layout.zero && numeric && !layout.left;
    if !layout.left && !zero {
        out.fill(' ', missing)?;
    }
    out.push(sign)?;
    if zero {
        out.fill('0', missing)?;
    }
    out.push(digits)?;
    if layout.left {
        out.fill(' ', missing)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: &str, number: i64, expected: &str) {
        let mut budget = Budget::new(1000, 1000);
        let found = percent(format, &Value::Int(number), &mut budget).unwrap();
        assert_eq!(found.as_text(), Some(expected), "{format} {number}");
    }

    /// As Python prints them.
    #[test]
    fn signs_and_digits_of_integers() {
        check("%x", -255, "-ff");
        check("%X", -255, "-FF");
        check("%o", -8, "-10");
        check("%x", i64::MIN, "-8000000000000000");
        check("%d", i64::MIN, "-9223372036854775808");
        check("%.3d", 5, "005");
        check("%+.3x", 10, "+00a");
        check("%6.3d|", -5, "  -005|");
        check("%-6.3o|", 8, "010   |");
        check("%06.3d", -5, "-00005");
        check("%.0d", 0, "0");
    }
}
