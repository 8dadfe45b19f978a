//! What a comparison found, for people: tables, sentences, a page.

mod agreement;
mod charts;
mod figures;
mod page;
mod progress;
mod remake;
mod rows;
mod sentence;

use pipeline::{Cell, CompareSettings, Comparison, Impossible, Way};

pub(crate) use self::page::html;
pub(crate) use self::progress::Progress;
use self::remake::{Remake, remake};
use self::sentence::sentence;

/// A cell in a few words.
pub(crate) fn cell_text(cell: &Cell) -> String {
    let Cell { way, baseline, finetune, seed } = cell;
    let what = match (way, baseline) {
        (None, None) => "dense".to_owned(),
        (None, Some(model)) => format!("baseline {model}"),
        (Some(way), _) if way.paper => format!("{} in {}", way.prune, way.chosen_by()),
        (Some(Way { prune, criterion, repair, .. }), _) => {
            format!("{prune} by {criterion}, {repair}")
        }
    };
    format!("{what}, {finetune}, seed {seed}")
}

/// The comparison as Markdown: for each set and ratio a sentence on the best and a table, then how far criteria agree.
pub(crate) fn markdown(found: &Comparison, settings: &CompareSettings) -> String {
    let mut text = format!("# {} on {}\n", found.model, found.train);
    for (set, name) in found.evals.iter().enumerate() {
        if let Some(warning) = trained_on(found, set) {
            text.push_str(&format!("\n**{warning}**\n"));
        }
        for (ratio, lines) in figures::by_ratio(found, set) {
            text.push_str(&format!("\n## {name}, {ratio} pruned\n"));
            if let Some(sentence) = sentence(&lines) {
                text.push_str(&format!("\n{sentence}\n"));
            }
            text.push_str(&format!("\n{}\n", figures::table(&lines).markdown()));
            if let Some(refused) = figures::refused(&lines) {
                text.push_str(&format!("\n{refused}\n"));
            }
            if let Some(Remake { about, command }) = remake(found, settings, &lines, set) {
                text.push_str(&format!("\n{about}\n\n```sh\n{command}\n```\n"));
            }
        }
    }
    let matrices = agreement::matrices(found);
    if !matrices.is_empty() {
        text.push_str(&format!("\n## Agreement between criteria\n\n{AGREEMENT}\n"));
    }
    for (ratio, table) in matrices {
        text.push_str(&format!("\n{ratio} pruned:\n\n{}\n", table.markdown()));
    }
    for missing in missing(found) {
        text.push_str(&format!("\n{missing}\n"));
    }
    text
}

/// What the matrices show.
const AGREEMENT: &str = "How many of the removed layers two criteria share, and, where both give scores, Kendall's τ \
                         between the scores of all layers: 1 for the same order, 0 for none, −1 for the reverse.";

/// The warning that rows of a set were trained on, if any was.
fn trained_on(found: &Comparison, set: usize) -> Option<String> {
    let count = *found.rows_trained_on.get(set).filter(|&&count| count > 0)?;
    let name = found.evals.get(set)?;
    Some(format!("{count} rows of {name} were also trained on, so its figures mean little."))
}

/// The cells that there was no time for and those that cannot be made, if there are any.
fn missing(found: &Comparison) -> Vec<String> {
    let left_out: Vec<_> = found.left_out.iter().map(cell_text).collect();
    let no_time =
        (!left_out.is_empty()).then(|| format!("No time was left for: {}.", left_out.join("; ")));
    let impossible = found.impossible.iter().map(|Impossible { cell, reason }| {
        format!("Could not be made: {} ({reason}).", cell_text(cell))
    });
    no_time.into_iter().chain(impossible).collect()
}

