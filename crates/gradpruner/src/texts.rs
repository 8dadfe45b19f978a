//! Sentences about what a run computes, needs and reads, which several commands print.

use dataset::RowCounts;
use pipeline::{ComparisonNeeds, Computing, Estimate};
use repair::{Cut, FittedRun};

use crate::units::{bytes_text, counted, layers_text, time_text};

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// Where and in what type something is computed, and why so.
pub(crate) fn computing_text(computing: &Computing) -> String {
    let Computing { device, threads, compute, rates } = computing;
    let threads = match device.as_str() {
        "cpu" => format!(", {}", threads_text(*threads)),
        _ => String::new(),
    };
    let why = rates.map_or_else(String::new, |rates| {
        format!(
            ": measured {} GFLOP/s in bf16, {} in f32",
            gigaflops(rates.bf16),
            gigaflops(rates.f32)
        )
    });
    format!("in {compute} on {device}{threads}{why}")
}

/// So many threads.
pub(crate) fn threads_text(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// A rate in GFLOP/s, with as many digits as say something.
pub(crate) fn gigaflops(rate: f64) -> String {
    let rate = rate / 1e9;
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// A run of pruned layers.
pub(crate) fn run_text(run: &FittedRun) -> String {
    let FittedRun { first, last, .. } = run;
    match first == last {
        true => format!("layer {first}"),
        false => format!("layers {first}–{last}"),
    }
}

/// A run of pruned layers and the map in its place, in one line.
pub(crate) fn fitted_text(run: &FittedRun) -> String {
    let FittedRun { receiver, error_before, error_after, .. } = run;
    format!(
        "{} as a map in layer {receiver}: relative error {error_before:.3} → {error_after:.3}",
        run_text(run)
    )
}

/// A run of pruned layers and the layer that was retrained for it, in one line.
pub(crate) fn reconstructed_text(run: &FittedRun) -> String {
    let FittedRun { receiver, error_before, error_after, .. } = run;
    format!(
        "layer {receiver} retrained to replace {}: relative error {error_before:.3} → {error_after:.3}",
        run_text(run)
    )
}

/// A cut and its scale, in one line.
pub(crate) fn scaled_text(cut: &Cut) -> String {
    let layers: Vec<usize> = (cut.first..=cut.last).collect();
    format!(
        "layers {}: the residual stream after them is {:.3} times as large",
        layers_text(&layers),
        cut.factor
    )
}

/// What a run needs, in one line, and what would take less time.
pub(crate) fn needs_text(needs: &Estimate) -> String {
    let mut text = format!("about {} of memory", bytes_text(needs.memory_bytes));
    if let Some(available) = needs.available_memory_bytes {
        text.push_str(&format!(" ({} free)", bytes_text(available)));
    }
    text.push_str(&format!(
        ", {} on disk, {}",
        bytes_text(needs.disk_bytes),
        time_text(needs.seconds)
    ));
    if let Some(faster) = &needs.faster {
        text.push_str(&format!(
            "; with --dtype {} it would take {}",
            faster.dtype,
            time_text(faster.seconds)
        ));
    }
    if needs.seconds > DAY {
        text.push_str(
            "\n  that is more than a day; fewer rows, --epochs 1, --max-steps, a smaller \
             --max-length or a GPU would shorten it",
        );
    }
    text
}

/// What a comparison needs, in one line.
pub(crate) fn comparison_needs_text(needs: &ComparisonNeeds) -> String {
    let ComparisonNeeds { cells, there, memory_bytes, disk_bytes, seconds, .. } = *needs;
    let memory = bytes_text(memory_bytes);
    let free = needs
        .available_memory_bytes
        .map_or_else(String::new, |free| format!(" ({} free)", bytes_text(free)));
    let known = match there {
        0 => String::new(),
        _ => format!(", {there} of them already done"),
    };
    format!(
        "about {memory} of memory{free}, at most {} on disk and {}, for {}{known}",
        bytes_text(disk_bytes),
        time_text(seconds),
        counted(cells, "cell"),
    )
}

/// What became of rows, in one line.
pub(crate) fn rows_text(counts: &RowCounts) -> String {
    let RowCounts { rows, examples, cut, left_out, tokens, learned } = counts;
    let split = match *examples > rows - left_out {
        true => format!(" as {examples} examples"),
        false => String::new(),
    };
    let unit = if *rows == 1 { "row" } else { "rows" };
    format!(
        "{rows} {unit}{split}: {cut} cut, {left_out} left out; {tokens} tokens, {learned} learned"
    )
}

#[cfg(test)]
mod tests {
    use finetune::{ComputeType, ProductRates};
    use pipeline::FasterType;

    use super::*;

    #[test]
    fn the_chosen_type_comes_with_its_reason() {
        let mut computing = Computing {
            device: "cpu".into(),
            threads: 2,
            compute: ComputeType::F32,
            rates: Some(ProductRates { bf16: 0.21e9, f32: 72.4e9 }),
        };
        assert_eq!(
            computing_text(&computing),
            "in f32 on cpu, 2 threads: measured 0.2 GFLOP/s in bf16, 72 in f32"
        );
        computing = Computing { device: "cuda:0".into(), rates: None, ..computing };
        assert_eq!(computing_text(&computing), "in f32 on cuda:0");
    }

    #[test]
    fn a_comparison_says_what_it_takes_beyond_what_is_there() {
        let mut needs = ComparisonNeeds {
            cells: 13,
            there: 0,
            memory_bytes: 2_000_000_000,
            available_memory_bytes: Some(8_000_000_000),
            disk_bytes: 3_000_000,
            seconds: 600.0,
        };
        assert_eq!(
            comparison_needs_text(&needs),
            "about 2.0 GB of memory (8.0 GB free), at most 3 MB on disk and 10 min, for 13 cells"
        );
        needs.there = 4;
        assert!(comparison_needs_text(&needs).ends_with("for 13 cells, 4 of them already done"));
    }

    #[test]
    fn a_long_run_says_how_to_shorten_it() {
        let mut needs = Estimate {
            stages: Vec::new(),
            memory_bytes: 1_000_000_000,
            disk_bytes: 2_000_000,
            seconds: 600.0,
            available_memory_bytes: None,
            dtype: "bf16".into(),
            faster: None,
        };
        assert_eq!(needs_text(&needs), "about 1.0 GB of memory, 2 MB on disk, 10 min");
        needs.seconds = 200_000.0;
        needs.faster = Some(FasterType { dtype: "f32".into(), seconds: 600.0 });
        let text = needs_text(&needs);
        assert!(text.contains("; with --dtype f32 it would take 10 min"), "{text}");
        assert!(text.contains("more than a day"), "{text}");
    }
}
