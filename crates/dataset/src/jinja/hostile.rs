//! Templates that are out for the machine: each ends soon, with an error that says what it ran into.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;

use super::{Program, Size};

/// Parses and renders; the error must name what was reached, within the time.
fn check(source: &str, expected: &str) {
    let started = Instant::now();
    let variables = [("messages", json!([{"role": "user", "content": "x"}]))];
    let found = Program::parse(source)
        .and_then(|program| program.render(&variables, Size { turns: 1, bytes: 100 }));
    let took = started.elapsed();
    let shown: String = source.chars().take(100).collect();
    match found {
        Ok(found) => panic!("{shown} gave {} bytes", found.text.len()),
        Err(fault) => assert!(fault.what.contains(expected), "{shown}: {fault}"),
    }
    assert!(took < Duration::from_secs(5), "{shown} took {took:?}");
}

const STEPS: &str = "limit on steps";
const MEMORY: &str = "limit on memory";

#[test]
fn loops_within_loops() {
    let loops = |inner: &str| {
        let range = "{% for i in range(99999) %}";
        format!("{}{inner}{}", range.repeat(5), "{% endfor %}".repeat(5))
    };
    check(&loops(""), STEPS);
    check(&loops("{% set x = messages | list %}"), STEPS);
    check("{{ range(10**18) }}", "`range` is limited");
    check("{{ range(-9223372036854775807, 9223372036854775807) }}", "`range` is limited");
    check("{{ range(0, 9223372036854775807, -9223372036854775807 - 1) }}{{ 1 // 0 }}", "zero");
    check("{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}", "limit of 150 levels");
    check(
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(22) }}",
        STEPS,
    );
}

#[test]
fn widths_in_formats() {
    check("{{ '%*d' % (10**9, 1) }}", MEMORY);
    check("{{ '%1000000000d' % 1 }}", MEMORY);
    check("{{ '%99999999999999999999d' % 1 }}", "out of range");
    check("{{ '%.*f' % (10**9, 1.0) }}", "precision");
    check("{{ '%-*s' | format(10**18, 'x') }}", MEMORY);
    for method in ["center", "ljust", "rjust", "zfill"] {
        check(&format!("{{{{ 'x'.{method}(10**18) }}}}"), MEMORY);
    }
    check("{{ 'x' | center(10**10) }}", MEMORY);
}

#[test]
fn indents() {
    check("{{ ('a\\n' * 1000) | indent(10**7) }}", MEMORY);
    check("{{ 'a\\nb' | indent(10**18) }}", MEMORY);
    check("{{ [1] | tojson(indent=10**18) }}", MEMORY);
    check("{{ ([[1]] * 100000) | tojson(indent=100000) }}", MEMORY);
}

#[test]
fn batches_and_slices() {
    check("{{ [1] | batch(10**18, 0) }}", MEMORY);
    check("{{ [1] | slice(10**18) | list }}", MEMORY);
    check("{{ ([1] * 10**18) | length }}", MEMORY);
    check("{{ ([[1] * 1000] * 10**12) | sum(start=[]) }}", MEMORY);
    check(
        "{% set x = range(99999) | list %}{% for i in x %}{% set y = x[0:] %}{% endfor %}",
        MEMORY,
    );
}

