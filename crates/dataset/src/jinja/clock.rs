//! Python's `datetime.now().strftime`, in universal time.

use time::OffsetDateTime;

/// The time now, as a format has it; unknown codes stay as they are.
pub(super) fn strftime_now(format: &str) -> String {
    strftime(format, OffsetDateTime::now_utc())
}

fn strftime(format: &str, now: OffsetDateTime) -> String {
    let (mut found, mut rest) = (String::new(), format);
    while let Some((before, after)) = rest.split_once('%') {
        found.push_str(before);
        let bare = after.starts_with('-');
        let code = &after[usize::from(bare)..];
        let Some(letter) = code.chars().next() else {
            found.push('%');
            rest = after;
            continue;
        };
        rest = &code[letter.len_utf8()..];
        match field(letter, now) {
            Some(text) if bare => {
                let short = text.trim_start_matches('0');
                found.push_str(if short.is_empty() { "0" } else { short });
            }
            Some(text) => found.push_str(&text),
            None => found.extend(['%', letter]),
        }
    }
    found + rest
}

fn field(letter: char, now: OffsetDateTime) -> Option<String> {
    let (weekday, month) = (now.weekday().to_string(), now.month().to_string());
    let hour12 = (now.hour() + 11) % 12 + 1;
    let two = |number: u32| format!("{number:02}");
    let (day_of_year, from_sunday) = (now.ordinal(), now.weekday().number_days_from_sunday());
    let from_monday = now.weekday().number_days_from_monday();
    // The week of the year, weeks beginning on a day so many days ago.
    let week = |ago: u8| two((u32::from(day_of_year) + 6 - u32::from(ago)) / 7);
    Some(match letter {
        'a' => weekday[..3].into(),
        'A' => weekday,
        'w' => from_sunday.to_string(),
        'u' => (from_monday + 1).to_string(),
        'd' => two(now.day().into()),
        'e' => format!("{:2}", now.day()),
        'b' | 'h' => month[..3].into(),
        'B' => month,
        'm' => two(u8::from(now.month()).into()),
        'y' => two(now.year().rem_euclid(100).unsigned_abs()),
        'Y' => now.year().to_string(),
        'C' => two(now.year().div_euclid(100).unsigned_abs()),
        'H' => two(now.hour().into()),
        'I' => two(hour12.into()),
        'M' => two(now.minute().into()),
        'S' => two(now.second().into()),
        'f' => format!("{:06}", now.microsecond()),
        'p' => if now.hour() < 12 { "AM" } else { "PM" }.into(),
        'j' => format!("{day_of_year:03}"),
        'U' => week(from_sunday),
        'W' => week(from_monday),
        'V' => two(now.iso_week().into()),
        'G' => now.to_iso_week_date().0.to_string(),
        's' => now.unix_timestamp().to_string(),
        'D' | 'x' => strftime("%m/%d/%y", now),
        'F' => strftime("%Y-%m-%d", now),
        'R' => strftime("%H:%M", now),
        'T' | 'X' => strftime("%H:%M:%S", now),
        'r' => strftime("%I:%M:%S %p", now),
        'c' => strftime("%a %b %e %H:%M:%S %Y", now),
        'n' => "\n".into(),
        't' => "\t".into(),
        // A time without a zone, as Python's `now` gives it.
        'z' | 'Z' => String::new(),
        '%' => "%".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_python() {
        let now = OffsetDateTime::from_unix_timestamp(1_722_011_696).unwrap();
        for (format, expected) in [
            ("%d %b %Y", "26 Jul 2024"),
            ("%Y-%m-%d %H:%M:%S", "2024-07-26 16:34:56"),
            ("%A, %B %-d; %I:%M %p", "Friday, July 26; 04:34 PM"),
            ("%j %U %W %V %w %y", "208 29 30 30 5 24"),
            ("100%% %c|%x|%X%", "100% Fri Jul 26 16:34:56 2024|07/26/24|16:34:56%"),
        ] {
            assert_eq!(strftime(format, now), expected);
        }
    }
}
