//! Porter's stemmer with the changes NLTK makes to it, which is what `rouge_score` stems with.
//!
//! M.F. Porter, "An algorithm for suffix stripping", 1980; the steps keep its numbers.

/// A suffix, what replaces it, and what the rest must satisfy.
type Rule = (&'static str, &'static str, fn(&[u8]) -> bool);

/// Words NLTK stems by a list.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a word in lower case; what is not ASCII is left as it is.
///
/// # Examples
///
/// ```
/// assert_eq!(gradpruner_metrics::stem("relational"), "relat");
/// ```
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 || !word.is_ascii() {
        return word.to_owned();
    }
    let steps: [fn(Vec<u8>) -> Vec<u8>; 8] =
        [step_1a, step_1b, step_1c, step_2, step_3, step_4, step_5a, step_5b];
    let stem = steps.into_iter().fold(word.as_bytes().to_vec(), |word, step| step(word));
    String::from_utf8(stem).unwrap_or_else(|_| word.to_owned())
}

fn step_1a(word: Vec<u8>) -> Vec<u8> {
    if word.ends_with(b"ies") && word.len() == 4 {
        return cut(&word, 1, b"");
    }
    apply(word, &[("sses", "ss", any), ("ies", "i", any), ("ss", "ss", any), ("s", "", any)])
}

fn step_1b(word: Vec<u8>) -> Vec<u8> {
    if word.ends_with(b"ied") {
        return cut(&word, if word.len() == 4 { 1 } else { 2 }, b"");
    }
    if word.ends_with(b"eed") {
        return apply(word, &[("eed", "ee", longer)]);
    }
    let ending = ["ed", "ing"].into_iter().find(|ending| {
        word.strip_suffix(ending.as_bytes()).is_some_and(|stem| flags(stem).contains(&false))
    });
    let Some(ending) = ending else { return word };
    let stem = cut(&word, ending.len(), b"");
    for (suffix, replacement) in [("at", "ate"), ("bl", "ble"), ("iz", "ize")] {
        if stem.ends_with(suffix.as_bytes()) {
            return cut(&stem, suffix.len(), replacement.as_bytes());
        }
    }
    if ends_in_double_consonant(&stem) {
        return if stem.ends_with(b"l") || stem.ends_with(b"s") || stem.ends_with(b"z") {
            stem
        } else {
            cut(&stem, 1, b"")
        };
    }
    if measure(&stem) == 1 && ends_cvc(&stem) { cut(&stem, 0, b"e") } else { stem }
}

fn step_1c(word: Vec<u8>) -> Vec<u8> {
    apply(word, &[("y", "i", |stem| stem.len() > 1 && flags(stem).last() == Some(&true))])
}

fn step_2(word: Vec<u8>) -> Vec<u8> {
    if let Some(stem) = word.strip_suffix(b"alli")
        && longer(stem)
    {
        return step_2(cut(&word, 4, b"al"));
    }
    apply(
        word,
        &[
            ("ational", "ate", longer),
            ("tional", "tion", longer),
            ("enci", "ence", longer),
            ("anci", "ance", longer),
            ("izer", "ize", longer),
            ("bli", "ble", longer),
            ("alli", "al", longer),
            ("entli", "ent", longer),
            ("eli", "e", longer),
            ("ousli", "ous", longer),
            ("ization", "ize", longer),
            ("ation", "ate", longer),
            ("ator", "ate", longer),
            ("alism", "al", longer),
            ("iveness", "ive", longer),
            ("fulness", "ful", longer),
            ("ousness", "ous", longer),
            ("aliti", "al", longer),
            ("iviti", "ive", longer),
            ("biliti", "ble", longer),
            ("fulli", "ful", longer),
            // NLTK measures with the `l` that stays.
            ("logi", "log", |stem| longer(&[stem, b"l"].concat())),
        ],
    )
}

fn step_3(word: Vec<u8>) -> Vec<u8> {
    apply(
        word,
        &[
            ("icate", "ic", longer),
            ("ative", "", longer),
            ("alize", "al", longer),
            ("iciti", "ic", longer),
            ("ical", "ic", longer),
            ("ful", "", longer),
            ("ness", "", longer),
        ],
    )
}

fn step_4(word: Vec<u8>) -> Vec<u8> {
    apply(
        word,
        &[
            ("al", "", longest),
            ("ance", "", longest),
            ("ence", "", longest),
            ("er", "", longest),
            ("ic", "", longest),
            ("able", "", longest),
            ("ible", "", longest),
            ("ant", "", longest),
            ("ement", "", longest),
            ("ment", "", longest),
            ("ent", "", longest),
            ("ion", "", |stem| longest(stem) && (stem.ends_with(b"s") || stem.ends_with(b"t"))),
            ("ou", "", longest),
            ("ism", "", longest),
            ("ate", "", longest),
            ("iti", "", longest),
            ("ous", "", longest),
            ("ive", "", longest),
            ("ize", "", longest),
        ],
    )
}

fn step_5a(word: Vec<u8>) -> Vec<u8> {
    apply(word, &[("e", "", |stem| longest(stem) || (measure(stem) == 1 && !ends_cvc(stem)))])
}

fn step_5b(word: Vec<u8>) -> Vec<u8> {
    // Measured with one `l` left, as NLTK does.
    apply(word, &[("ll", "l", |stem| longest(&[stem, b"l"].concat()))])
}

/// The first rule whose suffix fits decides, whether its condition holds or not.
fn apply(word: Vec<u8>, rules: &[Rule]) -> Vec<u8> {
    for (suffix, replacement, condition) in rules {
        if let Some(stem) = word.strip_suffix(suffix.as_bytes()) {
            return if condition(stem) { [stem, replacement.as_bytes()].concat() } else { word };
        }
    }
    word
}

fn cut(word: &[u8], count: usize, replacement: &[u8]) -> Vec<u8> {
    [&word[..word.len() - count], replacement].concat()
}

fn any(_: &[u8]) -> bool {
    true
}

fn longer(stem: &[u8]) -> bool {
    measure(stem) > 0
}

fn longest(stem: &[u8]) -> bool {
    measure(stem) > 1
}

/// For each letter whether it is a consonant; a y is one unless it follows one.
fn flags(word: &[u8]) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for letter in word {
        flags.push(match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => flags.last() != Some(&true),
            _ => true,
        });
    }
    flags
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure(stem: &[u8]) -> usize {
    flags(stem).windows(2).filter(|pair| *pair == [false, true]).count()
}

fn ends_in_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., x, y] if x == y) && flags(word).last() == Some(&true)
}

/// Porter's *o, and NLTK's case of a word of a vowel and a consonant.
fn ends_cvc(word: &[u8]) -> bool {
    let flags = flags(word);
    flags == [false, true]
        || (flags.ends_with(&[true, false, true])
            && !matches!(word.last(), Some(b'w' | b'x' | b'y')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by NLTK's `PorterStemmer`.
    #[test]
    fn agrees_with_nltk() {
        for (word, expected) in REFERENCE {
            assert_eq!(stem(word), *expected, "{word}");
        }
    }

    include!("../fixtures/stems.rs");
}