#[test]
fn long_texts() {
    check("{{ 'x' * 10**9 }}", MEMORY);
    check("{{ 'x' * 10**18 * 10**18 }}", MEMORY);
    check("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "bytes of output");
    let text = "y".repeat(100_000);
    check(&format!("{{% for i in range(99999) %}}{text}{{% endfor %}}"), "bytes of output");
    check(
        &format!("{{% set x %}}{{% for i in range(99999) %}}{text}{{% endfor %}}{{% endset %}}"),
        MEMORY,
    );
}

#[test]
fn texts_that_double() {
    let doubling = |step: &str| {
        format!(
            "{{% set ns = namespace(s='xx', l=[1]) %}}{{% for i in range(200) %}}{step}{{% endfor %}}"
        )
    };
    check(&doubling("{% set ns.s = ns.s ~ ns.s %}"), MEMORY);
    check(&doubling("{% set ns.s = ns.s + ns.s %}"), MEMORY);
    check(&doubling("{% set ns.s = [ns.s, ns.s] | join %}"), MEMORY);
    check(&doubling("{% set ns.s = ns.s.replace('x', 'xx') %}"), "limit on");
    check(&doubling("{% set ns.s = ns.s | replace('', 'xx') %}"), "limit on");
    check(&doubling("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"), MEMORY);
    check(&doubling("{% set ns.s = '{0}{0}'.format(ns.s) %}"), MEMORY);
    check(&doubling("{% set ns.s = ns.s | tojson | tojson | tojson %}"), "limit on");
    check(&doubling("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"), MEMORY);
    check(&doubling("{% set ns.l = ns.l + ns.l %}"), MEMORY);
}

#[test]
fn things_that_hold_themselves() {
    check("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}", "hold a namespace");
    check("{% set ns = namespace() %}{% set ns.l = [[ns]] %}{{ ns.l }}", "hold a namespace");
    check("{{ namespace(a=namespace()) }}", "hold a namespace");
    let deeper = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}";
    check(&format!("{deeper}{{% set ns.x = [ns.x] %}}{{% endfor %}}"), "nested more than");
    check(&format!("{deeper}{{% set ns.x = {{'a': ns.x}} %}}{{% endfor %}}"), "nested more than");
    let looped = "{% set ns = namespace(x=[1]) %}{% for a in range(99999) %}{% for i in ns.x %}";
    check(
        &format!("{looped}{{% set ns.x = [loop] %}}{{% endfor %}}{{% endfor %}}"),
        "nested more than",
    );
    // Few lists that are very many when gone through.
    let wide = "{% set ns = namespace(x=[1]) %}{% for i in range(150) %}\
        {% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    check(&format!("{wide}{{{{ ns.x }}}}"), STEPS);
    check(&format!("{wide}{{{{ ns.x | tojson }}}}"), STEPS);
    check(&format!("{wide}{{% set a = ns.x %}}{{{{ [a, 1] == [a, 2] }}}}"), STEPS);
    check(&format!("{wide}{{{{ 'q' in [ns.x, ns.x] or [ns.x] < [ns.x] }}}}"), STEPS);
}

/// What goes through long texts, or many names, again and again.
#[test]
fn scans() {
    let often = |before: &str, step: &str| {
        format!("{before}{{% for i in range(99999) %}}{step}{{% endfor %}}{{{{ 1 // 0 }}}}")
    };
    let long = "{% set x = 'a' * 100000000 %}";
    check(&often(long, "{% set y = x | length %}"), STEPS);
    check(&often(long, "{% set y = x is lower %}"), STEPS);
    check(&often(long, "{% set y = x is upper %}"), STEPS);
    check(&often("{% set x = '1' * 100000000 %}", "{% set y = x | int %}"), STEPS);
    check(&often("{% set x = '1' * 100000000 %}", "{% set y = x | float %}"), STEPS);
    let affixes = "{% set x = 'a' * 1000000 %}{% set y = [x[1:] ~ 'b'] * 99999 %}";
    check(&often(affixes, "{% set z = x.startswith(y) %}"), STEPS);
    let sets: String = (0..5000).map(|n| format!("{{% set a{n} = 1 %}}")).collect();
    check(&often(&sets, "{{ b }}"), STEPS);
    check(&sets.repeat(3), STEPS);
    let names = |end: &str| (0..50_000).map(|n| format!("a{n}{end},")).collect::<String>();
    let (bare, given) = (names(""), names("=1"));
    check(&format!("{{% macro m({bare}z) %}}{{% endmacro %}}{{{{ m() }}}}"), STEPS);
    check(&often(&format!("{{% set ns = namespace({given}) %}}"), ""), STEPS);
    check(&often("", &format!("{{% set x = range(9999) | map('abs', {given}) %}}")), STEPS);
}

#[test]
fn paths_of_many_parts() {
    check("{% set x = [1] | map(attribute='.' * 50000000) %}", MEMORY);
}

#[test]
fn dates() {
    check("{{ strftime_now('%c' * 20000000) }}", MEMORY);
}

/// Lists and keys in which some pairs have no order, in many orders.
#[test]
fn sorts_without_an_order() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..200 {
        let items: Vec<String> = (0..100)
            .map(|at| match random.next_u32() % 3 {
                0 => format!("'{}'", random.next_u32() % 50),
                1 => format!("{}.5", random.next_u32() % 50),
                _ => format!("{}", at - 50),
            })
            .collect();
        let list = items.join(", ");
        for filter in ["sort", "sort(reverse=true)", "min", "max"] {
            check(&format!("{{{{ [{list}] | {filter} }}}}"), "have no order");
        }
        let entries: Vec<String> = items.iter().map(|item| format!("{item}: 1")).collect();
        let dict = entries.join(", ");
        check(&format!("{{{{ {{{dict}}} | dictsort }}}}"), "have no order");
        check(&format!("{{{{ {{{dict}}} | tojson(sort_keys=true) }}}}"), "have no order");
    }
}

