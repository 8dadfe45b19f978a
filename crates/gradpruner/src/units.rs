//! Figures with their units, as people read them.

/// Bytes, `1.3 GB`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}

/// A file's size, `1.3 GB`, `71 MB`, `2 kB`, `12 bytes`.
pub(crate) fn file_size_text(bytes: u64) -> String {
    match bytes {
        1_000_000.. => bytes_text(bytes),
        1_000.. => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{bytes} bytes"),
    }
}

/// A span of time, roughly: `10 min`.
pub(crate) fn time_text(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// A span of time to the second: `2 min 05 s`.
pub(crate) fn elapsed_text(seconds: u64) -> String {
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// A share, `81.7 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A count in millions, `134 M`.
pub(crate) fn millions(count: u64, suffix: &str) -> String {
    let value = count as f64 / 1e6;
    if value < 100.0 { format!("{value:.1}{suffix}") } else { format!("{value:.0}{suffix}") }
}

/// A perplexity, which may be astronomical.
pub(crate) fn perplexity_text(value: f64) -> String {
    if value < 1000.0 { format!("{value:.3}") } else { format!("{value:.2e}") }
}

/// A number in few characters, whatever its size.
pub(crate) fn compact(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        0.01..1000.0 => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.0e}"),
    }
}

/// So many of something: `1 layer`, `3 layers`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Layers by their runs: `4, 6, 19–28`.
pub(crate) fn layers_text(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let run = |&(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

/// The same with their noun: `layer 4`, `layers 4, 6`.
pub(crate) fn layers_named(layers: &[usize]) -> String {
    let noun = if layers.len() == 1 { "layer" } else { "layers" };
    format!("{noun} {}", layers_text(layers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        assert_eq!([1_250_000_000, 71_000_000].map(bytes_text), ["1.2 GB", "71 MB"]);
        let files = [1_250_000_000, 71_000_000, 1999, 12].map(file_size_text);
        assert_eq!(files, ["1.2 GB", "71 MB", "2 kB", "12 bytes"]);
        assert_eq!([30.0, 600.0, 7200.0].map(time_text), ["30 s", "10 min", "2.0 h"]);
        assert_eq!([59, 125].map(elapsed_text), ["59 s", "2 min 05 s"]);
        assert_eq!(millions(134_515_008, " M"), "135 M");
        assert_eq!([12.3456, 41_000.0].map(perplexity_text), ["12.346", "4.10e4"]);
        let short = [0.0, 0.5, 20.0, 3.25, 1e-7, -45_000.0].map(compact);
        assert_eq!(short, ["0", "0.5", "20", "3.25", "1e-7", "-4e4"]);
        assert_eq!([0, 1, 2].map(|n| counted(n, "row")), ["0 rows", "1 row", "2 rows"]);
    }

    #[test]
    fn layers_stand_in_runs() {
        assert_eq!(layers_text(&[]), "");
        assert_eq!(layers_text(&[1, 4, 5, 19, 20, 21, 28]), "1, 4, 5, 19–21, 28");
        assert_eq!(layers_named(&[4]) + ", " + &layers_named(&[5, 7]), "layer 4, layers 5, 7");
    }
}
