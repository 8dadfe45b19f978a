//! Templates by a grammar: what parses, and asks for too much.

use crate::dice::Dice;
use crate::mutate::NUMBERS;

/// What templates are made of.
pub(crate) const WORDS: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{%-",
    "-%}",
    "for",
    "endfor",
    "in",
    "if",
    "elif",
    "else",
    "endif",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "block",
    "endblock",
    "generation",
    "endgeneration",
    "recursive",
    "loop",
    "loop(messages)",
    "range(",
    "range(1000000000)",
    "namespace(",
    "batch(1000000000000000000)",
    "slice(3)",
    "indent(1000000000)",
    "tojson(indent=1000000000)",
    "join",
    "replace('a', 'aaaaaaaaaa')",
    "format(",
    "'%*d'",
    "'%1000000000d'",
    "|",
    "~",
    "*",
    "**",
    "//",
    "%",
    "is",
    "not",
    "defined",
    "messages",
    "message.content",
    "bos_token",
    "tools",
    "add_generation_prompt",
    "[::-1]",
    "[:9223372036854775807]",
    "raise_exception('no')",
    "strftime_now('%d %b %Y')",
    "strftime_now('%c' * 100000000)",
    "[loop]",
    "| length",
    "sort",
    "min",
    "dictsort",
];

const NAMES: [&str; 9] =
    ["messages", "x", "y", "ns", "ns.x", "tools", "eos_token", "messages[0].content", "loop"];

/// A template of a few statements.
pub(crate) fn template(dice: &mut Dice) -> String {
    // Names that stand for something, so that more is reached than the first error.
    let names = "{% set x = 'ab' %}{% set y = [3, 1, 2] %}{% set ns = namespace(x=1) %}";
    names.to_owned() + &statements(dice, 4)
}

fn statements(dice: &mut Dice, depth: usize) -> String {
    (0..=dice.below(3)).map(|_| statement(dice, depth)).collect()
}

fn statement(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 {
        return format!("{{{{ {} }}}}", expression(dice, 1));
    }
    let less = depth - 1;
    match dice.below(9) {
        0 | 1 => {
            let recursive = if dice.percent(20) { " recursive" } else { "" };
            let (over, body) = (expression(dice, less), statements(dice, less));
            format!("{{% for x in {over}{recursive} %}}{body}{{% endfor %}}")
        }
        2 => {
            let (test, body) = (expression(dice, less), statements(dice, less));
            format!("{{% if {test} %}}{body}{{% else %}}.{{% endif %}}")
        }
        3 => format!("{{% set x = {} %}}", expression(dice, less)),
        4 => format!(
            "{{% set ns = namespace(x={}) %}}{{% set ns.x = {} %}}",
            expression(dice, less),
            expression(dice, less)
        ),
        5 => {
            let body = statements(dice, less);
            format!("{{% macro y(x) %}}{body}{{{{ y(x) }}}}{{% endmacro %}}{{{{ y(1) }}}}")
        }
        6 => format!("{{% filter {} %}}{}{{% endfilter %}}", filter(dice), statements(dice, less)),
        _ => format!("{{{{ {} }}}}", expression(dice, less)),
    }
}

fn expression(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 {
        return match dice.below(4) {
            0 => number(dice),
            1 => "'ab %s %*d %99999d'".to_owned(),
            _ => NAMES[dice.below(NAMES.len())].to_owned(),
        };
    }
    let less = depth - 1;
    let one = expression(dice, less);
    match dice.below(12) {
        0 => format!("range({one})"),
        1 => format!("range({}, {one}, {})", expression(dice, less), expression(dice, 0)),
        2 | 3 => format!("{one}|{}", filter(dice)),
        4 => {
            let operators = ["+", "*", "~", "**", "//", "%", "==", "in", "and", "-", "<"];
            let operator = operators[dice.below(operators.len())];
            format!("({one} {operator} {})", expression(dice, less))
        }
        5 => format!("[{one}, {}]", expression(dice, less)),
        6 => format!("{{'a': {one}}}"),
        7 => format!("{one}[{}:{}]", expression(dice, 0), expression(dice, 0)),
        8 => format!("{one}.{}", method(dice)),
        9 => format!("namespace(a={one})"),
        10 => format!("({one} if {} else x)", expression(dice, less)),
        _ => one,
    }
}

/// Mostly small, so that not every loop is the one that never ends.
fn number(dice: &mut Dice) -> String {
    if dice.percent(70) {
        return dice.below(12).to_string();
    }
    NUMBERS[dice.below(NUMBERS.len())].to_owned()
}

fn filter(dice: &mut Dice) -> String {
    let number = number(dice);
    let filters = [
        "upper",
        "length",
        "list",
        "join(',')",
        "batch(N)",
        "slice(N)",
        "indent(N)",
        "tojson",
        "tojson(indent=N)",
        "replace('a', 'aaaaaaaa')",
        "reverse",
        "sort",
        "min",
        "max",
        "dictsort",
        "unique",
        "items",
        "string",
        "int",
        "float",
        "round(N)",
        "default('x')",
        "trim",
        "first",
        "last",
        "sum",
        "map('upper')",
        "select",
        "groupby('role')",
        "format(N, N)",
        "pprint",
        "urlencode",
        "lines",
        "chain(x)",
        "zip(x)",
        "title",
        "escape",
        "center(N)",
        "wordcount",
    ];
    filters[dice.below(filters.len())].replace('N', &number)
}

fn method(dice: &mut Dice) -> String {
    let number = number(dice);
    let methods = [
        "strip()",
        "split('a')",
        "replace('', 'bbbbbbbb')",
        "format(N)",
        "items()",
        "keys()",
        "get('a')",
        "center(N)",
        "ljust(N)",
        "zfill(N)",
        "join(x)",
        "startswith('a')",
        "splitlines()",
        "count('')",
        "title()",
        "append(x)",
        "x",
        "content",
        "expandtabs(N)",
        "find('')",
    ];
    methods[dice.below(methods.len())].replace('N', &number)
}