#[test]
fn nesting() {
    let deep = 70_000;
    for (open, middle, close) in [
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("{1:", "1", "}"),
        ("not ", "1", ""),
        ("- ", "1", ""),
        ("x[", "1", "]"),
        ("f(", "1", ")"),
        ("1 if 1 else ", "1", ""),
        ("x|f(", "1", ")"),
        ("x is f(", "1", ")"),
    ] {
        let inner = format!("{}{middle}{}", open.repeat(deep), close.repeat(deep));
        check(&format!("{{{{ {inner} }}}}"), "nested more than");
    }
    let blocks = format!("{}{}", "{% if 1 %}".repeat(deep / 2), "{% endif %}".repeat(10));
    check(&blocks, "nested more than");
    let macros = "{% macro m() %}".repeat(deep / 2);
    check(&macros, "nested more than");
    let names = format!("{}a{}", "(".repeat(deep), ")".repeat(deep));
    check(&format!("{{% set {names} = 1 %}}"), "nested more than");
}

#[test]
fn long_chains() {
    let chain = |link: &str| format!("{{{{ 1{} }}}}{{{{ 1 // 0 }}}}", link.repeat(70_000));
    for link in ["+1", "-1", "*1", "~1", "**1", " or 0", " and 1", "==1", " if 1 else 1"] {
        let expected = if link.starts_with(" if") { "nested more" } else { "zero" };
        if link == "~1" {
            check(&chain(link), MEMORY); // A text that grows by one each time.
        } else {
            check(&chain(link), expected);
        }
    }
    check(&chain("|abs"), "zero");
    check(&chain(" is defined"), "zero");
    let branches = "{% elif 0 %}".repeat(80_000);
    check(&format!("{{% if 0 %}}{branches}{{% endif %}}{{{{ 1 // 0 }}}}"), "zero");
    check(&"x".repeat(2 << 20), "the limit is");
    check("{{ 99999999999999999999 }}", "out of range");
    check("{{ 9223372036854775807 + 1 }}", "out of range");
    check("{{ 10 ** 100 }}", "out of range");
}

/// The deepest template that is let through must fit the stack of a thread.
#[test]
fn the_deepest_that_is_allowed() {
    let brackets = format!("{{{{ {}1{} }}}}{{{{ 1 // 0 }}}}", "(".repeat(49), ")".repeat(49));
    check(&brackets, "zero");
    let open = "{% if [1] %}".repeat(40);
    let close = "{% endif %}".repeat(40);
    let call = "{{ [[[[[[[[[[m()]]]]]]]]]] ~ '' }}";
    check(
        &format!("{{% macro m() %}}{open}{call}{close}{{% endmacro %}}{{{{ m() }}}}"),
        "150 levels",
    );
}

/// Templates with pieces taken out, doubled or brought over from one another end soon, well or not.
#[test]
fn broken_templates() {
    let fixture = testkit::fixture("chats");
    let expected = testkit::json(&fixture.join("expected.json"));
    let chats: Vec<_> = expected["chats"].as_object().unwrap().values().collect();
    let pieces = testkit::json(&fixture.join("jinja.json"));
    let mut sources: Vec<String> = fs_err::read_dir(fixture.join("templates"))
        .unwrap()
        .map(|entry| fs_err::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    sources.sort();
    let pieces = pieces["pieces"].as_array().unwrap().iter();
    sources.extend(pieces.map(|piece| piece[0].as_str().unwrap().to_owned()));
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut below = |end: usize| random.next_u32() as usize % end.max(1);
    for _ in 0..TRIES {
        let mut source: Vec<char> = sources[below(sources.len())].chars().collect();
        for _ in 0..=below(3) {
            let other: Vec<char> = sources[below(sources.len())].chars().collect();
            let from = below(other.len());
            let piece = &other[from..(from + below(30)).min(other.len())];
            let at = below(source.len());
            let to = (at + below(30)).min(source.len());
            source.splice(at..to, piece.iter().copied());
        }
        let source: String = source.into_iter().collect();
        let chat = chats[below(chats.len())];
        let variables = ["messages", "tools"].map(|name| (name, chat[name].clone()));
        let started = Instant::now();
        let size = Size { turns: 9, bytes: 2000 };
        let _ = Program::parse(&source).and_then(|program| program.render(&variables, size));
        assert!(started.elapsed() < Duration::from_secs(5), "{source}");
    }
}

/// How many broken templates are tried.
const TRIES: usize = 2000;