/// The comparison as CSV, a line a cell and set.
pub(crate) fn csv(found: &Comparison) -> String {
    let mut text = "model,prune,criterion,repair,finetune,seed,data,layers,parameters,flops_per_token,acc,acc_low,\
                    acc_high,acc_norm,rouge_l,perplexity_before,perplexity_after,tokens_per_second,peak_memory_bytes,\
                    seconds,seconds_choosing,pruned,learning_rate,rouge_l_low,rouge_l_high,perplexity_low,perplexity_high\n"
        .to_owned();
    for result in &found.cells {
        for on in &result.evaluations {
            let after = &on.after;
            let number = |value: Option<f64>| value.map_or_else(String::new, |x| x.to_string());
            let way = result.cell.way.as_ref();
            let layers: Vec<_> = result.pruned.iter().map(usize::to_string).collect();
            let fields = [
                quoted(result.cell.baseline.as_ref().unwrap_or(&found.model)),
                way.map_or_else(|| "0".into(), |way| way.prune.to_string()),
                way.map_or_else(String::new, Way::chosen_by),
                way.map_or_else(String::new, |way| way.repair.to_string()),
                result.cell.finetune.to_string(),
                result.cell.seed.to_string(),
                quoted(&on.data),
                result.size.num_layers.to_string(),
                result.size.parameters.to_string(),
                result.size.flops_per_token.to_string(),
                number(after.acc),
                number(after.acc_interval.map(|interval| interval.low)),
                number(after.acc_interval.map(|interval| interval.high)),
                number(after.acc_norm),
                number(after.rouge.map(|scores| scores.rouge_l)),
                number(on.before.perplexity),
                number(after.perplexity),
                after.tokens_per_second.to_string(),
                after.peak_memory_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
                result.seconds.to_string(),
                result.seconds_choosing.to_string(),
                layers.join(" "),
                number(result.rates.first().map(|taken| taken.learning_rate)),
                number(after.rouge_l_interval.map(|interval| interval.low)),
                number(after.rouge_l_interval.map(|interval| interval.high)),
                number(after.perplexity_interval.map(|interval| interval.low)),
                number(after.perplexity_interval.map(|interval| interval.high)),
            ];
            text.push_str(&format!("{}\n", fields.join(",")));
        }
    }
    text
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// The comparison as aligned text for a terminal, with a sentence on the best.
pub(crate) fn terminal(found: &Comparison) -> String {
    let mut parts = Vec::new();
    for (set, name) in found.evals.iter().enumerate() {
        parts.extend(trained_on(found, set));
        for (ratio, lines) in figures::by_ratio(found, set) {
            let table = figures::table(&lines).text();
            parts.push(format!("{name}, {ratio} pruned\n\n{table}"));
            parts.extend(figures::refused(&lines));
            parts.extend(sentence(&lines));
        }
    }
    let matrices = agreement::matrices(found);
    if !matrices.is_empty() {
        parts.push(format!("Agreement between criteria. {AGREEMENT}"));
    }
    parts.extend(
        matrices.iter().map(|(ratio, table)| format!("{ratio} pruned\n\n{}", table.text())),
    );
    parts.extend(missing(found));
    parts.join("\n\n")
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::Cli;
    use crate::commands::Command;

    /// A cell: how it is pruned, its seed, and which of ten rows it answers rightly, the rest after them wrongly.
    pub(super) fn cell(way: Option<(&str, &str)>, seed: u64, right: usize) -> Value {
        let (acc, rows) = (right as f64 / 40.0, 40);
        let report = json!({
            "rows": rows, "acc": acc, "majority": 0.25, "perplexity": 2.0, "labelled_tokens": 9, "tokens": 9,
            "seconds": 1.0, "tokens_per_second": 9.0, "parameters": 1, "flops_per_token": 2, "num_layers": 3,
        });
        let right: Vec<bool> = (0..rows).map(|row| row < right).collect();
        let layers = if way.is_some() { 4 } else { 6 };
        json!({
            "cell": {
                "way": way.map(|(prune, criterion)| json!({"prune": prune, "criterion": criterion, "repair": "drop"})),
                "finetune": "lora", "seed": seed,
            },
            "pruned": if way.is_some() { vec![2, 3] } else { vec![] },
            "scores": way.map(|_| [9.0, 8.0, 1.0, 2.0, 7.0, 6.0]),
            "size": {"num_layers": layers, "parameters": 1_000_000 * layers, "flops_per_token": 2, "size_bytes": 4},
            "evaluations": [{"data": "test", "before": report, "after": report, "right": right}],
            "seconds": 90.0, "seconds_choosing": 15.0,
        })
    }

    /// A comparison of these cells.
    pub(super) fn comparison(cells: &[Value]) -> Comparison {
        serde_json::from_value(json!({
            "format": "gradpruner-comparison", "version": 1, "model": "m", "train": "t", "evals": ["test"],
            "rows_trained_on": [0], "dtype": "f32", "cells": cells, "left_out": [],
        }))
        .unwrap()
    }

    /// The settings that `compare` has by these flags.
    pub(crate) fn settings(flags: &str) -> CompareSettings {
        let words = format!("gradpruner compare --model m --train t --eval test --out o {flags}");
        match Cli::try_parse_from(words.split_whitespace()).unwrap().command {
            Command::Compare(args) => args.settings().unwrap().0,
            other => panic!("{other:?}"),
        }
    }

    fn html(found: &Comparison) -> String {
        super::html(found, &settings("--prune 33%"))
    }

    fn markdown(found: &Comparison) -> String {
        super::markdown(found, &settings("--prune 33%"))
    }

    /// What is said of cells that answer so many of 40 rows; always giving the most frequent answer gets 10.
    fn said(dense: usize, ways: &[(&str, usize)]) -> String {
        let mut cells = vec![cell(None, 0, dense)];
        cells.extend(ways.iter().map(|(name, right)| cell(Some(("33%", name)), 0, *right)));
        let found = comparison(&cells);
        let (_, lines) = figures::by_ratio(&found, 0).remove(0);
        sentence(&lines).unwrap()
    }

    #[test]
    fn a_refused_repair_is_named() {
        let mut refused = cell(Some(("33%", "bi")), 1, 20);
        let plan = json!({
            "format": "gradpruner-plan", "version": 1, "num_layers": 6, "pruned": [2, 3], "merges": [], "density": 0.2,
            "rule": "same-sign",
        });
        refused["verdict"] = json!({
            "repair": "linear-map", "dropped": 0.5, "repaired": 0.75, "kept": false, "plan": plan,
        });
        let mut kept = cell(Some(("33%", "igia")), 1, 20);
        kept["verdict"] = refused["verdict"].clone();
        kept["verdict"]["kept"] = true.into();
        let cells = [cell(None, 0, 36), kept, cell(Some(("33%", "bi")), 0, 20), refused];
        let found = comparison(&cells);
        let said = "The repair was rejected because more was lost with it; the layers were dropped without it: bi, drop, \
                    lora (seed 1).";
        for text in [terminal(&found), markdown(&found), html(&found)] {
            assert!(text.contains(said), "{text}");
        }
        assert!(!terminal(&comparison(&cells[..3])).contains("was refused"));
    }

    #[test]
    fn the_best_is_held_to_the_dense_model_the_next_and_the_most_frequent_answer() {
        assert_eq!(
            said(36, &[("igia", 34), ("last", 20)]),
            "Best: igia, drop, lora (85.0 %), within noise of dense, lora (90.0 %); the next, last, drop, lora (50.0 %), \
             is significantly worse."
        );
        assert_eq!(
            said(36, &[("igia", 24), ("bi", 23)]),
            "Best: igia, drop, lora (60.0 %), significantly worse than dense, lora (90.0 %); the next, bi, drop, lora \
             (57.5 %), does not differ significantly."
        );
        // 14 of 40 is 35 %, its interval from 22.1 % on: below the 25 % of the most frequent answer.
        let poor = said(36, &[("igia", 14)]);
        assert!(
            poor.starts_with(
                "No pruning method does significantly better than always giving the most frequent answer (25.0 %): "
            ) && !poor.contains("Best"),
            "{poor}"
        );
        let found = comparison(&[cell(None, 0, 36), cell(Some(("33%", "igia")), 0, 14)]);
        assert!(!html(&found).contains("class=\"best\""));
        let found = comparison(&[cell(None, 0, 36), cell(Some(("33%", "igia")), 0, 34)]);
        assert!(html(&found).contains("class=\"best\""));
    }

    /// A cell without choices, judged by replies or else by the losses of rows of so many tokens each.
    fn without_choices(way: Option<&str>, seed: u64, losses: &[f64], replies: &[&str]) -> Value {
        let mut cell = cell(way.map(|criterion| ("33%", criterion)), seed, 0);
        let on = &mut cell["evaluations"][0];
        let perplexity = (losses.iter().sum::<f64>() / (3 * losses.len()) as f64).exp();
        for report in ["before", "after"] {
            on[report]["acc"] = Value::Null;
            on[report]["majority"] = Value::Null;
            on[report]["perplexity"] = perplexity.into();
        }
        let losses = losses.iter().enumerate();
        let losses = losses.map(|(row, nats)| json!({"row": row + 1, "nats": nats, "tokens": 3}));
        on["losses"] = losses.collect();
        on["right"] = json!([]);
        if !replies.is_empty() {
            let one = |(row, text): (usize, &&str)| json!({"row": row + 1, "text": text, "reference": "a b c d"});
            on["after"]["generated"] = replies.iter().enumerate().map(one).collect();
            let shares = replies.iter().map(|text| metrics::rouge(text, "a b c d").rouge_l);
            let mean = shares.sum::<f64>() / replies.len() as f64;
            on["after"]["rouge"] = json!({"rouge1": mean, "rouge2": mean, "rougeL": mean});
        }
        cell
    }

    /// Rows without choices are tested, too: one way that is worse on every row, and one that is now better and now worse.
    #[test]
    fn losses_and_replies_are_tested() {
        let dense: Vec<f64> = (0..30).map(|row| 1.0 + f64::from(row % 7)).collect();
        let near =
            dense.iter().enumerate().map(|(row, x)| x + if row % 2 == 0 { 0.3 } else { -0.29 });
        let worse: Vec<f64> = dense.iter().map(|x| x + 1.0).collect();
        let cells = [
            without_choices(None, 0, &dense, &[]),
            without_choices(Some("igia"), 0, &near.collect::<Vec<_>>(), &[]),
            without_choices(Some("bi"), 0, &worse, &[]),
        ];
        let found = comparison(&cells);
        let (_, lines) = figures::by_ratio(&found, 0).remove(0);
        let said = sentence(&lines).unwrap();
        assert!(
            said.contains("within noise of dense, lora")
                && said.ends_with("is significantly worse."),
            "{said}"
        );
        let text = terminal(&found);
        assert!(
            text.contains("perplexity (95 % interval)") && text.contains("+39.6 %, p < 0.001"),
            "{text}"
        );

        let replies = ["a b c d", "a b x", "a y c d", "a b c", "d c b a", "a b c d"];
        let poor = ["x", "y", "a", "z", "w", "v"];
        let cells = [
            without_choices(None, 0, &dense, &replies),
            without_choices(Some("igia"), 0, &dense, &poor),
        ];
        let text = terminal(&comparison(&cells));
        assert!(text.contains("ROUGE-L (95 % interval)") && text.contains("−0.6"), "{text}");
        assert!(text.contains("significantly worse than"), "{text}");
    }

    /// Over seeds a perplexity is that of the mean loss, as are its interval and its test.
    #[test]
    fn over_seeds_perplexity_is_that_of_the_mean_loss() {
        let row = |nats: f64| (0..30).map(|row| nats + f64::from(row % 3)).collect::<Vec<_>>();
        let of = |way, seed, nats| without_choices(way, seed, &row(nats), &[]);
        // One seed that collapses has the larger mean of perplexities and the smaller mean loss.
        let cells = [
            of(None, 0, 5.0),
            of(None, 1, 5.0),
            of(Some("igia"), 0, 0.5),
            of(Some("igia"), 1, 8.0),
        ];
        let found = comparison(&cells);
        let (_, lines) = figures::by_ratio(&found, 0).remove(0);
        let expected = ((4.25_f64 + 1.0) / 3.0).exp();
        assert!((lines[1].value().unwrap() - expected).abs() < 1e-9);
        let said = sentence(&lines).unwrap();
        assert!(said.contains("significantly better than dense"), "{said}");
    }

    /// What an earlier program kept of a comparison has no losses of rows: no interval, and no test.
    #[test]
    fn without_figures_of_rows_nothing_is_tested() {
        let mut cells = [
            without_choices(None, 0, &[1.0, 2.0], &[]),
            without_choices(Some("igia"), 0, &[3.0, 4.0], &[]),
            without_choices(Some("bi"), 0, &[5.0, 6.0], &[]),
        ];
        for cell in &mut cells {
            cell["evaluations"][0].as_object_mut().unwrap().remove("losses");
        }
        let found = comparison(&cells);
        let (_, lines) = figures::by_ratio(&found, 0).remove(0);
        assert!(sentence(&lines).unwrap().contains("; then comes bi"));
    }

    /// A baseline has a line of its own below the dense model, and the best is held to it.
    #[test]
    fn a_baseline_stands_beside_the_ways() {
        let mut baseline = cell(None, 0, 20);
        baseline["cell"]["baseline"] = "m, small".into();
        baseline["size"]["num_layers"] = 3.into();
        let cells = [
            cell(None, 0, 36),
            baseline,
            cell(Some(("33%", "igia")), 0, 34),
            cell(Some(("33%", "bi")), 0, 12),
        ];
        let found = comparison(&cells);
        let (_, lines) = figures::by_ratio(&found, 0).remove(0);
        let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        let expected =
            ["dense, lora", "m, small, 3 layers, lora", "igia, drop, lora", "bi, drop, lora"];
        assert_eq!(names, expected);
        // 14 rows are answered better, none worse: 2 / 2¹⁴.
        let sentence = sentence(&lines).unwrap();
        assert!(
            sentence.ends_with(
                "It is significantly better than the baseline m, small, 3 layers, lora (50.0 %)."
            ),
            "{sentence}"
        );
        let row = terminal(&found);
        let row = row.lines().find(|line| line.starts_with("m, small, 3 layers, lora")).unwrap();
        assert!(
            row.contains("50.0 % (35.2 – 64.8 %)") && row.contains("−40.0, p < 0.001"),
            "{row}"
        );
        assert!(csv(&found).contains("\n\"m, small\",0,,,lora,0,test,3,"), "{}", csv(&found));
        let page = html(&found);
        assert!(
            page.contains("m, small, 3 layers, lora, 50.0 %")
                && page.matches("class=\"best\"").count() == 1
        );
        assert_eq!(cell_text(&found.cells[1].cell), "baseline m, small, lora, seed 0");
    }

    #[test]
    fn where_all_ways_are_alike_none_is_the_best() {
        assert_eq!(
            said(36, &[("igia", 30), ("bi", 30)]),
            "No pruning method stands out: all reach 75.0 %."
        );
    }

    #[test]
    fn seeds_stand_side_by_side_and_criteria_are_compared() {
        let mut cells = vec![cell(None, 0, 36), cell(None, 1, 36)];
        for (name, of_seeds) in [("igia", [34, 30]), ("bi", [20, 24])] {
            cells.extend(
                (0..).zip(of_seeds).map(|(seed, right)| cell(Some(("33%", name)), seed, right)),
            );
        }
        let mut found = comparison(&cells);
        let text = terminal(&found);
        // Mean of 85 and 75 %; two seeds of 90 s. Six rows are answered worse over the seeds, none better: 2 / 2⁶.
        let igia = text.lines().find(|line| line.starts_with("igia, drop")).unwrap();
        for part in ["80.0 %", "75.0 – 85.0 % (2)", "(65.2 – 89.5 %)", "−10.0, p = 0.031"] {
            assert!(igia.contains(part), "{part}: {igia}");
        }
        // Minutes of both seeds, and those of choosing.
        let last: Vec<&str> = igia.split_whitespace().rev().take(2).collect();
        assert_eq!(last, ["0.5", "3.0"]);
        assert!(text.contains("igia            ·  2/2, τ 1.00"), "{text}");
        assert!(markdown(&found).contains("| bi | 2/2, τ 1.00 | · |"));
        found.rows_trained_on = vec![7];
        let warning = "7 rows of test were also trained on";
        assert!(terminal(&found).contains(warning) && markdown(&found).contains(warning));
        assert!(html(&found).contains(warning));
    }
}
